"""The flows of pods on a node in a network of namespaces: as wanted on a healthy one, and what the owner of each rule
did otherwise."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from flanneld_masq.model import Family
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node as PathNode
from flanneld_masq.packet_path.flow_cases import Flow
from flanneld_masq.packet_path.flows import FlowResult, Judgement, flows
from flanneld_masq.packet_path.snapshot import from_json, to_json

from .conftest import Node

FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    ct state invalid drop
    reject with icmpx type admin-prohibited
  }
}
"""
DOCKER_NFT = """
table ip docker-bridges {
  chain filter-FORWARD {
    type filter hook forward priority filter; policy accept;
    oifname "cni0" jump filter-forward-in__cni0
  }
  chain filter-forward-in__cni0 {
    ct state established,related counter accept
    iifname != "cni0" counter drop comment "UNPUBLISHED PORT DROP"
  }
}
"""
OTHER_NETWORK = """
table inet cni_plugins_masquerade {
  chain masq_checks {
    ip saddr 198.18.0.5 ip daddr != 198.18.0.0/17 masquerade comment "6fd9f9a1, net: nerdctl, if: eth0, id: x"
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip daddr 224.0.0.0/4 return
    goto masq_checks
  }
}
"""
SERVICE = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-B - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/web" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-B
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.77:8080
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.2.5:8080
COMMIT
"""
# where there is no kube-proxy, and no bridge
SKIPPED = {Flow.POD_TO_SERVICE, Flow.POD_TO_API_SERVER, Flow.POD_TO_LOCAL_POD, Flow.POD_TO_LOCAL_POD_UDP}


def evaluated(node: Node) -> dict[tuple[Family, Flow, bool], FlowResult]:
    """Evaluate every flow, over a snapshot that was saved and loaded."""
    with node.entered():
        snapshot = collect(node.run)
    loaded = from_json(to_json(snapshot))
    assert loaded == snapshot
    assert not snapshot.unread
    found = flows(PathNode(loaded), node.lease(), node.settings)
    return {(one.family, one.flow, one.answer): one for one in found}


def ipv4(node: Node, flow: Flow, *, answer: bool = False) -> FlowResult:
    return evaluated(node)[Family.IPV4, flow, answer]


@pytest.fixture(params=["nft", "iptables-nft", "iptables-legacy"])
def healthy(request: pytest.FixtureRequest, lab_node: Node) -> Node:
    """The node in the middle, with the daemon's rules in one backend."""
    lab_node.configure("", backend=request.param)
    done = lab_node.masq("apply")
    assert done.returncode == 0, done.stderr
    return lab_node


@pytest.fixture
def plain(lab_node: Node) -> Node:
    lab_node.configure("", backend="nft")
    assert lab_node.masq("apply").returncode == 0
    return lab_node


def test_all_flows_of_a_healthy_node_are_as_wanted(healthy: Node) -> None:
    found = evaluated(healthy)
    assert len(found) == (11 * 2 + len(SKIPPED)) * 2 + 3  # and neighbour discovery
    for one in found.values():
        expected = Judgement.SKIPPED if one.flow in SKIPPED else Judgement.AS_WANTED
        assert one.judgement is expected, f"{one.family} {one.flow.value} {one.answer}: {one.why}"


def test_without_rules_the_pods_address_leaves(lab_node: Node) -> None:
    found = ipv4(lab_node, Flow.POD_TO_WORLD)
    assert found.judgement is Judgement.WRONG
    assert "not from an address of the node" in found.why


def test_a_firewall_that_rejects_is_named(plain: Node) -> None:
    plain.tool("nft", "-f", "-", stdin=FIREWALLD)
    found = ipv4(plain, Flow.POD_TO_WORLD)
    assert found.judgement is Judgement.WRONG
    (cause,) = found.causes
    assert (cause.owner, cause.step.place.table, cause.step.place.chain) == (
        "firewalld",
        "inet firewalld",
        "filter_FORWARD",
    )
    assert cause.step.place.number == 4
    assert cause.step.place.handle


def test_the_answers_of_a_rejected_flow_are_not_judged(plain: Node) -> None:
    plain.tool("nft", "-f", "-", stdin=FIREWALLD)
    assert (Family.IPV4, Flow.POD_TO_WORLD, True) not in evaluated(plain)


