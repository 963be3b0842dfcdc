"""Examines switches of the kernel, addresses and routes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.doctor.host_network import HostNetwork, Link, Route
from flanneld_masq.doctor.interfaces import BRIDGES, DOCKER, is_flannels, of_family, pod_links, uplinks, with_gateway
from flanneld_masq.inputs.text import Interface
from flanneld_masq.model import Family, FamilyLease

CONNTRACK_COUNT, CONNTRACK_MAX = (f"net/netfilter/nf_conntrack_{name}" for name in ("count", "max"))
CONNTRACK_NEARLY_FULL = 0.9
_STRICT = 1  # of rp_filter: ip-sysctl.rst of the kernel
_ACCEPTS_ALWAYS = 2  # of accept_ra: ip-sysctl.rst of the kernel
_LOOPBACK = "lo"
_VPN = ("tun", "wireguard", "ppp")
_HARDWARE = ("", "bond", "team", "vlan", "bridge")
_SHOWN = 3  # addresses and routes
_NETWORKD = (
    "systemd-networkd: `IPv4Forwarding=yes` (before release 256 `IPForward=yes`) in the .network file of {device}; "
    "otherwise "
)


def interface_sysctl(family: Family, device: str, name: str) -> str:
    """Return the path of an interface's switch below /proc/sys."""
    return f"net/{family}/conf/{device}/{name}"


def conntrack(facts: Facts) -> Iterator[Finding]:
    count, most = facts.sysctls.get(CONNTRACK_COUNT), facts.sysctls.get(CONNTRACK_MAX)
    if count is not None and most and count >= most * CONNTRACK_NEARLY_FULL:
        seen = f"{count} of {most} connections (nf_conntrack_count, nf_conntrack_max)"
        yield finding(Kind.CONNTRACK_FULL, seen, key=_key(CONNTRACK_MAX), value=most * 2)


def unread(facts: Facts) -> Iterator[Finding]:
    if facts.unread.network:
        yield finding(Kind.NETWORK_UNREADABLE, facts.unread.network)


def forwarding(facts: Facts) -> Iterator[Finding]:
    """Yield each family that the kernel does not forward, and interfaces from which it does not: for IPv4 each has a
    switch, for IPv6 one that forwards although conf.all does not (Linux 6.17)."""
    for family in Family:
        path = family.data.forwarding
        if not of_family(facts.leases, family):
            continue
        off = facts.sysctls.get(path) == 0
        forced = [name for name in _directions(facts, family) if facts.sysctls.get(_forwarding(family, name))]
        if off and (family is Family.IPV4 or not forced):
            yield finding(Kind.FORWARDING_OFF, f"{_key(path)} = 0", family, key=_key(path), value=1)
        elif off or family is Family.IPV4:
            yield from _closed_interfaces(facts, family)


def ipv6_disabled(facts: Facts) -> Iterator[Finding]:
    network, family = facts.network or HostNetwork(), Family.IPV6
    if not of_family(facts.leases, family):
        return
    flannel = (link for link in network.links if link.is_flannel and "v6" in link.name)
    for link in (*pod_links(network, facts.leases), *flannel):
        path = interface_sysctl(family, link.name, "disable_ipv6")
        if facts.sysctls.get(path):
            yield _switch(Kind.IPV6_DISABLED, facts, path, family, link.name, 0)


def inside_pod_network(facts: Facts) -> Iterator[Finding]:
    """Yield interfaces of the node's own with an address or a route inside flannel's network."""
    network = facts.network or HostNetwork()
    of_pods = {link.name for link in pod_links(network, facts.leases)} | {_LOOPBACK, *BRIDGES}
    if not with_gateway(network, facts.leases):
        of_pods.add(DOCKER)  # if it is in the pod network, the subnet file is another node's
    for family in Family if facts.leases else ():
        routes = _by_device(network.routes_of(family))
        for link in network.links:
            if link.name not in of_pods and not link.is_flannel:
                yield from _own_network(facts, link, routes.get(link.name, []), family)


