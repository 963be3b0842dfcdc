"""Examines the interfaces that flannel makes, and the addresses of other nodes that it gives them. Pure.

The checks skip an interface that an earlier backend left behind, because it carries no packets: routes to other nodes
use another interface, and the subnet file has a greater MTU, that of the node's own network.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from flanneld_masq.doctor import flow_remedies
from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.doctor.host_network import HostNetwork, Link, Vxlan
from flanneld_masq.doctor.interfaces import of_family, remote_routes, with_gateway
from flanneld_masq.doctor.network_checks import interface_sysctl
from flanneld_masq.model import Address, Family, FamilyLease, Network
from flanneld_masq.packet_path.state import Effect

_V6 = "v6"  # in the name of flannel's interface for IPv6
_MTU_APART = 20  # bytes between the MTU of the subnet file and that of flannel's interface for IPv6
_OVERHEAD = {4: 50, 6: 70}  # bytes: Ethernet, VXLAN, UDP, and IP as the outer packet has it; flannel, vxlan_network.go


def down(facts: Facts) -> Iterator[Finding]:
    """Yield interfaces of pods and of flannel that are switched off."""
    network = facts.network or HostNetwork()
    for link in with_gateway(network, facts.leases):
        if not link.up:
            then = "then make its IPv6 addresses again: make new pods"
            yield _down(link, "packets of this node's pods", then)
    for _, link in _tunnels(facts):
        if not link.up:
            yield from _switched_off(network, link)


def without_address(facts: Facts) -> Iterator[Finding]:
    for family, link in _tunnels(facts):
        off = facts.sysctls.get(interface_sysctl(Family.IPV6, link.name, "disable_ipv6"))
        if link.up and not link.addresses_of(family) and not (off and family is Family.IPV6):
            lease = of_family(facts.leases, family)[0]
            address = f"{lease.subnet.network_address}/{lease.subnet.max_prefixlen}"
            seen = f"{link.name} has no {family} address; {facts.leases[0].path} names the subnet {lease.subnet}"
            yield finding(Kind.FLANNEL_ADDRESS_MISSING, seen, family, device=link.name, address=address)


def local_address(facts: Facts) -> Iterator[Finding]:
    own = _own_addresses(facts.network or HostNetwork())
    for family, link in _tunnels(facts):
        local = _vxlan(link).local
        if local is not None and local not in own:
            yield finding(Kind.TUNNEL_ADDRESS_GONE, f"{link.name}: local {local}", family, device=link.name)


def mtu(facts: Facts) -> Iterator[Finding]:
    links = {link.name: link for link in (facts.network or HostNetwork()).links}
    for family, link in _tunnels(facts):
        local, under = _vxlan(link).local, links.get(_vxlan(link).device)
        most = under.mtu - _OVERHEAD[local.version] if under is not None and local is not None else link.mtu
        if under is not None and link.mtu > most:
            seen = f"{link.name} has {link.mtu}, {under.name} {under.mtu} bytes"
            yield finding(Kind.TUNNEL_MTU_TOO_LARGE, seen, family, device=link.name, under=under.name, mtu=most)


def leading_back(facts: Facts) -> Iterator[Finding]:
    network = facts.network or HostNetwork()
    own = _own_addresses(network)
    for family, link in _tunnels(facts):
        ends = [end.address for end in network.ends if end.device == link.name and end.address in own]
        if ends:
            seen = f"bridge fdb show dev {link.name}: dst {ends[0]}, which is an address of this node"
            yield finding(Kind.TUNNEL_TO_ITSELF, seen, family, device=link.name)


def missing_routes(facts: Facts) -> Iterator[Finding]:
    """Yield a node whose address flannel gave to its interface, while no route leads to its pods.

    flannel makes the neighbour and the route together, and removes both. Source: vxlan_network.go of flannel.
    """
    network = facts.network or HostNetwork()
    for family, link in _of_flannel(facts):
        leases = of_family(facts.leases, family)
        routes = {route.network for route in network.routes_of(family) if not route.is_default}
        lengths = {route.prefixlen for route in routes}
        known = [one.address for one in network.neighbours if one.device == link.name]
        remote = [one for one in known if _is_remote(one, leases)]
        lost = [one for one in remote if not any(_network_of(one, length) in routes for length in lengths)]
        if lost and link.up:
            length = next(lease.subnet.prefixlen for lease in leases if _is_remote(lost[0], (lease,)))
            target = f"{lost[0]}/{length}"
            more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
            seen = f"{lost[0]} is a permanent neighbour on {link.name}, and no route leads to {target}{more}"
            option = f"-{family.data.version}"
            fields = {"device": link.name, "option": option, "network": target, "address": lost[0]}
            yield finding(Kind.POD_ROUTE_MISSING, seen, family, **fields)


def dropped(facts: Facts) -> Iterator[Finding]:
    for one in facts.packets.tunnels:
        place, advice = one.step.place, flow_remedies.tunnel(one.step, one.owner, one.family, one.port)
        which = str(place) if place.number else f"the policy of {place.chain} in {place.table}"
        seen = (
            f"UDP {one.src} -> {one.dst}, port {one.port}: {one.step.effect.value} at {one.step.hook.value} by {which}"
        )
        yield finding(
            Kind.TUNNEL_DROPPED,
            seen,
            one.family,
            device=one.device,
            port=one.port,
            owner=one.owner or "unknown",
            by=f": {one.owner}" if one.owner else "",
            verb="rejects" if one.step.effect is Effect.REJECTED else "drops",
            remedy=advice.command,
            persist=advice.persist,
        )


def _tunnels(facts: Facts) -> Iterator[tuple[Family, Link]]:
    return ((family, link) for family, link in _of_flannel(facts) if _is_in_use(facts, family, link))


def _of_flannel(facts: Facts) -> Iterator[tuple[Family, Link]]:
    """Yield the VXLAN interfaces of flannel, each with the family of the pods that it carries."""
    for link in facts.network.links if facts.network is not None else ():
        family = Family.IPV6 if _V6 in link.name else Family.IPV4
        if link.is_flannel and link.vxlan is not None and of_family(facts.leases, family):
            yield family, link


def _is_in_use(facts: Facts, family: Family, link: Link) -> bool:
    devices = {route.device for route in remote_routes(facts.network or HostNetwork(), facts.leases, family)}
    of_this_backend = any(lease.mtu and lease.mtu <= link.mtu + _MTU_APART for lease in facts.leases)
    return not devices or link.name in devices or of_this_backend


def _switched_off(network: HostNetwork, link: Link) -> Iterator[Finding]:
    port = _vxlan(link).port
    others = [one.name for one in network.links if _takes(one, port)]
    if others:
        seen = f"{link.name} is down, {others[0]} is up, both on UDP port {port}"
        yield finding(Kind.TUNNEL_PORT_TAKEN, seen, device=link.name, other=others[0], port=port)
    else:
        yield _down(link, "packets of pods to other nodes", "then restart flannel, which writes its routes again")


def _takes(link: Link, port: int) -> bool:
    """Return True for an interface that lets no other have its port: it receives packets of every VNI.

    Source: vxlan_vs_find and vxlan_socket_create in drivers/net/vxlan of the kernel.
    """
    return link.vxlan is not None and link.vxlan.external and link.vxlan.port == port and link.up


def _down(link: Link, direction: str, then: str) -> Finding:
    seen = f"{link.name} has no flag UP"
    return finding(Kind.POD_INTERFACE_DOWN, seen, device=link.name, direction=direction, after=then)


def _vxlan(link: Link) -> Vxlan:
    return link.vxlan or Vxlan()


def _own_addresses(network: HostNetwork) -> frozenset[object]:
    return frozenset(address.ip for link in network.links for address in link.addresses)


def _network_of(address: Address, length: int) -> Network:
    return ip_network((address, length), strict=False)


def _is_remote(address: Address, leases: tuple[FamilyLease, ...]) -> bool:
    inside = any(address in network for lease in leases for network in lease.networks)
    return inside and not any(address in lease.subnet for lease in leases)
