"""Which flows are evaluated, which are skipped, and how they are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanneld_masq.model import Family, FamilyLease, Lease, MasqueradeSettings, Settings
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flow_cases import Flow
from flanneld_masq.packet_path.flows import Fault, FlowResult, Judgement, Source, flows
from flanneld_masq.packet_path.rules import Hook
from flanneld_masq.packet_path.snapshot import LEGACY, Save, Snapshot

from .nodes import (
    ACCEPT,
    ADDRESSES,
    DADDR,
    DROP,
    ROUTES4,
    ROUTES6,
    RULES,
    chain,
    ct,
    match,
    meta,
    payload,
    rule,
    snapshot,
    table,
)

LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
)
LEASE6 = Lease(
    "/run/flannel/subnet.env",
    None,
    FamilyLease((ip_network("fd00:10:244::/48"),), ip_network("fd00:10:244:1::/64"), ip_address("fd00:10:244:1::1")),
)
MASQUERADING = [
    table(),
    chain("p", "postrouting", "nat", prio=100),
    rule("p", match({"meta": {"key": "oifname"}}, {"set": ["eth0"]}), {"masquerade": None}),
]
SERVICE = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.77:8080
COMMIT
"""
SERVICE_NFT: list[Any] = [
    table("kube-proxy"),
    chain("services", table="kube-proxy"),
    chain("nat-prerouting", "prerouting", "nat", prio=-100, table="kube-proxy"),
    rule("nat-prerouting", {"jump": {"target": "services"}}, table="kube-proxy"),
    chain("service-a", table="kube-proxy"),
    rule("service-a", {"dnat": {"addr": "10.244.1.77", "port": 8080}}, table="kube-proxy"),
    {
        "map": {
            "family": "ip",
            "name": "service-ips",
            "table": "kube-proxy",
            "type": ["ipv4_addr", "inet_proto", "inet_service"],
            "map": "verdict",
            "elem": [[{"concat": ["10.96.0.10", "tcp", 80]}, {"goto": {"target": "service-a"}}]],
        }
    },
    rule(
        "services",
        {
            "vmap": {
                "key": {
                    "concat": [
                        {"payload": {"protocol": "ip", "field": "daddr"}},
                        {"meta": {"key": "l4proto"}},
                        {"payload": {"protocol": "th", "field": "dport"}},
                    ]
                },
                "data": "@service-ips",
            }
        },
        table="kube-proxy",
    ),
]

SERVICE_IPTABLES_NFT: list[Any] = [  # as nft prints a rule of iptables-nft that has no comment
    table("nat"),
    chain("KUBE-SERVICES", table="nat"),
    chain("KUBE-SVC-A", table="nat"),
    chain("PREROUTING", "prerouting", "nat", prio=-100, table="nat"),
    rule("PREROUTING", {"jump": {"target": "KUBE-SERVICES"}}, table="nat"),
    rule(
        "KUBE-SERVICES",
        match(DADDR, "10.96.0.10"),
        match(payload("tcp", "dport"), 80),
        {"jump": {"target": "KUBE-SVC-A"}},
        table="nat",
    ),
    rule("KUBE-SVC-A", {"dnat": {"addr": "10.244.1.77", "port": 8080}}, table="nat"),
]

