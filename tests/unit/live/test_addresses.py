"""Addresses of throwaway hosts belong to nobody, whatever chance picks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest

from flanneld_masq.errors import MasqError
from flanneld_masq.live.addresses import free_link, free_pod, unused_remote_pod
from flanneld_masq.model import Address, Family, Network

IPV4, IPV6 = ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")
SEEDS = range(20)


def networks(*texts: str) -> Sequence[Network]:
    return [ip_network(text) for text in texts]


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_a_link_avoids_routes(family: Family) -> None:
    routes = networks("0.0.0.0/0", "::/0", "198.51.100.0/25", "203.0.113.0/24", "2001:db8::/33")
    for seed in SEEDS:
        node, outside, length = free_link(family, routes, random.Random(seed))
        link = ip_network(f"{node}/{length}", strict=False)
        assert outside in link and node != outside
        assert not any(route.prefixlen and route.version == link.version and route.overlaps(link) for route in routes)


def test_routes_to_all_documentation_ranges_are_an_error() -> None:
    with pytest.raises(MasqError, match=r"routes to 198\.51\.100\.0/24, 203"):
        free_link(Family.IPV4, networks("192.0.0.0/2"), random.Random(1))


@pytest.mark.parametrize("subnet", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_a_pod_is_in_the_upper_half_and_no_broadcast(subnet: Network) -> None:
    for seed in SEEDS:
        pod = free_pod(subnet, (), lambda candidate: False, random.Random(seed))
        assert int(subnet[subnet.num_addresses // 2]) <= int(pod) < int(subnet[-1])


def test_a_pod_has_no_address_that_is_taken_or_answers() -> None:
    taken = {IPV4[number] for number in range(128, 255) if number % 2}
    asked: list[Address] = []

    def answers(candidate: Address) -> bool:
        asked.append(candidate)
        return len(asked) < 3

    pod = free_pod(IPV4, taken, answers, random.Random(1))
    assert pod == asked[2] and not taken & set(asked)
    with pytest.raises(MasqError, match="no free address"):
        free_pod(IPV4, (), lambda candidate: True, random.Random(1))
    with pytest.raises(MasqError, match="no free address"):
        free_pod(ip_network("10.244.1.0/30"), (), lambda candidate: False, random.Random(1))


@pytest.mark.parametrize("subnet", [IPV4, IPV6], ids=["ipv4", "ipv6"])
def test_a_remote_pod_is_where_no_route_leads(subnet: Network) -> None:
    network = subnet.supernet(new_prefix=subnet.prefixlen - 3)
    routed = [one for one in network.subnets(new_prefix=subnet.prefixlen) if one != subnet][:-1]
    remote = unused_remote_pod((network,), subnet, routed, random.Random(1))
    assert remote in network and not any(remote in one for one in (*routed, subnet))


@pytest.mark.parametrize("routes", [["10.244.0.0/16"], ["10.0.0.0/8"]])
def test_a_route_to_the_whole_network_leaves_no_remote_pod(routes: list[str]) -> None:
    with pytest.raises(MasqError, match="no address is left that belongs to no node"):
        unused_remote_pod(networks("10.244.0.0/16"), IPV4, networks(*routes), random.Random(1))


def test_a_network_of_one_node_has_no_remote_pod() -> None:
    with pytest.raises(MasqError, match="no room for pods of other nodes"):
        unused_remote_pod((IPV4,), IPV4, (), random.Random(1))


def test_a_default_route_is_no_route_to_a_pod() -> None:
    remote = unused_remote_pod(networks("10.244.0.0/16"), IPV4, networks("0.0.0.0/0"), random.Random(1))
    assert remote in ip_network("10.244.0.0/16") and remote != ip_address("10.244.1.5")
