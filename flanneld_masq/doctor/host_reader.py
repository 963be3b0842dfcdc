"""Reads the interfaces, routes and switches of the node, with ip(8) and from /proc/sys, or from a node that was saved.

Changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Optional

from flanneld_masq.doctor import bridge_checks, host_network, network_checks
from flanneld_masq.doctor.host_network import HostNetwork, Link, Peer, Route, Way
from flanneld_masq.doctor.interfaces import of_family, pod_links, remote_routes, uplinks
from flanneld_masq.errors import CommandError
from flanneld_masq.inputs.text import read_start
from flanneld_masq.model import Address, Family, Lease, Network, family_of
from flanneld_masq.packet_path.routing import UNICAST, Routing
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.process import ProcessRunner

_SECONDS = 5.0  # for each call of ip; 5,000 interfaces take 0.1 s
MAX_WAYS = 8  # interfaces that the kernel is asked about, 3 ms each
_MODULE = "sys/module/br_netfilter"
_BRIDGED = "net.bridge.bridge-nf-call-"  # begins the switches of that module


def read_network(run: ProcessRunner, root: Path, leases: tuple[Lease, ...]) -> HostNetwork:
    """Return the interfaces, and the routes of the families that the leases name.

    Raises CommandError if ip fails, and ValueError if its output is not as expected.
    """
    links = host_network.parse_links(_ip(run, "-d", "address"))
    routes = {family: _routes(run, family) for family in Family if of_family(leases, family)}
    neighbours = host_network.parse_neighbours(_ip(run, "neigh", "show", "nud", "permanent"))
    network = HostNetwork(links, routes, (), (root / _MODULE).exists(), neighbours, tuple(_ends(run, links)))
    return replace(network, ways=tuple(_ways(partial(_way, run), network, leases)))


def saved_network(snapshot: Snapshot, leases: tuple[Lease, ...]) -> HostNetwork:
    """Return what `read_network` would have returned. Raises ValueError, and SnapshotError for unreadable routes."""
    links = host_network.parse_links(snapshot.addresses)
    families = [family for family in Family if of_family(leases, family)]
    routes = {one: host_network.parse_routes(snapshot.routes.get(one, ""), one) for one in families}
    neighbours = host_network.parse_neighbours(snapshot.neighbours)
    ends = (end for link in _tunnels(links) for end in host_network.parse_ends(snapshot.ends, link.name))
    bridged = any(key.startswith(_BRIDGED) for key in snapshot.sysctls)
    network = HostNetwork(links, routes, (), bridged, neighbours, tuple(ends))
    routing = {family: Routing(snapshot, family) for family in families}
    return replace(network, ways=tuple(_ways(partial(_saved_way, routing), network, leases)))


def read_sysctls(root: Path, paths: Iterable[str]) -> Mapping[str, int]:
    """Return the switches below /proc/sys that are there."""
    values = ((path, _number(root / "proc/sys" / path)) for path in paths)
    return {path: value for path, value in values if value is not None}


def saved_sysctls(snapshot: Snapshot, paths: Iterable[str]) -> Mapping[str, int]:
    """Return the switches that were saved."""
    values = ((path, snapshot.sysctl(path.replace("/", "."))) for path in paths)
    return {path: value for path, value in values if value is not None}


def sysctl_paths(network: HostNetwork, leases: tuple[Lease, ...]) -> Iterator[str]:
    """Yield the switches that the checks need: those of the interfaces that carry packets of pods, and common ones."""
    yield from (network_checks.CONNTRACK_COUNT, network_checks.CONNTRACK_MAX)
    flannel = (link for link in network.links if link.is_flannel)
    pods = {link.name for link in (*pod_links(network, leases), *flannel)}
    for family in Family:
        yield from (family.data.forwarding, bridge_checks.call_sysctl(family))
        yield network_checks.interface_sysctl(family, "all", "rp_filter")
        for device in sorted(pods | uplinks(network, leases, family)):
            for name in ("forwarding", "force_forwarding", "rp_filter", "disable_ipv6", "accept_ra"):
                yield network_checks.interface_sysctl(family, device, name)


def _routes(run: ProcessRunner, family: Family) -> tuple[Route, ...]:
    return host_network.parse_routes(_ip(run, f"-{family.data.version}", "route"), family)


def _ends(run: ProcessRunner, links: tuple[Link, ...]) -> Iterator[Peer]:
    """Yield where flannel's tunnels lead; none of an interface that is gone by now."""
    for link in _tunnels(links):
        with contextlib.suppress(CommandError):
            command = ("bridge", "-j", "fdb", "show", "dev", link.name)
            yield from host_network.parse_ends(run(command, timeout=_SECONDS).stdout, link.name)


def _tunnels(links: tuple[Link, ...]) -> Iterator[Link]:
    return (link for link in links if link.is_flannel and link.vxlan is not None)


def _ways(find: Callable[[Address], str], network: HostNetwork, leases: tuple[Lease, ...]) -> Iterator[Way]:
    """Yield for one pod behind each interface with a route to pods which interface `find` returns for that pod. At most
    MAX_WAYS."""
    for target, device in islice(_targets(network, leases), MAX_WAYS):
        address = host_network.sample(target)
        if address is not None:
            yield Way(target, address, device, find(address))


def _way(run: ProcessRunner, address: Address) -> str:
    """Return the interface to an address; empty if there is none."""
    try:
        return host_network.parse_way(_ip(run, "route", "get", str(address)))
    except CommandError:
        return ""


def _saved_way(routing: Mapping[Family, Routing], address: Address) -> str:
    """Return the interface to an address by the routes that were saved; empty if there is none, or not for certain."""
    found = routing[family_of(address)].route(None, address, "", 0)
    return found[0].device if len(found) == 1 and found[0].kind == UNICAST else ""


def _targets(network: HostNetwork, leases: tuple[Lease, ...]) -> Iterator[tuple[Network, str]]:
    """Yield one network and its interface: this node's pods, and one node for each interface that leads to others."""
    for family in Family:
        subnets = {lease.subnet for lease in of_family(leases, family)}
        bridges = {link.name for link in pod_links(network, leases)}
        own = (route for route in network.routes_of(family) if route.device in bridges and route.network in subnets)
        yield from ((route.network, route.device) for route in own)
        remote = {route.device: route.network for route in remote_routes(network, leases, family)}
        yield from ((found, device) for device, found in remote.items() if device)


def _ip(run: ProcessRunner, *arguments: str) -> str:
    return run(("ip", "-j", *arguments), timeout=_SECONDS).stdout


def _number(path: Path) -> Optional[int]:
    try:
        return int(read_start(path, 64))
    except (OSError, ValueError):
        return None