API_SERVER = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 192.0.2.1:9100
-A KUBE-SVC-NPX46M4PTMTKRN6Y -p tcp -m tcp -j DNAT --to-destination 192.0.2.1:6443
COMMIT
"""
INPUT = """*filter
:INPUT ACCEPT [0:0]
{}
COMMIT
"""
API_SERVER_NFT: list[Any] = json.loads(
    json.dumps(SERVICE_NFT)
    .replace("service-a", "service-2QRHZV4L-default/kubernetes/tcp/https")
    .replace("10.244.1.77", "192.0.2.1")
)
# where there is no kube-proxy, and no bridge
SKIPPED = {Flow.POD_TO_SERVICE, Flow.POD_TO_API_SERVER, Flow.POD_TO_LOCAL_POD, Flow.POD_TO_LOCAL_POD_UDP}
CALLING = {"net.bridge.bridge-nf-call-iptables": "1"}
BRIDGES = json.dumps([{"ifname": "cni0", "linkinfo": {"info_kind": "bridge"}}])
_DEFAULT = Settings()
DISCOVERY = {Flow.POD_TO_GATEWAY, Flow.GATEWAY_TO_POD}  # of IPv6 alone


def judged(found: Snapshot, settings: Settings = _DEFAULT) -> dict[tuple[Flow, bool], FlowResult]:
    return {(one.flow, one.answer): one for one in flows(Node(found), LEASE, settings)}


def test_a_node_that_masquerades_is_as_wanted() -> None:
    found = judged(snapshot(MASQUERADING))
    assert len(found) == 2 * 11 + len(SKIPPED)
    assert all(one.judgement is Judgement.AS_WANTED for one in found.values() if one.flow not in SKIPPED)
    assert {one.family for one in found.values()} == {Family.IPV4}


def test_without_masquerade_the_world_sees_the_pod() -> None:
    found = judged(snapshot())[Flow.POD_TO_WORLD, False]
    assert (found.judgement, found.wanted) == (Judgement.WRONG, Source.NODE)
    assert found.why == "arrives from 10.244.1.250, not from an address of the node"


def without_address(found: Snapshot) -> Snapshot:
    """Return a node whose uplink has no address."""
    return replace(found, addresses=json.dumps([one for one in ADDRESSES if one["ifname"] != "eth0"]))


def test_an_uplink_without_an_address_masquerades_as_a_pod() -> None:
    found = judged(without_address(snapshot(MASQUERADING)))[Flow.POD_TO_WORLD, False]
    assert (found.judgement, found.fault, found.causes) == (Judgement.WRONG, Fault.NO_ADDRESS, ())
    assert found.why == "arrives from 10.244.1.1, for eth0 has no global address"


def test_an_uplink_without_an_address_may_use_that_of_lo() -> None:
    unnumbered = without_address(snapshot(MASQUERADING))
    info = {"family": "inet", "local": "192.0.2.9", "prefixlen": 32, "scope": "global"}
    addresses = [{"ifname": "lo", "addr_info": [info]}, *json.loads(unnumbered.addresses)[1:]]
    found = judged(replace(unnumbered, addresses=json.dumps(addresses)))[Flow.POD_TO_WORLD, False]
    assert found.result is not None
    assert str(found.result.source) == "192.0.2.9"
    assert found.fault is None


def egress(address: str, device: str = "eth0") -> list[Any]:
    """Return an administrator's SNAT."""
    snat = rule("p", match({"meta": {"key": "oifname"}}, device), {"snat": {"addr": address}})
    return [table(), chain("p", "postrouting", "nat", prio=100), snat]


def test_snat_to_a_local_route_is_as_wanted() -> None:
    routes = [*ROUTES4, {"type": "local", "dst": "203.0.113.0/29", "dev": "lo", "table": "local"}]
    found = judged(snapshot(egress("203.0.113.1"), routes=routes))
    assert found[Flow.POD_TO_WORLD, False].judgement is Judgement.AS_WANTED


def test_snat_to_another_address_may_be_routed_here() -> None:
    found = judged(snapshot(egress("203.0.113.1")))[Flow.POD_TO_WORLD, False]
    assert (found.judgement, found.fault) == (Judgement.MAY, None)
    assert found.why == "arrives from 203.0.113.1, which is no address of the node, but may be routed to it"
    assert [cause.step.place.chain for cause in found.causes] == ["p"]


def test_snat_to_an_address_of_a_pod_is_wrong() -> None:
    found = judged(snapshot(egress("10.244.7.7")))[Flow.POD_TO_WORLD, False]
    assert (found.judgement, found.fault) == (Judgement.WRONG, Fault.NOT_MASQUERADED)


def test_nothing_is_wanted_of_the_source_where_masquerade_is_off() -> None:
    settings = Settings(masquerade=MasqueradeSettings(enabled=False))
    found = judged(snapshot(), settings)[Flow.POD_TO_WORLD, False]
    assert (found.judgement, found.wanted) == (Judgement.AS_WANTED, Source.ANY)


def test_an_exempt_world_must_see_the_pod() -> None:
    settings = Settings(masquerade=MasqueradeSettings(non_masquerade_cidrs=(ip_network("8.0.0.0/8"),)))
    assert judged(snapshot(), settings)[Flow.POD_TO_WORLD, False].judgement is Judgement.AS_WANTED
    assert judged(snapshot(MASQUERADING), settings)[Flow.POD_TO_WORLD, False].judgement is Judgement.WRONG


