"""Tells which interfaces of the node carry packets of pods, and for which family. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.doctor.host_network import HostNetwork, Link, Route
from flanneld_masq.model import Family, FamilyLease, Lease

BRIDGES = ("cni0", "cbr0")  # of the bridge and the kubenet plugin; nothing but pods is on them
DOCKER = "docker0"  # of pods too where docker was started with flannel's subnet


def of_family(leases: tuple[Lease, ...], family: Family) -> tuple[FamilyLease, ...]:
    """Return the leases of one family."""
    return tuple(found for lease in leases if (found := lease.of(family)) is not None)


def pod_links(network: HostNetwork, leases: tuple[Lease, ...]) -> tuple[Link, ...]:
    """Return the links on which pods of this node are: those with the address of a lease's gateway, and those with the
    name of the plugins' bridge."""
    found = with_gateway(network, leases)
    return tuple(link for link in network.links if link.name in BRIDGES or link in found)


def with_gateway(network: HostNetwork, leases: tuple[Lease, ...]) -> tuple[Link, ...]:
    """Return the links with the address of a lease's gateway."""
    gateways = {lease.gateway for family in Family for lease in of_family(leases, family)}
    return tuple(link for link in network.links if any(one.ip in gateways for one in link.addresses))


def uplinks(network: HostNetwork, leases: tuple[Lease, ...], family: Family) -> frozenset[str]:
    """Return the interfaces that lead to the world, by the first default route, and to pods of other nodes."""
    default = next((route.device for route in network.routes_of(family) if route.is_default), "")
    remote = (route.device for route in remote_routes(network, leases, family))
    return frozenset(filter(None, (default, *remote)))


def remote_routes(network: HostNetwork, leases: tuple[Lease, ...], family: Family) -> Iterator[Route]:
    """Yield the routes to pods of other nodes, as flannel writes them."""
    own = {link.name: link for link in network.links}
    for route in network.routes_of(family):
        for lease in of_family(leases, family):
            link = own.get(route.device, Link(route.device))
            if _is_remote(route, lease) and is_flannels(route, link, lease):
                yield route
                break


def is_flannels(route: Route, link: Link, lease: FamilyLease) -> bool:
    """Return True for a route that flannel may have written: over an interface of its own, or in mode host-gw to the
    subnet of a node by its gateway. A tunnel of another program may carry such routes, too."""
    tunnel = link.kind in ("vxlan", "wireguard", "ipip", "gre", "geneve", "sit", "ip6tnl")
    whole = route.network in lease.networks
    of_a_node = route.network.prefixlen == lease.subnet.prefixlen
    return link.is_flannel or (route.gateway and (whole or of_a_node)) or (tunnel and of_a_node)


def _is_remote(route: Route, lease: FamilyLease) -> bool:
    inside = any(_within(route, network) for network in lease.networks)
    return inside and not _within(route, lease.subnet)


def _within(route: Route, network: object) -> bool:
    return bool(route.network.subnet_of(network))  # type: ignore[arg-type]  # both are of one family
