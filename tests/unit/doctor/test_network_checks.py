"""doctor finds interfaces, addresses, routes and sysctls that harm pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from flanneld_masq.controller.status import State, Status
from flanneld_masq.doctor.examine import examine
from flanneld_masq.doctor.facts import DaemonFacts, Facts, FamilyFacts, KubeProxy, PacketFacts
from flanneld_masq.doctor.findings import Finding, Kind, Severity
from flanneld_masq.doctor.host_network import HostNetwork, Link, Peer, Route, Vxlan, Way
from flanneld_masq.model import Family, FamilyLease, Holder, Lease, Settings
from flanneld_masq.packet_path.evaluate import Outcome, Result
from flanneld_masq.packet_path.flow_cases import Flow
from flanneld_masq.packet_path.flows import FlowResult, Judgement, Source
from flanneld_masq.packet_path.packet import TCP, Endpoint, Packet

IPV4 = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
IPV6 = FamilyLease((ip_network("fd00:10:244::/48"),), ip_network("fd00:10:244:1::/64"), ip_address("fd00:10:244:1::1"))
LEASE = Lease("/run/flannel/subnet.env", IPV4, IPV6, mtu=1450)
CNI0 = Link("cni0", 1450, "bridge", addresses=(ip_interface("10.244.1.1/24"), ip_interface("fd00:10:244:1::1/64")))
VETH = Link("veth0", 1450, "veth", "cni0")
FLANNEL = Link(
    "flannel.1",
    1450,
    "vxlan",
    addresses=(ip_interface("10.244.1.0/32"),),
    vxlan=Vxlan(ip_address("192.0.2.1"), "eth0", 8472),
)
FLANNEL6 = Link(
    "flannel-v6.1",
    1430,
    "vxlan",
    addresses=(ip_interface("fd00:10:244:1::/128"),),
    vxlan=Vxlan(ip_address("2001:db8::1"), "eth0", 8472),
)
ETH0 = Link("eth0", addresses=(ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")))
DOCKER0 = Link("docker0", kind="bridge", addresses=(ip_interface("172.17.0.1/16"),))
LO = Link("lo", 65536, addresses=(ip_interface("127.0.0.1/8"),))
LINKS = (LO, ETH0, DOCKER0, CNI0, VETH, FLANNEL, FLANNEL6)
ROUTES = {
    Family.IPV4: (
        Route(ip_network("0.0.0.0/0"), "eth0", gateway=True),
        Route(ip_network("10.244.1.0/24"), "cni0"),
        Route(ip_network("10.244.2.0/24"), "flannel.1", gateway=True),
        Route(ip_network("10.244.3.0/24"), "eth0", gateway=True),  # DirectRouting
        Route(ip_network("192.0.2.0/24"), "eth0"),
    ),
    Family.IPV6: (
        Route(ip_network("fd00:10:244:1::/64"), "cni0"),
        Route(ip_network("fd00:10:244:2::/64"), "flannel-v6.1", gateway=True),
        Route(ip_network("::/0"), "eth0", gateway=True),
    ),
}
POD = "10.244.1.5"
PODS = {Family.IPV4: POD, Family.IPV6: "fd00:10:244:1::5"}
WAYS = (
    Way(ip_network("10.244.1.0/24"), ip_address("10.244.1.254"), "cni0", "cni0"),
    Way(ip_network("10.244.2.0/24"), ip_address("10.244.2.254"), "flannel.1", "flannel.1"),
)
SWITCHES = {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/bridge/bridge-nf-call-iptables": 1,
    "net/bridge/bridge-nf-call-ip6tables": 1,
    "net/ipv4/conf/all/rp_filter": 1,
    **{
        f"net/ipv4/conf/{device}/{name}": 1
        for device in ("cni0", "flannel.1", "eth0")
        for name in ("forwarding", "rp_filter")
    },
    **{f"net/ipv6/conf/{device}/disable_ipv6": 0 for device in ("cni0", "flannel-v6.1", "eth0")},
}
NODE = Facts(
    Settings(),
    (LEASE,),
    daemon=DaemonFacts(Holder(True, 7, "it is held"), Status(State.SYNCED)),
    families=tuple(FamilyFacts(family, kube_proxy=KubeProxy(("nf_tables",))) for family in Family),
    network=HostNetwork(LINKS, ROUTES, WAYS),
    sysctls=SWITCHES,
)


NEIGHBOURS = (
    Peer("flannel.1", ip_address("10.244.2.0")),
    Peer("flannel.1", ip_address("10.9.9.9")),
    Peer("eth0", ip_address("10.244.7.0")),
)
ADVERTISED = {
    **ROUTES,
    Family.IPV6: (*ROUTES[Family.IPV6][:2], Route(ip_network("::/0"), "eth0", gateway=True, advertised=True)),
}


def with_links(*links: Link, **changes: Any) -> Facts:
    """The node with these links in the place of those with the same names, or beside the others."""
    names = {link.name for link in links}
    kept = tuple(link for link in LINKS if link.name not in names)
    return replace(NODE, network=HostNetwork((*kept, *links), ROUTES, WAYS), **changes)


def with_service(pod: str, *links: Link, device: str = "cni0") -> Facts:
    """The node with these links, where kube-proxy leads packets to a service to this pod; to none without one."""
    facts = with_links(*links)
    if not pod:
        return facts
    first, end = ip_address(pod) + 1, ip_address(pod)
    packet = Packet(first, end, TCP, 40000, 80, "cni0")
    outcome = Outcome(True, Endpoint(first, 40000), Endpoint(end, 8080), device, 0, 0, ())
    family = Family.IPV4 if end.version == 4 else Family.IPV6
    result = Result(packet, (outcome,))
    flow = FlowResult(family, Flow.POD_TO_SERVICE, False, Source.ANY, Judgement.AS_WANTED, result=result)
    return replace(facts, packets=PacketFacts((flow,)))


def with_routes(*routes: Route, links: tuple[Link, ...] = ()) -> Facts:
    every = {**ROUTES, Family.IPV4: (*ROUTES[Family.IPV4], *routes)}
    return replace(NODE, network=HostNetwork((*LINKS, *links), every, WAYS))


def switched(values: Mapping[str, int]) -> Facts:
    return replace(NODE, sysctls={**SWITCHES, **values})


def only(facts: Facts) -> Finding:
    (found,) = examine(facts)
    return found


def test_a_healthy_node_has_no_finding() -> None:
    assert list(examine(NODE)) == []


HEALTHY = {
    "host-gw": with_routes(Route(ip_network("10.244.9.0/24"), "eth0", gateway=True)),
    "udp": with_routes(Route(ip_network("10.244.0.0/16"), "flannel0"), links=(Link("flannel0", kind="tun"),)),
    "router knows the pods of some nodes": with_routes(Route(ip_network("10.244.0.0/17"), "eth0", gateway=True)),
    "router knows the pods": with_routes(Route(ip_network("10.244.0.0/16"), "eth0", gateway=True)),
    "pods of ptp and calico": with_routes(Route(ip_network("10.244.1.7/32"), "cali0"), links=(Link("cali0"),)),
    "wide LAN": with_links(replace(ETH0, addresses=(*ETH0.addresses, ip_interface("10.1.0.1/8")))),
    "blackhole": with_routes(Route(ip_network("10.244.0.0/16"))),
    "tunnel address": with_links(Link("tunl0", kind="ipip", addresses=(ip_interface("10.244.1.9/32"),))),
    "empty bridge": with_links(replace(CNI0, mtu=1500)),
    "docker of its own": with_links(replace(DOCKER0, addresses=(ip_interface("10.85.0.1/16"),))),
    "leftover bridge": with_links(
        replace(CNI0, addresses=(ip_interface("10.85.0.1/16"),)), replace(CNI0, name="flannel-br", mtu=1500)
    ),
    "bridge calls rules itself": with_links(
        replace(CNI0, calls=frozenset(Family)), sysctls={**SWITCHES, "net/bridge/bridge-nf-call-iptables": 0}
    ),
    "no services": replace(
        NODE, families=(FamilyFacts(Family.IPV4),), sysctls={**SWITCHES, "net/bridge/bridge-nf-call-iptables": 0}
    ),
    "other interface closed": switched({"net/ipv4/conf/docker0/forwarding": 0}),
    "IPv6 off on the uplink": switched({"net/ipv6/conf/eth0/disable_ipv6": 1}),
    "left over from another backend": replace(
        NODE,
        leases=(replace(LEASE, mtu=1500),),
        network=HostNetwork(
            (*LINKS[:-2], replace(FLANNEL, up=False, addresses=()), replace(FLANNEL6, addresses=())),
            {
                Family.IPV4: (*ROUTES[Family.IPV4][:2], Route(ip_network("10.244.3.0/24"), "eth0", gateway=True)),
                Family.IPV6: (Route(ip_network("fd00:10:244:2::/64"), "eth0", gateway=True),),
            },
        ),
    ),
    "ptp gives each pod the gateway": with_links(
        *(Link(f"veth{one}", 1450, "veth", addresses=(ip_interface("10.244.1.1/32"),)) for one in (8, 9))
    ),
    "two VXLANs share a port": with_links(Link("vxlan7", 1450, "vxlan", vxlan=Vxlan(port=8472))),
    "jumbo frames": with_links(replace(ETH0, mtu=9000)),
    "a switched off VXLAN of others": with_links(Link("vxlan7", 1450, "vxlan", up=False, vxlan=Vxlan(port=4789))),
    "routes for all neighbours": replace(
        NODE,
        network=HostNetwork(
            LINKS, ROUTES, WAYS, neighbours=NEIGHBOURS, ends=(Peer("flannel.1", ip_address("192.0.2.2")),)
        ),
    ),
    "a program that reads advertisements": replace(
        NODE,
        network=HostNetwork(LINKS, ADVERTISED, WAYS),
        sysctls={**SWITCHES, "net/ipv6/conf/eth0/accept_ra": 0, "net/ipv6/conf/eth0/forwarding": 1},
    ),
    "advertisements are always accepted": replace(
        NODE,
        network=HostNetwork(LINKS, ADVERTISED, WAYS),
        sysctls={**SWITCHES, "net/ipv6/conf/eth0/accept_ra": 2, "net/ipv6/conf/eth0/forwarding": 1},
    ),
    "pods without an interface": replace(NODE, network=HostNetwork((LO, ETH0), {}, ())),
}


@pytest.mark.parametrize("facts", HEALTHY.values(), ids=HEALTHY)
def test_what_is_usual_is_no_finding(facts: Facts) -> None:
    assert list(examine(facts)) == []


FORCED = {
    "net/ipv6/conf/all/forwarding": 0,
    **{f"net/ipv6/conf/{device}/force_forwarding": 1 for device in ("cni0", "eth0", "flannel-v6.1")},
}


class TestForwarding:
    @pytest.mark.parametrize(
        ("device", "key"),
        [
            ("cni0", "net.ipv4.conf.cni0.forwarding"),
            ("flannel.1", "net.ipv4.conf.flannel/1.forwarding"),
            ("eth0", "net.ipv4.conf.eth0.forwarding"),
        ],
    )
    def test_one_interface(self, device: str, key: str) -> None:
        found = only(switched({f"net/ipv4/conf/{device}/forwarding": 0}))
        assert (found.kind, found.severity) == (Kind.INTERFACE_FORWARDING_OFF, Severity.PROBLEM)
        assert (found.seen, found.remedy) == (f"{key} = 0", f"sysctl -w {key}=1")
        assert f"{key} = 1" in found.persist and "IPv4Forwarding=yes" in found.persist

    def test_whole_node_is_one_finding(self) -> None:
        off = {key: 0 for key in SWITCHES if "forward" in key}
        assert [(found.kind, found.family) for found in examine(switched(off))] == [
            (Kind.FORWARDING_OFF, "ipv4"),
            (Kind.FORWARDING_OFF, "ipv6"),
        ]

    def test_forced_on_each_interface_of_ipv6(self) -> None:
        assert list(examine(switched(FORCED))) == []

    def test_forced_on_some_interfaces_of_ipv6(self) -> None:
        found = only(switched({**FORCED, "net/ipv6/conf/flannel-v6.1/force_forwarding": 0}))
        key = "net.ipv6.conf.flannel-v6/1.force_forwarding"
        assert (found.kind, found.seen) == (
            Kind.INTERFACE_FORWARDING_OFF,
            f"net.ipv6.conf.all.forwarding = 0, {key} = 0",
        )
        assert found.remedy == f"sysctl -w {key}=1"
        assert "IPv4Forwarding" not in found.persist

    def test_forced_on_no_interface_of_ipv6(self) -> None:
        off = dict.fromkeys(FORCED, 0)
        assert only(switched(off)).kind is Kind.FORWARDING_OFF

    def test_family_without_a_lease(self) -> None:
        facts = switched({"net/ipv6/conf/all/forwarding": 0, "net/ipv6/conf/cni0/disable_ipv6": 1})
        assert list(examine(replace(facts, leases=(replace(LEASE, ipv6=None),)))) == []

    @pytest.mark.parametrize("device", ["cni0", "flannel-v6.1"])
    def test_ipv6_disabled(self, device: str) -> None:
        found = only(switched({f"net/ipv6/conf/{device}/disable_ipv6": 1}))
        assert (found.kind, found.family) == (Kind.IPV6_DISABLED, "ipv6")
        assert device in found.what


class TestReversePath:
    ELSEWHERE = replace(WAYS[1], found="tailscale0")

    def kinds(self, way: Way, **switches: int) -> list[Kind]:
        values = {f"net/ipv4/conf/{name.replace('_', '.')}/rp_filter": value for name, value in switches.items()}
        facts = replace(NODE, network=HostNetwork(LINKS, ROUTES, (way,)), sysctls={**SWITCHES, **values})
        return [found.kind for found in examine(facts)]

    def test_strict_filter_and_another_way_back(self) -> None:
        both = [Kind.POD_ROUTE_ELSEWHERE, Kind.REVERSE_PATH_STRICT]
        assert self.kinds(self.ELSEWHERE) == both
        assert self.kinds(self.ELSEWHERE, flannel_1=0) == both, "the greater value counts"
        assert self.kinds(self.ELSEWHERE, all=0) == both

    def test_loose_or_no_filter(self) -> None:
        assert self.kinds(self.ELSEWHERE, flannel_1=2) == [Kind.POD_ROUTE_ELSEWHERE]
        assert self.kinds(self.ELSEWHERE, flannel_1=0, all=0) == [Kind.POD_ROUTE_ELSEWHERE]

    def test_no_other_way(self) -> None:
        assert self.kinds(WAYS[1]) == []
        assert self.kinds(replace(WAYS[1], found="")) == [], "an address of the node, or no route"


class TestInsidePodNetwork:
    @pytest.mark.parametrize(
        "link",
        [
            replace(ETH0, addresses=(*ETH0.addresses, ip_interface("10.244.200.1/24"))),
            replace(ETH0, addresses=(*ETH0.addresses, ip_interface("10.244.200.1/32"))),
            Link("tun0", kind="tun", addresses=(ip_interface("10.244.8.5/24"),)),
            Link("wg1", kind="wireguard", addresses=(ip_interface("fd00:10:244:9::1/64"),)),
            replace(DOCKER0, addresses=(ip_interface("10.244.5.1/24"),)),
        ],
    )
    def test_address(self, link: Link) -> None:
        found = only(with_links(link))
        assert (found.kind, found.severity) == (Kind.POD_NETWORK_ON_NODE, Severity.PROBLEM)
        assert link.name in found.seen and str(link.addresses[-1]) in found.seen
        assert link.name in found.remedy

    @pytest.mark.parametrize(
        ("route", "link"),
        [
            (Route(ip_network("10.244.64.0/18"), "tun0", gateway=True), Link("tun0", kind="tun")),
            (Route(ip_network("10.244.64.0/18"), "wg1"), Link("wg1", kind="wireguard")),
            (Route(ip_network("10.244.9.0/24"), "eth1"), Link("eth1")),
            (Route(ip_network("10.244.2.0/25"), "eth1", gateway=True), Link("eth1")),
            (Route(ip_network("10.244.1.0/25"), "tun0"), Link("tun0", kind="tun")),
        ],
    )
    def test_route(self, route: Route, link: Link) -> None:
        found = only(with_routes(route, links=(link,)))
        assert found.kind is Kind.POD_NETWORK_ON_NODE
        assert str(route) in found.seen


class TestBridge:
    @pytest.mark.parametrize(
        ("name", "address"), [("cni0", "10.240.3.1/24"), ("cbr0", "10.244.7.1/24"), ("docker0", "10.244.7.1/24")]
    )
    def test_subnet_file_of_another_node(self, name: str, address: str) -> None:
        bridge = replace(CNI0, name=name, addresses=(ip_interface(address),))
        links = (LO, ETH0, FLANNEL, bridge)
        found = only(replace(NODE, network=HostNetwork(links, {}, ())))
        assert (found.kind, found.family) == (Kind.SUBNET_FILE_OF_ANOTHER_NODE, "ipv4")
        assert f"{name} has {address}" in found.seen and "10.244.1.1/24 in 10.244.0.0/16" in found.seen
        assert f"ip link delete {name}" in found.remedy

    def test_interface_of_another_subnet_without_a_bridge(self) -> None:
        flannel = replace(FLANNEL, addresses=(ip_interface("10.244.7.0/32"),))
        found = only(replace(NODE, network=HostNetwork((LO, ETH0, flannel), {}, ())))
        assert (found.kind, found.family) == (Kind.SUBNET_FILE_OF_ANOTHER_NODE, "ipv4")
        assert "flannel.1 has 10.244.7.0/32" in found.seen

    def test_prefix_length(self) -> None:
        wide = replace(CNI0, addresses=(ip_interface("10.244.1.1/16"), CNI0.addresses[1]))
        found = only(with_links(wide))
        assert (found.kind, found.family) == (Kind.BRIDGE_ADDRESS_DIFFERS, "ipv4")

    def test_mtu_of_ports(self) -> None:
        ports = [replace(VETH, name=f"veth{number}", mtu=1500) for number in range(5)]
        found = only(with_links(*ports))
        assert (found.kind, found.severity) == (Kind.BRIDGE_MTU_TOO_LARGE, Severity.NOTICE)
        assert "veth2 (1500) and 2 more" in found.seen and "FLANNEL_MTU=1450" in found.seen

    def test_mtu_is_that_of_the_lease_of_the_bridge(self) -> None:
        network = FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.1.0/24"), ip_address("10.42.1.1"))
        other = Lease("/run/other.env", network, mtu=1400)
        assert list(examine(replace(NODE, leases=(LEASE, other)))) == []

    @pytest.mark.parametrize("family", list(Family))
    def test_rules_are_bypassed(self, family: Family) -> None:
        key = f"net/bridge/bridge-nf-call-{family.data.tools}"
        found = only(switched({key: 0}))
        assert (found.kind, found.family) == (Kind.BRIDGE_NETFILTER_OFF, str(family))
        assert found.seen == f"net.bridge.bridge-nf-call-{family.data.tools} = 0"
        assert "modules-load.d" in found.persist

    @pytest.mark.parametrize("family", list(Family))
    def test_ports_without_hairpin_mode(self, family: Family) -> None:
        facts = with_service(PODS[family], replace(VETH, hairpin=False), replace(VETH, name="veth1", hairpin=False))
        found = only(facts)
        assert (found.kind, found.family, found.severity) == (Kind.BRIDGE_HAIRPIN_OFF, str(family), Severity.PROBLEM)
        assert found.seen.startswith("hairpin is off on the ports of cni0: veth0, veth1; a service leads to ")
        assert found.remedy == "for port in /sys/class/net/cni0/brif/*; do echo 1 >$port/hairpin_mode; done"
        assert '"hairpinMode": true' in found.persist

    @pytest.mark.parametrize(
        ("pod", "device", "links", "call"),
        [
            (POD, "cni0", [replace(VETH, hairpin=True)], 1),
            (POD, "cni0", [VETH], 1),
            (POD, "cni0", [replace(VETH, hairpin=False), replace(VETH, name="veth1", hairpin=True)], 1),
            (POD, "cni0", [replace(VETH, hairpin=False), replace(CNI0, promiscuous=True)], 1),
            (POD, "cni0", [replace(VETH, hairpin=False, master="docker0")], 1),
            (POD, "flannel.1", [replace(VETH, hairpin=False)], 1),
            ("10.244.2.5", "cni0", [replace(VETH, hairpin=False)], 1),
            ("", "", [replace(VETH, hairpin=False)], 1),
            (POD, "cni0", [replace(VETH, hairpin=False)], 0),
        ],
        ids=[
            "on",
            "not known",
            "on one port",
            "promiscuous",
            "another bridge",
            "other device",
            "remote",
            "none",
            "uncalled",
        ],
    )
    def test_hairpin_mode_is_not_missed(self, pod: str, device: str, links: list[Link], call: int) -> None:
        facts = with_service(pod, *links, device=device)
        switches = {**SWITCHES, "net/bridge/bridge-nf-call-iptables": call}
        kinds = {found.kind for found in examine(replace(facts, sysctls=switches))}
        assert kinds == (set() if call else {Kind.BRIDGE_NETFILTER_OFF})

    def test_module_is_missing(self) -> None:
        switches = {key: value for key, value in SWITCHES.items() if "bridge" not in key}
        network = HostNetwork(LINKS, ROUTES, WAYS, br_netfilter=False)
        findings = list(examine(replace(NODE, network=network, sysctls=switches)))
        assert [found.kind for found in findings] == [Kind.BRIDGE_NETFILTER_MISSING] * 2
        assert findings[0].remedy == "modprobe br_netfilter"
        assert not list(examine(replace(NODE, sysctls=switches))), "older kernels have the switch in one namespace"