def test_docker_that_drops_what_comes_from_remote_pods_is_named(plain: Node) -> None:
    plain.tool("nft", "-f", "-", stdin=DOCKER_NFT)
    found = evaluated(plain)
    assert found[Family.IPV4, Flow.POD_TO_WORLD, True].judgement is Judgement.AS_WANTED
    remote = found[Family.IPV4, Flow.REMOTE_POD_TO_POD, False]
    assert remote.judgement is Judgement.WRONG
    assert remote.causes[0].owner == "docker"
    assert remote.causes[0].step.place.chain == "filter-forward-in__cni0"
    assert found[Family.IPV6, Flow.REMOTE_POD_TO_POD, False].judgement is Judgement.AS_WANTED


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_docker_that_masquerades_pod_to_pod_is_named(plain: Node, tool: str) -> None:
    plain.tool(tool, *["-t", "nat", "-A", "POSTROUTING", "-s", "10.244.1.0/24", "!", "-o", "cni0", "-j", "MASQUERADE"])
    found = ipv4(plain, Flow.POD_TO_REMOTE_POD)
    assert found.judgement is Judgement.WRONG
    assert found.causes[0].owner == "docker"
    assert found.causes[0].step.place.text == "-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE"


def test_masquerade_of_another_network_changes_nothing(plain: Node) -> None:
    plain.tool("nft", "-f", "-", stdin=OTHER_NETWORK)
    assert {one.judgement for one in evaluated(plain).values()} == {Judgement.AS_WANTED, Judgement.SKIPPED}


def test_forwarding_off_for_one_device_is_found(plain: Node) -> None:
    plain.netns.sysctl({"ipv4/conf/cni0/forwarding": 0})
    found = evaluated(plain)
    assert found[Family.IPV4, Flow.POD_TO_WORLD, False].why.endswith("net.ipv4.conf.cni0.forwarding = 0")
    assert found[Family.IPV4, Flow.REMOTE_POD_TO_POD, False].judgement is Judgement.AS_WANTED
    assert found[Family.IPV4, Flow.REMOTE_POD_TO_POD, True].judgement is Judgement.WRONG


@pytest.mark.parametrize(("ignored", "device"), [(0, "up0"), (1, "eth0")])
def test_a_route_by_a_link_without_a_carrier(plain: Node, ignored: int, device: str) -> None:
    for command in (
        "link add up0 type veth peer name up1",
        "link set up0 up",
        "address add 198.18.9.1/24 dev up0",
        "route add 203.0.113.0/24 via 198.18.9.2",
    ):
        plain.tool("ip", *command.split())
    plain.netns.sysctl({"ipv4/conf/up0/ignore_routes_with_linkdown": ignored})
    with plain.entered():
        routing = PathNode(collect(plain.run)).routing[Family.IPV4]
        (shown,) = json.loads(plain.run(("ip", "-j", "route", "get", "203.0.113.9")).stdout)
    (route,) = routing.route(None, ip_address("203.0.113.9"), "", 0)
    assert (route.device, shown["dev"]) == (device, device)


@pytest.mark.parametrize("tools", ["iptables-nft-restore", "iptables-legacy-restore"])
def test_a_service_with_a_pod_on_this_node_is_followed(plain: Node, tools: str) -> None:
    plain.tool(tools, stdin=SERVICE)
    found = ipv4(plain, Flow.POD_TO_SERVICE)
    assert found.judgement is Judgement.AS_WANTED
    assert found.result is not None
    assert {str(one.dst) for one in found.result.outcomes} == {"10.244.1.77:8080", "10.244.2.5:8080"}


def test_a_flow_that_no_conntrack_sees_keeps_its_address(plain: Node) -> None:
    plain.tool("iptables-nft", *["-t", "raw", "-A", "PREROUTING", "-s", "10.244.0.0/16", "-j", "NOTRACK"])
    assert ipv4(plain, Flow.POD_TO_WORLD).judgement is Judgement.WRONG


def test_a_ruleset_in_parts_means_the_same(plain: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    plain.tool("iptables-nft-restore", stdin=SERVICE)
    plain.tool("iptables-nft", *["-A", "FORWARD", "-m", "multiport", "-p", "tcp", "--dports", "8080", "-j", "DROP"])
    plain.tool("nft", "-f", "-", stdin=OTHER_NETWORK)
    whole = evaluated(plain)
    monkeypatch.setattr("flanneld_masq.packet_path.collect.MANY_CHAINS", 0)
    parts = evaluated(plain)
    assert {key: (one.judgement, one.why) for key, one in whole.items()} == {
        key: (one.judgement, one.why) for key, one in parts.items()
    }
    dropped = [one for one in whole.values() if one.judgement is Judgement.WRONG]
    assert {one.flow for one in dropped} >= {Flow.POD_TO_REMOTE_POD, Flow.WORLD_TO_POD}


def test_a_limit_makes_a_flow_uncertain(plain: Node) -> None:
    plain.tool("iptables-nft", *["-A", "FORWARD", "-m", "limit", "--limit", "5/sec", "-j", "ACCEPT"])
    plain.tool("iptables-nft", "-P", "FORWARD", "DROP")
    found = ipv4(plain, Flow.POD_TO_WORLD)
    assert found.judgement is Judgement.MAY
    assert any("--limit" in cause.step.place.text for cause in found.causes)