def _own_network(facts: Facts, link: Link, routes: list[Route], family: Family) -> Iterator[Finding]:
    leases = of_family(facts.leases, family)
    addresses = [one for one in link.addresses_of(family) if _is_strange_address(one, link, leases)]
    strange = [route for route in routes if _is_strange(route, link, leases)]
    seen = [*map(str, addresses), *map(str, strange)]
    if seen:
        inside = next(net for lease in leases for net in lease.networks if _inside(net, addresses, strange))
        text = f"{link.name} has {', '.join(seen[:_SHOWN])}, inside FLANNEL_NETWORK {inside}"
        yield finding(Kind.POD_NETWORK_ON_NODE, text, family, device=link.name, network=inside)


def _by_device(routes: tuple[Route, ...]) -> dict[str, list[Route]]:
    found: dict[str, list[Route]] = {}
    for route in routes:
        found.setdefault(route.device, []).append(route)
    return found


def led_elsewhere(facts: Facts) -> Iterator[Finding]:
    """Yield sampled pods that are reached by another interface than that of their route, and what that drops."""
    twice = {link.name for link in with_gateway(facts.network or HostNetwork(), facts.leases)}
    for way in facts.network.ways if facts.network is not None else ():
        if way.found in ("", way.expected) or {way.found, way.expected} <= twice:  # the latter is a finding of its own
            continue
        family = Family.IPV4 if way.address.version == 4 else Family.IPV6
        seen = f"{way.network} is on {way.expected}, but packets to {way.address} leave by {way.found}"
        yield finding(Kind.POD_ROUTE_ELSEWHERE, seen, family, address=way.address, network=way.network)
        yield from _strict(facts, way.expected, family)


def default_routes(facts: Facts) -> Iterator[Finding]:
    """Yield default routes that lead to pods, or that will expire."""
    network = facts.network or HostNetwork()
    of_pods = {link.name for link in network.links if _carries_pods(link)}
    of_pods |= {port.name for bridge in pod_links(network, facts.leases) for port in network.ports(bridge.name)}
    for family in Family if facts.leases else ():
        route = next((route for route in network.routes_of(family) if route.is_default), None)
        if route is not None and route.device in of_pods:
            seen, option = str(route), f"-{family.data.version}"
            yield finding(Kind.DEFAULT_ROUTE_ON_POD_INTERFACE, seen, family, device=route.device, option=option)
        elif route is not None and route.advertised and family is Family.IPV6:
            yield from _expiring(facts, route)


def _carries_pods(link: Link) -> bool:
    return link.is_flannel or link.name in BRIDGES


def _expiring(facts: Facts, route: Route) -> Iterator[Finding]:
    """Yield a finding if the kernel itself accepted the route, and accepts no further one.

    Source: ipv6_accept_ra in include/net/ipv6.h. A program that handles advertisements itself sets accept_ra to 0.
    """
    accepts, forwards = (interface_sysctl(Family.IPV6, route.device, name) for name in ("accept_ra", "forwarding"))
    if facts.sysctls.get(accepts) == 1 and facts.sysctls.get(forwards):
        kind = Kind.IPV6_DEFAULT_ROUTE_EXPIRES
        yield _switch(kind, facts, accepts, Family.IPV6, route.device, _ACCEPTS_ALWAYS)


def _strict(facts: Facts, device: str, family: Family) -> Iterator[Finding]:
    """Yield a finding if the interface filters strictly. The kernel takes the greater of two switches."""
    paths = [interface_sysctl(family, name, "rp_filter") for name in (device, "all")]
    values = {_key(path): facts.sysctls[path] for path in paths if path in facts.sysctls}
    if max(values.values(), default=0) == _STRICT:
        seen = ", ".join(f"{key} = {value}" for key, value in values.items())
        yield finding(Kind.REVERSE_PATH_STRICT, seen, family, device=device, key=_key(paths[0]), value=2)