@pytest.mark.parametrize(
    ("routes", "skipped"),
    [
        (ROUTES4[1:], {Flow.POD_TO_WORLD, Flow.WORLD_TO_POD, Flow.POD_TO_WORLD_UDP}),
        (
            [route for route in ROUTES4 if route["dst"] != "10.244.2.0/24"],
            {Flow.POD_TO_REMOTE_POD, Flow.REMOTE_POD_TO_POD, Flow.HOST_TO_REMOTE_POD, Flow.REMOTE_HOST_TO_POD}
            | {Flow.POD_TO_REMOTE_POD_UDP, Flow.REMOTE_POD_TO_POD_UDP},
        ),
        (
            [route for route in ROUTES4 if route["dst"] != "10.244.1.0/24"],
            set(Flow) - {Flow.HOST_TO_REMOTE_POD} - DISCOVERY,
        ),
    ],
    ids=["no world", "no other node", "no pod yet"],
)
def test_flows_that_the_node_cannot_have_are_skipped(routes: list[Any], skipped: set[Flow]) -> None:
    found = judged(snapshot(MASQUERADING, routes=routes))
    assert {one.flow for one in found.values() if one.judgement is Judgement.SKIPPED} == skipped | SKIPPED


def test_a_drop_of_udp_alone_breaks_the_flows_by_udp() -> None:
    drop = rule("f", match({"meta": {"key": "l4proto"}}, "udp"), {"drop": None})
    found = judged(snapshot([*MASQUERADING, chain("f", "forward"), drop]))
    wrong = {one.flow for one in found.values() if one.judgement is Judgement.WRONG}
    assert wrong == {Flow.POD_TO_WORLD_UDP, Flow.POD_TO_REMOTE_POD_UDP, Flow.REMOTE_POD_TO_POD_UDP}
    assert not any(one.narrow for one in found.values())


def test_the_certain_cause_comes_before_the_possible_one() -> None:
    save = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m string --algo bm --string x -j DROP\nCOMMIT\n"
    found = judged(snapshot(MASQUERADING, legacy=save))[Flow.POD_TO_WORLD, False]
    assert found.judgement is Judgement.WRONG
    assert found.causes[0].step.place.number == 0, "the policy"


def judged6(found: Snapshot) -> dict[tuple[Flow, bool], FlowResult]:
    return {(one.flow, one.answer): one for one in flows(Node(found), LEASE6, _DEFAULT)}


def test_flannels_own_address_is_no_other_pod() -> None:
    """Docker's rules for a bridge. The kernel has a route to each IPv6 address of the node, that of flannel.1 too."""
    to_pods = rule("f", match(meta("oifname"), "cni0"), match(meta("iifname"), "cni0", "!="), DROP, family="ip6")
    found = judged6(snapshot([table(family="ip6"), chain("f", "forward", family="ip6"), to_pods]))
    lost = found[Flow.REMOTE_POD_TO_POD, False]
    assert (lost.judgement, lost.narrow) == (Judgement.WRONG, False)


def test_flannels_own_address_is_no_pod_with_a_route_of_its_own() -> None:
    routes = [*(one for one in ROUTES6 if one["dst"] != "fd00:10:244:1::/64"), {"dst": "fd00:10:244:1::7", "dev": "v7"}]
    packet = judged6(snapshot(routes6=routes))[Flow.POD_TO_REMOTE_POD, False].result
    assert packet is not None
    assert (str(packet.packet.src), packet.packet.iif) == ("fd00:10:244:1::7", "v7")


def test_flannels_own_address_is_no_pod_of_a_route_to_many() -> None:
    """A policy rule takes packets to the pods away, so that the main table's route alone says where they are."""
    rules = [{"priority": 10, "dst": "10.244.1.0", "dstlen": 24, "table": "77"}, *RULES]
    routes = [*ROUTES4, {"dst": "default", "gateway": "192.0.2.100", "dev": "eth0", "table": "77"}]
    objects = [*MASQUERADING, chain("i", "input", policy="drop"), rule("i", match(ct("state"), "new", "!="), ACCEPT)]
    found = judged(snapshot(objects, rules=rules, routes=routes))
    result = found[Flow.REMOTE_POD_TO_POD, False].result
    assert result is not None
    assert str(result.packet.dst) == "10.244.1.250"
    wrong = (one for one in found.values() if one.judgement is Judgement.WRONG and one.flow.essential)
    assert Hook.INPUT not in {cause.step.hook for one in wrong for cause in one.causes}


