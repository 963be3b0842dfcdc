"""`doctor` on a node as flannel and the bridge plugin set it up: quiet while it is whole, and right about what breaks.

Where a remedy is one command, the test runs it and sees that the finding goes.
"""

from __future__ import annotations

import errno
import json
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.model import Family
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import batch

from ..common import eventually, unable
from .conftest import SUBNET_ENV, Daemon, Node
from .test_kube_proxy import iptables, nftables

LINKS = (
    "link set lo up",
    "link add cni0 mtu 1450 type bridge",
    "link add veth0 mtu 1450 type veth peer name pod0 mtu 1450",
    "link set veth0 master cni0 up",
    "link set pod0 up",
    "address add 10.244.1.1/24 dev cni0",
    "address add fd00:10:244:1::1/64 dev cni0 nodad",
    "link set cni0 up",
    "link add eth0 type veth peer name lan0",
    "link set eth0 up",
    "link set lan0 up",
    "address add 192.0.2.1/24 dev eth0",
    "address add 2001:db8::1/64 dev eth0 nodad",
    "link add flannel.1 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
    "address add 10.244.1.0/32 dev flannel.1",
    "link add flannel-v6.1 mtu 1430 type vxlan id 2 dev eth0 local 2001:db8::1 dstport 8472 nolearning",
    "address add fd00:10:244:1::/128 dev flannel-v6.1 nodad",
    "link set flannel.1 up",
    "link set flannel-v6.1 up",
    "route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
    "route add 10.244.3.0/24 via 192.0.2.9",
    "route add fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink",
    "route add default via 192.0.2.100",
    "route add default via 2001:db8::100",
)
FLANNELS = """\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
COMMIT
"""
SERVICES = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
SERVICE_OF_POD = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A POSTROUTING -s 10.244.1.5/32 -d 10.244.1.5/32 -j MASQUERADE
COMMIT
"""
POD = ("link set lo up", "link set pod0 up", "address add 10.244.1.5/24 dev pod0", "route add default via 10.244.1.1")


@pytest.fixture
def flannel_node(node: Node) -> Iterator[Node]:
    node.configure("", backend="nft")
    with node.entered():
        batch(node.run, LINKS)
    node.netns.sysctl(
        {
            "ipv4/ip_forward": 1,
            "ipv6/conf/all/forwarding": 1,
            "bridge/bridge-nf-call-iptables": 1,
            "bridge/bridge-nf-call-ip6tables": 1,
        }
    )
    yield node


@pytest.fixture
def daemon(flannel_node: Node) -> Iterator[Daemon]:
    with flannel_node.running() as running:
        running.reached("synced")
        yield running


def findings(node: Node, *argv: str) -> list[dict[str, Any]]:
    done = node.masq(*argv, "doctor", "--json")
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    severities = {one["severity"] for one in found}
    assert done.returncode == (1 if "problem" in severities else 2 if "unknown" in severities else 0)
    return found


def only(node: Node, *argv: str) -> dict[str, Any]:
    (found,) = findings(node, *argv)
    return found


def ids(node: Node, *argv: str) -> list[str]:
    return [found["id"] for found in findings(node, *argv)]


def run_remedy(node: Node, found: dict[str, Any]) -> None:
    node.tool(*shlex.split(found["remedy"]))


def finds_its_gateway(pod: Netns) -> bool:
    """Return True if the node answers a pod that has asked for its address again."""
    with pod.entered(), closing(socket.socket()) as connecting:
        subprocess.run(("ip", "neigh", "flush", "dev", "pod0"), check=True)
        connecting.settimeout(0.5)
        return connecting.connect_ex(("10.244.1.1", 9)) == errno.ECONNREFUSED


def reaches_itself(pod: Netns) -> bool:
    """Connect the pod to its own service."""
    with pod.entered(), socket.create_server(("10.244.1.5", 8080)), socket.socket() as client:
        client.bind(("10.244.1.5", 0))
        client.settimeout(0.5)
        return client.connect_ex(("10.96.0.10", 80)) == 0


def has_bridge_netfilter(node: Node) -> None:
    with node.entered():
        if not Path("/proc/sys/net/bridge").exists():
            unable("br_netfilter is not loaded")


@pytest.mark.usefixtures("daemon")
class TestFlannelNode:
    def test_nothing_is_found(self, flannel_node: Node) -> None:
        before = flannel_node.ruleset()
        assert findings(flannel_node) == []
        assert flannel_node.masq("doctor").stdout == "nothing found that breaks masquerading\n"
        assert flannel_node.ruleset() == before

    def test_nothing_is_found_beside_kube_proxy(self, flannel_node: Node, family: Family) -> None:
        flannel_node.tool(f"{family.data.tools}-nft-restore", "--noflush", stdin=SERVICES)
        flannel_node.tool("nft", "-f", "-", stdin=nftables(family, 0x4000))
        assert findings(flannel_node) == []

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("ipv4/ip_forward", "forwarding-off"),
            ("ipv6/conf/all/forwarding", "forwarding-off"),
            ("ipv4/conf/cni0/forwarding", "interface-forwarding-off"),
            ("ipv4/conf/flannel.1/forwarding", "interface-forwarding-off"),
            ("ipv4/conf/eth0/forwarding", "interface-forwarding-off"),
        ],
    )
    def test_forwarding(self, flannel_node: Node, key: str, kind: str) -> None:
        flannel_node.netns.sysctl({key: 0})
        found = only(flannel_node)
        assert (found["id"], found["family"]) == (kind, key[:4])
        run_remedy(flannel_node, found)
        assert findings(flannel_node) == []

    @pytest.mark.parametrize("device", ["cni0", "flannel-v6.1"])
    def test_ipv6_disabled(self, flannel_node: Node, device: str) -> None:
        flannel_node.netns.sysctl({f"ipv6/conf/{device}/disable_ipv6": 1})
        (found,) = (one for one in findings(flannel_node) if one["id"] == "ipv6-disabled")
        run_remedy(flannel_node, found)
        if device == "cni0":  # the pods of which lost their route, until the plugin adds the address again
            assert only(flannel_node)["id"] == "flow-misrouted"
            flannel_node.tool("ip", *["address", "add", "fd00:10:244:1::1/64", "dev", "cni0", "nodad"])
        else:
            run_remedy(flannel_node, only(flannel_node))
        assert findings(flannel_node) == []

    @pytest.mark.parametrize("proxy", ["iptables-nft", "iptables-legacy", "nftables"])
    def test_bridge_bypasses_services(self, flannel_node: Node, family: Family, proxy: str) -> None:
        has_bridge_netfilter(flannel_node)
        flannel_node.netns.sysctl({f"bridge/bridge-nf-call-{family.data.tools}": 0})
        assert findings(flannel_node) == [], "there is no service"
        if proxy == "nftables":
            flannel_node.tool("nft", "-f", "-", stdin=nftables(family, 0x4000))
        else:
            flannel_node.tool(f"{family.data.tools}{proxy[8:]}-restore", "--noflush", stdin=SERVICES)
        found = only(flannel_node)
        assert (found["id"], found["family"]) == ("bridge-netfilter-off", str(family))
        run_remedy(flannel_node, found)
        assert findings(flannel_node) == []

    def test_a_pod_reaches_itself_by_hairpin_mode(self, flannel_node: Node) -> None:
        has_bridge_netfilter(flannel_node)
        flannel_node.tool("iptables-nft-restore", "--noflush", stdin=SERVICE_OF_POD)
        with closing(Netns.unnamed("pod")) as pod:
            flannel_node.tool("ip", *["link", "set", "pod0", "netns", pod.path])
            with pod.entered():
                batch(flannel_node.run, POD)
            assert not reaches_itself(pod)
            found = only(flannel_node)
            assert (found["id"], found["family"]) == ("bridge-hairpin-off", "ipv4")
            flannel_node.tool("ip", *["link", "set", "veth0", "type", "bridge_slave", "hairpin", "on"])
            assert eventually(lambda: reaches_itself(pod))
            assert findings(flannel_node) == []

    @pytest.mark.parametrize(
        ("kind", "match"), [("bridge", "ether type { ip, arp }"), ("arp", "arp operation request")]
    )
    def test_tables_that_are_not_followed_may_lose_packets(self, flannel_node: Node, kind: str, match: str) -> None:
        with closing(Netns.unnamed("pod")) as pod:
            flannel_node.tool("ip", *["link", "set", "pod0", "netns", pod.path])
            with pod.entered():
                batch(flannel_node.run, POD)
            rules = "table {} t {{ chain c {{ type filter hook input priority 0; {} {}; }}; }}"
            flannel_node.tool("nft", "-f", "-", stdin=rules.format(kind, match, "accept"))
            assert eventually(lambda: finds_its_gateway(pod))
            assert findings(flannel_node) == [], "the table drops nothing"
            flannel_node.tool("nft", "-f", "-", stdin=f"flush table {kind} t\n" + rules.format(kind, match, "drop"))
            flannel_node.tool("ip", *["neigh", "flush", "dev", "cni0"])
            assert not finds_its_gateway(pod)
            found = only(flannel_node)
            assert (found["id"], found["severity"], found["seen"]) == (
                "rules-not-followed",
                "notice",
                f"table {kind} t",
            )

    def test_policy_route_takes_packets_to_pods(self, flannel_node: Node) -> None:
        with flannel_node.entered():
            batch(
                flannel_node.run,
                [
                    "link add tailscale0 type veth peer name vpn0",
                    "link set tailscale0 up",
                    "link set vpn0 up",
                    "route add 10.244.2.0/24 dev tailscale0 table 52",
                    "rule add to 10.244.2.0/24 lookup 52 priority 5270",
                ],
            )
        flannel_node.netns.sysctl({"ipv4/conf/all/rp_filter": 0, "ipv4/conf/flannel.1/rp_filter": 1})
        elsewhere, strict = findings(flannel_node)
        assert (elsewhere["id"], strict["id"]) == ("pod-route-elsewhere", "reverse-path-strict")
        assert "tailscale0" in elsewhere["seen"]
        run_remedy(flannel_node, strict)
        assert ids(flannel_node) == ["pod-route-elsewhere"]
        with flannel_node.entered():
            batch(flannel_node.run, ["rule delete priority 5270"])
        assert findings(flannel_node) == []

    def test_lan_inside_the_pod_network(self, flannel_node: Node) -> None:
        with flannel_node.entered():
            batch(flannel_node.run, ["address add 10.244.200.1/24 dev eth0"])
        found = only(flannel_node)
        assert found["id"] == "pod-network-on-node"
        assert "eth0 has 10.244.200.1/24, route 10.244.200.0/24 dev eth0" in found["seen"]

    def test_prefix_length_of_the_bridge(self, flannel_node: Node) -> None:
        with flannel_node.entered():
            batch(flannel_node.run, ["address add 10.244.1.1/20 dev cni0", "address delete 10.244.1.1/24 dev cni0"])
        assert only(flannel_node)["id"] == "bridge-address-differs"

    def test_pods_with_a_larger_mtu(self, flannel_node: Node) -> None:
        with flannel_node.entered():
            batch(flannel_node.run, ["link set veth0 mtu 1500"])
        found = only(flannel_node)
        assert (found["id"], found["severity"]) == ("bridge-mtu-too-large", "notice")
        flannel_node.tool(*shlex.split(found["remedy"].split("`")[1]))
        assert findings(flannel_node) == []

    @pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
    def test_kube_proxy_that_keeps_its_mark(self, flannel_node: Node, tool: str) -> None:
        whole = iptables(0x4000)
        flannel_node.tool(f"{tool}-restore", "--noflush", stdin=whole)
        assert findings(flannel_node) == []
        flannel_node.tool(tool, "-w", "-t", "nat", "-D", "KUBE-POSTROUTING", "2")
        found = only(flannel_node)
        assert found["id"] == "kube-proxy-keeps-mark" and "0x4000/0x4000" in found["what"]

    def test_kube_proxy_with_another_mark(self, flannel_node: Node) -> None:
        flannel_node.tool("iptables-nft-restore", "--noflush", stdin=iptables(0x1))
        found = only(flannel_node)
        assert (found["id"], found["severity"]) == ("kube-proxy-mark-unusual", "notice")
        flannel_node.configure('[masquerade]\nkube_proxy_mark = "0x4000/0x4000"\n', backend="nft")
        assert "kube-proxy-mark-differs" in ids(flannel_node)


def test_subnet_file_of_another_node(flannel_node: Node) -> None:
    flannel_node.write_subnet(SUBNET_ENV.replace("10.244.1.1/24", "10.244.9.1/24"))
    (found,) = (one for one in findings(flannel_node) if one["id"] == "subnet-file-of-another-node")
    assert found["family"] == "ipv4"
    assert "cni0 has 10.244.1.1/24" in found["seen"] and "10.244.9.1/24 in 10.244.0.0/16" in found["seen"]


def test_two_files_of_one_network(flannel_node: Node) -> None:
    other = flannel_node.directory / "old.env"
    other.write_text(SUBNET_ENV.replace("10.244.1.1/24", "10.244.9.1/24"))
    files = ("--subnet-file", str(flannel_node.subnet_file), "--subnet-file", str(other))
    assert "subnet-files-overlap" in ids(flannel_node, *files)


def test_rules_of_a_flannel_that_is_gone(flannel_node: Node) -> None:
    assert flannel_node.masq("apply").returncode == 0
    flannel_node.subnet_file.unlink()
    flannel_node.tool("iptables-nft-restore", "--noflush", stdin=FLANNELS)
    assert "flannel-rules" in ids(flannel_node)
    assert flannel_node.masq("cleanup", "--flannel").returncode == 0
    assert sorted(ids(flannel_node)) == ["daemon-not-running", "subnet-unknown"]


def test_rules_of_ours_without_flannel(flannel_node: Node) -> None:
    assert flannel_node.masq("apply").returncode == 0
    flannel_node.subnet_file.unlink()
    assert sorted(set(ids(flannel_node))) == ["daemon-not-running", "rules-without-subnet", "subnet-unknown"]
    assert flannel_node.masq("cleanup").returncode == 0
    assert sorted(set(ids(flannel_node))) == ["daemon-not-running", "subnet-unknown"]


def test_an_ip_that_cannot_be_read(flannel_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = flannel_node.directory / "bin"
    broken.mkdir()
    (broken / "ip").write_text('#!/bin/sh\necho \'[{"ifname": "\\033[31m/"}]\'\n')
    (broken / "ip").chmod(0o755)
    with flannel_node.running() as running:
        running.reached("synced")
        done = flannel_node.masq("doctor", environ={"PATH": f"{broken}:/usr/sbin:/usr/bin:/sbin:/bin"})
    assert done.returncode == 2
    assert done.stdout.startswith("unknown: the interfaces and routes of the node cannot be read [network-unreadable]")
    assert "\033" not in done.stdout
