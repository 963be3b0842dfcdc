"""Picks addresses for throwaway hosts that no other host has. Pure; chance is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import ip_address, ip_network

from flanneld_masq.errors import MasqError
from flanneld_masq.model import Address, Family, Network

# For documentation only: RFC 5737 and RFC 3849. No host of the world has such an address.
_DOCUMENTATION: dict[Family, tuple[Network, ...]] = {
    Family.IPV4: tuple(map(ip_network, ("198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24"))),
    Family.IPV6: (ip_network("2001:db8::/32"),),
}
_LINK_LENGTH = {Family.IPV4: 30, Family.IPV6: 126}
_TRIES = 64


def free_link(family: Family, routes: Collection[Network], chance: random.Random) -> tuple[Address, Address, int]:
    """Return two addresses of a documentation range with their prefix length, such that no route but a default one
    leads to any of the link. Raises MasqError if routes cover all that was tried."""
    for base in _DOCUMENTATION[family]:
        for _ in range(_TRIES):
            link = _subnet_of(base, _LINK_LENGTH[family], chance)
            if not any(_covers(route, link) for route in routes):
                return link[1], link[2], link.prefixlen
    tried = ", ".join(map(str, _DOCUMENTATION[family]))
    raise MasqError(f"no destination of the world can be made up: the node has routes to {tried}")


def free_pod(
    subnet: Network, taken: Collection[Address], answers: Callable[[Address], bool], chance: random.Random
) -> Address:
    """Return an address of the upper half of the subnet, where address managers come last, that is not `taken` and at
    which nobody `answers`. Raises MasqError if none was found."""
    for candidate in _upper_half(subnet, chance):
        if candidate not in taken and not answers(candidate):
            return candidate
    raise MasqError(f"no free address was found in {subnet}")


def unused_remote_pod(
    networks: Iterable[Network], subnet: Network, routes: Collection[Network], chance: random.Random
) -> Address:
    """Return an address of a pod subnet that no node has, as far as the routes tell. Raises MasqError if they lead
    everywhere, as those of the WireGuard backend do."""
    network = next((one for one in networks if subnet.network_address in one), subnet)
    if network.prefixlen >= subnet.prefixlen:
        raise MasqError(f"the network {network} has no room for pods of other nodes")
    for _ in range(_TRIES):
        other = _subnet_of(network, subnet.prefixlen, chance)
        if not other.overlaps(subnet) and not any(_covers(route, other) for route in routes):
            return other[min(5, other.num_addresses - 1)]
    raise MasqError(f"routes of this node lead to all of {network}, so no address is left that belongs to no node")


def _covers(route: Network, other: Network) -> bool:
    return route.version == other.version and route.prefixlen > 0 and bool(route.overlaps(other))


def _subnet_of(network: Network, length: int, chance: random.Random) -> Network:
    number = chance.randrange(1 << (length - network.prefixlen))
    first = int(network.network_address) + (number << (network.max_prefixlen - length))
    address = ip_address(first) if network.version == 4 else ip_address(first.to_bytes(16, "big"))
    return ip_network(f"{address}/{length}")


def _upper_half(subnet: Network, chance: random.Random) -> Iterator[Address]:
    size = subnet.num_addresses
    for _ in range(_TRIES):
        if size >= 8:
            yield subnet[chance.randrange(size // 2, size - 1)]