def _closed_interfaces(facts: Facts, family: Family) -> Iterator[Finding]:
    for device, direction in _directions(facts, family).items():
        path = _forwarding(family, device)
        if facts.sysctls.get(path) == 0:
            key = _key(path)
            seen, networkd = f"{key} = 0", _NETWORKD.format(device=device)
            if family is Family.IPV6:
                seen, networkd = f"{_key(family.data.forwarding)} = 0, {seen}", ""
            fields = {"device": device, "key": key, "value": 1, "direction": direction, "networkd": networkd}
            yield finding(Kind.INTERFACE_FORWARDING_OFF, seen, family, **fields)


def _forwarding(family: Family, device: str) -> str:
    return interface_sysctl(family, device, "forwarding" if family is Family.IPV4 else "force_forwarding")


def _directions(facts: Facts, family: Family) -> dict[str, str]:
    """Return the packets that the node must forward, by the interface that they come in on."""
    network = facts.network or HostNetwork()
    leading = uplinks(network, facts.leases, family)
    flannel = (
        link.name for link in network.links if link.is_flannel and (family is Family.IPV4 or link.name in leading)
    )
    return {
        **dict.fromkeys(leading, "answers of the world to pods"),
        **dict.fromkeys(flannel, "packets of pods on other nodes"),
        **{link.name: "packets of this node's pods" for link in pod_links(network, facts.leases)},
    }


def _switch(kind: Kind, facts: Facts, path: str, family: Family, device: str, value: int) -> Finding:
    """Return a finding about one switch of an interface, which is to have that value."""
    seen = f"{_key(path)} = {facts.sysctls[path]}"
    return finding(kind, seen, family, device=device, key=_key(path), value=value)


def _key(path: str) -> str:
    """Return the name of a switch for sysctl(8), in which a dot of an interface's name is a slash."""
    return path.translate(str.maketrans("./", "/."))


def _is_strange_address(address: Interface, link: Link, leases: tuple[FamilyLease, ...]) -> bool:
    """Return True for an address in a pod network that neither flannel nor the plugins give an interface.

    A single address on a virtual interface is a tunnel's or a pod's.
    """
    single = address.network.num_addresses == 1
    if single and (link.kind not in _HARDWARE or any(address.ip in lease.subnet for lease in leases)):
        return False
    return any(address.ip in network for lease in leases for network in lease.networks)


def _is_strange(route: Route, link: Link, leases: tuple[FamilyLease, ...]) -> bool:
    """Return True for a route into a pod network that is neither flannel's nor one to this node's pods.

    By a gateway an administrator may lead several nodes at once; what is narrower than a node takes pods away from it.
    A route to one pod is a plugin's that needs no bridge.
    """
    if any(_leads_to_own_pods(route, lease) for lease in leases):
        return False
    inside = [lease for lease in leases if _inside_any(route, lease)]
    narrow = all(route.network.prefixlen > lease.subnet.prefixlen for lease in inside)
    direct = not route.gateway or link.kind in _VPN
    return bool(inside) and (narrow or direct) and not any(is_flannels(route, link, lease) for lease in inside)


def _leads_to_own_pods(route: Route, lease: FamilyLease) -> bool:
    single = route.network.num_addresses == 1
    return route.network == lease.subnet or (single and route.network.network_address in lease.subnet)


def _inside_any(route: Route, lease: FamilyLease) -> bool:
    return any(route.network.subnet_of(network) for network in lease.networks)  # type: ignore[arg-type]


def _inside(network: object, addresses: list[Interface], routes: list[Route]) -> bool:
    return any(one.ip in network for one in addresses) or any(  # type: ignore[operator]
        route.network.subnet_of(network)  # type: ignore[arg-type]
        for route in routes
    )