def test_pods_with_a_route_each_are_followed_by_one_of_them() -> None:
    routes = [*(one for one in ROUTES4 if one["dst"] != "10.244.1.0/24"), {"dst": "10.244.1.7", "dev": "cali1"}]
    strict = {"net.ipv4.conf.all.rp_filter": "1"}
    found = judged(snapshot(MASQUERADING, routes=routes, sysctls=strict))[Flow.POD_TO_WORLD, False]
    assert found.judgement is Judgement.AS_WANTED
    assert found.result is not None
    assert (str(found.result.packet.src), found.result.packet.iif) == ("10.244.1.7", "cali1")


def test_a_lan_inside_the_pod_network_is_no_other_node() -> None:
    routes = [{"dst": "10.244.200.0/24", "dev": "eth0"}, *ROUTES4]
    result = judged(snapshot(MASQUERADING, routes=routes))[Flow.POD_TO_REMOTE_POD, False].result
    assert result is not None
    assert str(result.packet.dst) == "10.244.2.250"


def test_a_rule_that_drops_answers_is_found() -> None:
    answers = match({"ct": {"key": "state"}}, "established", "in")
    dropping = [*MASQUERADING, chain("f", "forward"), rule("f", match(meta("iifname"), "eth0"), answers, DROP)]
    found = judged(snapshot(dropping))
    assert found[Flow.POD_TO_WORLD, False].judgement is Judgement.AS_WANTED
    assert found[Flow.POD_TO_WORLD, True].judgement is Judgement.WRONG
    assert found[Flow.POD_TO_WORLD, True].causes[0].step.place.chain == "f"


def test_what_cannot_be_read_leaves_every_flow_uncertain() -> None:
    found = judged(snapshot(MASQUERADING, unread=("nft: not permitted",)))
    assert {one.judgement for one in found.values()} == {Judgement.MAY, Judgement.SKIPPED}


@pytest.mark.parametrize(
    "found",
    [snapshot(legacy=SERVICE), snapshot(SERVICE_IPTABLES_NFT), snapshot(SERVICE_NFT)],
    ids=["iptables", "iptables-nft", "nft"],
)
def test_services_of_both_modes_are_found(found: Snapshot) -> None:
    service = judged(found)[Flow.POD_TO_SERVICE, False]
    assert service.judgement is Judgement.AS_WANTED
    assert service.result is not None
    assert str(service.result.outcomes[0].dst) == "10.244.1.77:8080"


@pytest.mark.parametrize("found", [snapshot(legacy=API_SERVER), snapshot(API_SERVER_NFT)], ids=["iptables", "nft"])
def test_the_api_server_of_this_node_is_followed(found: Snapshot) -> None:
    flow = judged(found)[Flow.POD_TO_API_SERVER, False]
    assert flow.judgement is Judgement.AS_WANTED
    assert flow.result is not None
    assert str(flow.result.outcomes[0].dst).startswith("192.0.2.1:")


@pytest.mark.parametrize("place", ["192.0.2.2", "10.244.1.77"])
def test_an_api_server_elsewhere_is_not_followed(place: str) -> None:
    found = judged(snapshot(legacy=API_SERVER.replace("192.0.2.1:6443", f"{place}:6443")))
    assert found[Flow.POD_TO_API_SERVER, False].judgement is Judgement.SKIPPED


@pytest.mark.parametrize(
    ("rule_text", "narrow"),
    [
        ("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -j REJECT", False),
        ("-A INPUT -p tcp -m tcp --dport 6443 -j DROP", True),
        ("-A INPUT -s 10.244.1.250 -j DROP", True),
    ],
    ids=["all", "port", "pod"],
)
def test_an_api_server_that_pods_may_not_reach(rule_text: str, narrow: bool) -> None:
    found = judged(snapshot(legacy=API_SERVER + INPUT.format(rule_text)))[Flow.POD_TO_API_SERVER, False]
    assert (found.judgement, found.narrow) == (Judgement.WRONG, narrow)
    assert found.flow.essential
    assert found.causes[0].step.place.chain == "INPUT"


