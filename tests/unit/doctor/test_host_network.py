"""The output of ip(8) as values: files that a real ip printed, and what is refused."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from flanneld_masq.doctor.host_network import (
    Link,
    Peer,
    Route,
    Vxlan,
    parse_ends,
    parse_links,
    parse_neighbours,
    parse_routes,
    parse_way,
    sample,
)
from flanneld_masq.model import Family

PRINTED = Path(__file__).parents[1] / "fuzz" / "corpus"


def printed(name: str) -> str:
    return (PRINTED / name).read_text()


def test_links() -> None:
    links = {link.name: link for link in parse_links(printed("ip-address/node"))}
    bridge = links["cni0"]
    assert (bridge.mtu, bridge.kind, bridge.calls) == (1450, "bridge", frozenset())
    assert bridge.addresses_of(Family.IPV4) == (ip_interface("10.244.1.1/24"),)
    assert bridge.addresses_of(Family.IPV6) == (ip_interface("fd00:10:244:1::1/64"),), "no link-local address"
    assert (links["veth0"].kind, links["veth0"].master) == ("veth", "cni0")
    assert (links["flannel.1"].kind, links["flannel.1"].is_flannel, links["eth0"].is_flannel) == ("vxlan", True, False)


def test_the_address_of_a_tunnel_is_a_single_one() -> None:
    address = {"local": "10.244.1.0", "address": "10.244.2.0", "prefixlen": 24}
    (link,) = parse_links(json.dumps([{}, {"ifname": "tun0", "mtu": 1400, "addr_info": [address]}]))
    assert link == Link("tun0", 1400, addresses=(ip_interface("10.244.1.0/32"),))


@pytest.mark.parametrize("value", [1, True])
def test_a_bridge_may_call_rules_by_itself(value: object) -> None:
    info = {"info_kind": "bridge", "info_data": {"nf_call_iptables": value, "nf_call_ip6tables": 0}}
    (link,) = parse_links(json.dumps([{"ifname": "cni0", "mtu": 1500, "linkinfo": info}]))
    assert link.calls == {Family.IPV4}


def test_a_port_of_a_bridge() -> None:
    links = {link.name: link for link in parse_links(printed("ip-address/node"))}
    assert [links[name].hairpin for name in ("veth0", "p0", "cni0")] == [False, None, None]
    info = {"info_kind": "veth", "info_slave_kind": "bridge", "info_slave_data": {"hairpin": True}}
    flags = ["PROMISC", "UP"]
    (link,) = parse_links(json.dumps([{"ifname": "veth1", "mtu": 1500, "flags": flags, "linkinfo": info}]))
    assert (link.hairpin, link.promiscuous, link.up) == (True, True, True)


def test_a_vxlan() -> None:
    data = {"id": 1, "local": "192.0.2.1", "link": "eth0", "port": 8472}
    info = {"info_kind": "vxlan", "info_data": data}
    (link,) = parse_links(json.dumps([{"ifname": "flannel.1", "mtu": 1450, "flags": ["UP"], "linkinfo": info}]))
    assert (link.up, link.vxlan) == (True, Vxlan(ip_address("192.0.2.1"), "eth0", 8472))


def test_an_external_vxlan_that_is_off() -> None:
    info = {"info_kind": "vxlan", "info_data": {"external": True, "port": 8472}}
    (link,) = parse_links(json.dumps([{"ifname": "cilium_vxlan", "mtu": 1500, "flags": [], "linkinfo": info}]))
    assert (link.up, link.vxlan) == (False, Vxlan(port=8472, external=True))


def test_neighbours_and_ends() -> None:
    neighbour = {"dst": "10.244.2.0", "dev": "flannel.1", "lladdr": "02:00:00:00:00:02", "state": ["PERMANENT"]}
    assert parse_neighbours(json.dumps([neighbour])) == (Peer("flannel.1", ip_address("10.244.2.0")),)
    ends = [{"mac": "02:00:00:00:00:02", "dst": "192.0.2.9"}, {"mac": "33:33:00:00:00:01"}]
    assert parse_ends(json.dumps(ends), "flannel.1") == (Peer("flannel.1", ip_address("192.0.2.9")),)


def test_a_route_of_an_advertisement() -> None:
    (route,) = parse_routes('[{"dst": "default", "dev": "eth0", "protocol": "ra"}]', Family.IPV6)
    assert route.advertised


def test_routes() -> None:
    assert parse_routes(printed("ip-route/node"), Family.IPV4) == (
        Route(ip_network("0.0.0.0/0"), "eth0", gateway=True),
        Route(ip_network("10.244.1.0/24"), "cni0"),
        Route(ip_network("10.244.2.0/24"), "flannel.1", gateway=True),
        Route(ip_network("192.0.2.0/24"), "eth0"),
        Route(ip_network("198.51.100.0/24")),
        Route(ip_network("203.0.113.0/24"), "eth0", gateway=True),
        Route(ip_network("203.0.113.0/24"), "eth0", gateway=True),
    )
    assert Route(ip_network("fd00:10:244:1::/64"), "cni0") in parse_routes(printed("ip-route/ipv6"), Family.IPV6)
    assert parse_routes("", Family.IPV6) == ()


def test_ways() -> None:
    assert parse_way(printed("ip-route/get")) == "flannel.1"
    assert parse_way(printed("ip-route/local")) == ""
    assert parse_way("[]") == ""


@pytest.mark.parametrize(
    "text",
    [
        "Error: x",
        "{}",
        "[1]",
        '[{"ifname": "a/b", "mtu": 1}]',
        '[{"ifname": "..", "mtu": 1}]',
        '[{"ifname": "name-of-17-letters", "mtu": 1}]',
        '[{"ifname": "eth0"}]',
        '[{"ifname": "eth0", "mtu": true}]',
        '[{"ifname": "eth0", "mtu": 1, "flags": 7}]',
        '[{"ifname": "eth0", "mtu": 1, "flags": "UP"}]',
        '[{"ifname": "eth0", "mtu": 1, "linkinfo": []}]',
        '[{"ifname": "eth0", "mtu": 1, "addr_info": [{"local": "10.0.0.1", "prefixlen": 33}]}]',
        '[{"ifname": "eth0", "mtu": 1, "addr_info": [{"local": 7, "prefixlen": 3}]}]',
    ],
)
def test_other_links_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_links(text)


@pytest.mark.parametrize(
    "text", ['[{"dst": "fd00::/8"}]', '[{"dev": "eth0"}]', '[{"dst": "default", "nexthops": [1]}]']
)
def test_other_routes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_routes(text, Family.IPV4)


def test_samples() -> None:
    assert sample(ip_network("10.244.2.0/24")) == ip_address("10.244.2.254")
    assert sample(ip_network("10.244.2.0/31")) is None
