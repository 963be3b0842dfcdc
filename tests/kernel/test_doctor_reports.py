"""`doctor` on nodes as users of flannel reported them: what is broken, and that the remedy ends it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from .conftest import Node
from .test_doctor_node import daemon, findings, flannel_node, only, run_remedy  # noqa: F401  fixtures

LLADDR = "02:00:00:00:00:02"


@dataclass(frozen=True)
class Report:
    """Commands that break a healthy node, the id of the finding, and words of its text.

    `remedy` stands for a remedy that is not one command. `after` are the commands that follow it.
    """

    public: str
    breaks: tuple[str, ...]
    id: str
    words: tuple[str, ...]
    remedy: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    severity: str = "problem"


ROUTE = "route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
REPORTS = {
    "flannel.1 is down": Report(
        "flannel-io/flannel 878",
        ("link set flannel.1 down",),
        "pod-interface-down",
        ("flannel.1",),
        ("link set flannel.1 up", ROUTE),
    ),
    "cni0 is down": Report(
        "flannel-io/flannel 1474",
        ("link set cni0 down",),
        "pod-interface-down",
        ("cni0",),
        ("link set cni0 up", "address add fd00:10:244:1::1/64 dev cni0 nodad"),
    ),
    "cilium has the port": Report(
        "cilium/cilium 8990, tkestack/tke 1279",
        (
            "link set flannel.1 down",
            "link set flannel-v6.1 down",
            "link add cilium_vxlan type vxlan external dstport 8472",
            "link set cilium_vxlan up",
        ),
        "tunnel-port-taken",
        ("flannel.1", "cilium_vxlan", "8472"),
        ("link delete cilium_vxlan", "link set flannel.1 up", "link set flannel-v6.1 up", ROUTE),
        (
            "address replace fd00:10:244:1::/128 dev flannel-v6.1 nodad",
            "route replace fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 onlink",
        ),
    ),
    "another program took the address": Report(
        "flannel-io/flannel 959, coreos/fedora-coreos-tracker 574",
        ("address flush dev flannel.1",),
        "flannel-address-missing",
        ("flannel.1", "10.244.1.0/32"),
    ),
    "the address of the node has changed": Report(
        "flannel-io/flannel 723",
        ("address add 192.0.2.7/24 dev eth0", "address delete 192.0.2.1/24 dev eth0"),
        "tunnel-address-gone",
        ("flannel.1", "192.0.2.1"),
        ("address add 192.0.2.1/24 dev eth0",),
    ),
    "greater than the uplink": Report(
        "confidential-containers/cloud-api-adaptor 67, flannel-io/flannel 841",
        ("link set eth0 mtu 1400",),
        "tunnel-mtu-too-large",
        ("flannel.1", "1350"),
        severity="notice",
    ),
    "a network restart removed the routes": Report(
        "flannel-io/flannel 1070, 1759",
        (f"neighbour add 10.244.2.0 lladdr {LLADDR} dev flannel.1 nud permanent", "route delete 10.244.2.0/24"),
        "pod-route-missing",
        ("10.244.2.0/24", "flannel.1"),
    ),
    "all nodes have one address": Report(
        "flannel-io/flannel 1379, kubernetes/website 6870",
        ("!bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.1",),
        "tunnel-to-itself",
        ("flannel.1", "192.0.2.1"),
        ("!bridge fdb delete 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.1",),
    ),
    "docker0 has the address, too": Report(
        "flannel-io/flannel 1013",
        ("link add docker0 type bridge", "address add 10.244.1.1/24 dev docker0", "link set docker0 up"),
        "gateway-address-twice",
        ("cni0", "docker0"),
        ("link delete docker0",),
    ),
    "dhcpcd manages flannel.1": Report(
        "k3s-io/k3s 2599",
        ("route prepend default dev flannel.1",),
        "default-route-on-pod-interface",
        ("flannel.1",),
    ),
    "router advertisements are ignored": Report(
        "k3s-io/k3s 5019, siderolabs/talos 3841",
        (
            "-6 route delete default",
            "-6 route add default via 2001:db8::100 dev eth0 proto ra expires 600",
        ),
        "ipv6-default-route-expires",
        ("net.ipv6.conf.eth0.accept_ra",),
    ),
    "a stale route to this node's own subnet": Report(
        "flannel-io/flannel 2554",
        ("route prepend 10.244.1.0/24 via 10.244.9.0 dev flannel.1 onlink",),
        "pod-route-elsewhere",
        ("cni0", "flannel.1"),
        ("route delete 10.244.1.0/24 via 10.244.9.0 dev flannel.1",),
    ),
}


def change(node: Node, commands: tuple[str, ...]) -> None:
    for command in commands:
        if command.startswith("!"):
            node.tool(*command[1:].split())
        else:
            node.tool("ip", *command.split())


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("name", REPORTS)
def test_it_is_found_and_the_remedy_works(flannel_node: Node, name: str) -> None:  # noqa: F811
    report = REPORTS[name]
    assert findings(flannel_node) == []
    change(flannel_node, report.breaks)
    found = findings(flannel_node)
    assert {one["id"] for one in found} == {report.id}
    text = " ".join(found[0].values())
    assert found[0]["severity"] == report.severity
    assert [word for word in report.words if word not in text] == []
    if report.remedy:
        change(flannel_node, report.remedy)
    else:
        for one in found:
            run_remedy(flannel_node, one)
    change(flannel_node, report.after)
    assert findings(flannel_node) == []


DROPS = {
    "nft": ("!nft add table inet fw", "!nft add chain inet fw in { type filter hook input priority 0; policy drop; }"),
    "iptables-nft": ("!iptables-nft -P INPUT DROP",),
    "iptables-legacy": ("!iptables-legacy -A INPUT -i eth0 -j DROP",),
}


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("tool", DROPS)
def test_a_firewall_drops_vxlan(flannel_node: Node, tool: str) -> None:  # noqa: F811
    """flannel-io/flannel 710, 1704."""
    change(flannel_node, DROPS[tool])
    assert "tunnel-dropped" not in [one["id"] for one in findings(flannel_node)], "there is no other node"
    change(flannel_node, (f"!bridge fdb add {LLADDR} dev flannel.1 dst 192.0.2.9",))
    (found,) = (one for one in findings(flannel_node) if one["id"] == "tunnel-dropped")
    assert "port 8472" in found["seen"] and "192.0.2.9" in found["seen"]
    run_remedy(flannel_node, found)
    assert "tunnel-dropped" not in [one["id"] for one in findings(flannel_node)]


@pytest.mark.usefixtures("daemon")
def test_a_firewall_that_lets_other_nodes_in(flannel_node: Node) -> None:  # noqa: F811
    change(
        flannel_node,
        (
            f"!bridge fdb add {LLADDR} dev flannel.1 dst 192.0.2.9",
            "!iptables-nft -A INPUT -s 192.0.2.9/32 -j ACCEPT",
            "!iptables-nft -A INPUT -p udp -j DROP",
        ),
    )
    assert findings(flannel_node) == []