@pytest.mark.parametrize(
    ("sysctls", "own", "judgement"),
    [
        ({"net.bridge.bridge-nf-call-iptables": "1"}, 0, Judgement.AS_WANTED),
        ({"net.bridge.bridge-nf-call-iptables": "0"}, 0, Judgement.WRONG),
        ({"net.bridge.bridge-nf-call-iptables": "0"}, 1, Judgement.AS_WANTED),
        ({}, 0, Judgement.WRONG),
    ],
    ids=str,
)
def test_answers_of_a_pod_on_the_same_bridge(sysctls: dict[str, str], own: int, judgement: Judgement) -> None:
    """The switch of the node, or that of the bridge itself."""
    info = {"info_kind": "bridge", "info_data": {"nf_call_iptables": own}}
    bridged = replace(
        snapshot(legacy=SERVICE, sysctls=sysctls), links=json.dumps([{"ifname": "cni0", "linkinfo": info}])
    )
    answer = judged(bridged)[Flow.POD_TO_SERVICE, True]
    assert answer.judgement is judgement
    if judgement is Judgement.WRONG:
        assert "bridged past NAT" in answer.why


def bridged(objects: list[Any], sysctls: dict[str, str], **more: Any) -> dict[tuple[Flow, bool], FlowResult]:
    """Judge the flows of a node whose cni0 is a bridge."""
    return judged(replace(snapshot([*MASQUERADING, *objects], sysctls=sysctls, **more), links=BRIDGES))


BETWEEN_PODS = [chain("f", "forward"), rule("f", match(meta("iifname"), "cni0"), match(meta("oifname"), "cni0"), DROP)]


def test_a_rule_between_pods_of_one_bridge_is_found() -> None:
    found = bridged(BETWEEN_PODS, CALLING)
    wrong = {one.flow: one for one in found.values() if one.judgement is Judgement.WRONG}
    assert set(wrong) == {Flow.POD_TO_LOCAL_POD, Flow.POD_TO_LOCAL_POD_UDP}
    assert wrong[Flow.POD_TO_LOCAL_POD].causes[0].step.place.chain == "f"
    assert not any(one.narrow for one in wrong.values())


@pytest.mark.parametrize(
    "matches",
    [
        [match({"payload": {"protocol": "tcp", "field": "dport"}}, 8080)],
        [match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.244.1.250")],
        [match({"payload": {"protocol": "ip", "field": "daddr"}}, "10.244.1.251")],
    ],
    ids=["port", "source", "destination"],
)
def test_a_rule_for_one_pod_of_a_bridge_is_intended(matches: list[Any]) -> None:
    found = bridged([chain("f", "forward"), rule("f", *matches, DROP)], CALLING)[Flow.POD_TO_LOCAL_POD, False]
    assert (found.judgement, found.narrow) == (Judgement.WRONG, True)


def test_packets_of_a_bridge_that_pass_no_rules_are_not_judged() -> None:
    assert bridged(BETWEEN_PODS, {})[Flow.POD_TO_LOCAL_POD, False].judgement is Judgement.SKIPPED


def test_pods_of_one_bridge_must_see_each_other() -> None:
    masquerade = rule(
        "p", match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.244.1.250"), {"masquerade": None}
    )
    found = bridged([masquerade], CALLING)[Flow.POD_TO_LOCAL_POD, False]
    assert (found.judgement, found.fault) == (Judgement.WRONG, Fault.MASQUERADED)


def test_no_route_and_no_sysctl_decides_about_bridged_packets() -> None:
    rules = [{"priority": 10, "src": "10.244.1.250", "table": "77"}, *RULES]
    routes = [*ROUTES4, {"dst": "default", "dev": "eth0", "table": "77"}]
    sysctls = {**CALLING, "net.ipv4.ip_forward": "0", "net.ipv4.conf.cni0.forwarding": "0"}
    found = bridged([], sysctls, rules=rules, routes=routes)
    assert found[Flow.POD_TO_WORLD, False].judgement is Judgement.WRONG
    assert found[Flow.POD_TO_LOCAL_POD, False].judgement is Judgement.AS_WANTED
    assert found[Flow.POD_TO_LOCAL_POD, True].judgement is Judgement.AS_WANTED


def test_firewalls_may_restrict_what_is_not_essential() -> None:
    assert {flow for flow in Flow if not flow.essential} == {Flow.WORLD_TO_POD, Flow.POD_TO_HOST}


def test_pods_may_have_another_way_to_the_world_than_the_node() -> None:
    """A VPN for pods alone, say."""
    rules = [{"priority": 100, "src": "10.244.0.0", "srclen": 16, "table": "100"}, *RULES]
    routes = [
        *ROUTES4,
        {"dst": "default", "dev": "wg0", "table": "100"},
        {"dst": "10.244.0.0/16", "dev": "cni0", "table": "100"},
        {"type": "local", "dst": "203.0.113.5", "dev": "wg0", "table": "local"},
    ]
    objects = [table(), chain("p", "postrouting", "nat", prio=100)]
    objects.append(rule("p", match(meta("oifname"), "wg0"), {"masquerade": None}))
    info = {"family": "inet", "local": "203.0.113.5", "prefixlen": 32, "scope": "global"}
    addresses = json.dumps([*ADDRESSES, {"ifname": "wg0", "addr_info": [info]}])
    node = Node(replace(snapshot(objects, routes=routes, rules=rules), addresses=addresses))
    found = flows(node, LEASE, Settings())
    world = next(one for one in found if one.flow is Flow.POD_TO_WORLD and not one.answer)
    assert world.judgement is Judgement.AS_WANTED, world.why
    assert world.result is not None
    assert world.result.outcomes[0].device == "wg0"


def discovered(*rules: str, chain: str = "INPUT") -> dict[tuple[Flow, bool], FlowResult]:
    """Return the results of neighbour discovery where the chain drops all that these rules do not accept."""
    lines = "".join(f"-A {chain} {one}\n" for one in rules)
    save = Save(Family.IPV6, LEGACY, f"*filter\n:{chain} DROP [0:0]\n{lines}COMMIT\n")
    return {key: one for key, one in judged6(snapshot(saves=(save,))).items() if one.flow in DISCOVERY}


def test_neighbour_discovery_passes_input_and_output() -> None:
    found = {key: one for key, one in judged6(snapshot()).items() if one.flow in DISCOVERY}
    assert {one.judgement for one in found.values()} == {Judgement.AS_WANTED}
    packets = [one.result.packet for one in found.values() if one.result is not None]
    assert [(str(one.src), str(one.dst), one.iif) for one in packets] == [
        ("fd00:10:244:1:ffff:ffff:ffff:fffa", "ff02::1:ff00:1", "cni0"),
        ("fd00:10:244:1::1", "fd00:10:244:1:ffff:ffff:ffff:fffa", ""),
        ("fd00:10:244:1:ffff:ffff:ffff:fffa", "fd00:10:244:1::1", "cni0"),
    ]


def test_input_without_icmpv6_loses_neighbour_discovery() -> None:
    rules = ["-i lo -j ACCEPT", "-m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT"]
    found = discovered(*rules, "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT")
    wrong = {key for key, one in found.items() if one.judgement is Judgement.WRONG}
    assert wrong == {(Flow.POD_TO_GATEWAY, False), (Flow.GATEWAY_TO_POD, True)}
    lost = found[Flow.POD_TO_GATEWAY, False]
    assert (lost.why, lost.narrow) == ("dropped by INPUT in legacy ip6 filter: policy drop", False)


@pytest.mark.parametrize(
    ("rules", "judgement"),
    [
        (["-p ipv6-icmp -j ACCEPT"], Judgement.AS_WANTED),
        (["-p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT"], Judgement.AS_WANTED),
        (["-m conntrack --ctstate INVALID -j DROP", "-i cni0 -j ACCEPT"], Judgement.AS_WANTED),
        (["-m conntrack --ctstate UNTRACKED -j ACCEPT"], Judgement.AS_WANTED),
        (["-d ff02::/16 -j ACCEPT"], Judgement.AS_WANTED),
        (["-p ipv6-icmp -m icmp6 --icmpv6-type 135 -m hl --hl-eq 255 -j ACCEPT"], Judgement.MAY),
        (["-p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT"], Judgement.WRONG),
        (["-s fe80::/10 -j ACCEPT"], Judgement.WRONG),
    ],
    ids=str,
)
def test_a_solicitation_is_untracked_and_goes_to_a_group(rules: list[str], judgement: Judgement) -> None:
    """The type, the state and the destination of what a pod sends to find its gateway."""
    assert discovered(*rules)[Flow.POD_TO_GATEWAY, False].judgement is judgement


def test_output_without_icmpv6_loses_the_nodes_advertisement() -> None:
    found = discovered(chain="OUTPUT")
    assert {key for key, one in found.items() if one.judgement is Judgement.WRONG} == {(Flow.POD_TO_GATEWAY, True)}


def test_discovery_is_left_out_without_the_gateways_address() -> None:
    """Pods of calico have a gateway of their own."""
    routes = [*(one for one in ROUTES6 if one["dst"] != "fd00:10:244:1::/64"), {"dst": "fd00:10:244:1::7", "dev": "v7"}]
    found = judged6(snapshot(routes6=routes))
    assert not {flow for flow, _ in found} & DISCOVERY
