"""Finds the route of a packet in the addresses, routes and routing rules of a snapshot. Pure.

The kernel takes the first rule whose table has a route, and of these the one with the longest prefix, then the lowest
metric. A rule with a selector that the model does not know may hold; then there are several answers.
Source: ip-rule(8), ip-route(8), `net/ipv4/fib_*.c`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Optional

from flanneld_masq.errors import SnapshotError
from flanneld_masq.model import SLOTS, Address, Family, Network
from flanneld_masq.packet_path.names import ROUTE_TYPES
from flanneld_masq.packet_path.snapshot import Snapshot

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
LOCAL, MAIN, LOOPBACK = "local", "main", "lo"
UNICAST, MULTICAST = "unicast", "multicast"
BRIDGE_KEYS = {  # switches that have packets on bridges pass the rules of a family
    Family.IPV4: "net.bridge.bridge-nf-call-iptables",
    Family.IPV6: "net.bridge.bridge-nf-call-ip6tables",
}
_BRIDGE_CALLS = {Family.IPV4: "nf_call_iptables", Family.IPV6: "nf_call_ip6tables"}  # the same of one bridge
MAX_ROUTES = 8  # answers to one question


@dataclass(frozen=True, **SLOTS)
class Route:
    """Where a packet goes: `kind` is that of ip-route(8), `via` the next hop, None on the link itself."""

    kind: str
    device: str = ""
    via: Optional[Address] = None
    source: Optional[Address] = None
    text: str = ""


NO_ROUTE = Route("unreachable", text="no route")


@dataclass(frozen=True, **SLOTS)
class HostAddress:
    """An address of a device. `network` is what it makes reachable there."""

    device: str
    address: Address
    network: Network
    scope: str
    secondary: bool


@dataclass(frozen=True, **SLOTS)
class Selector:
    """The packets that a routing rule is for."""

    source: Optional[Network]
    destination: Optional[Network]
    mark: int
    mask: int
    iif: str
    inverted: bool
    unknown: bool

    def holds(self, src: Optional[Address], dst: Address, iif: str, mark: int) -> Optional[bool]:
        """Tell if the rule holds; None if that is not known. The `iif` of a packet of the node is empty."""
        answer = (
            (self.source is None or (src is not None and src in self.source))
            and (self.destination is None or dst in self.destination)
            and mark & self.mask == self.mark
            and (not self.iif or (iif or "lo") == self.iif)
        )
        if self.unknown and answer:
            return None
        return answer != self.inverted


@dataclass(frozen=True, **SLOTS)
class PolicyRule:
    """A routing rule. A route with a prefix of `suppressed` bits or fewer does not count, -1 for none; `goto` is the
    priority of the rule that follows, 0 for the next one."""

    selector: Selector
    priority: int
    table: str
    action: str
    suppressed: int
    goto: int


class RouteTable:
    """The routes of one table, found by longest prefix."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, list[tuple[int, tuple[Route, ...]]]]] = {}
        self._width = 0
        self._lengths: list[int] = []

    def add(self, network: Network, metric: int, routes: tuple[Route, ...]) -> None:
        self._width = network.max_prefixlen
        same = self._by_length.setdefault(network.prefixlen, {}).setdefault(int(network.network_address), [])
        same.append((metric, routes))
        same.sort(key=lambda pair: pair[0])
        self._lengths = sorted(self._by_length, reverse=True)

    def all(self) -> Iterator[tuple[Network, tuple[Route, ...]]]:
        """Yield the destinations and their best routes, the longest prefixes first."""
        for length in self._lengths:
            for number, entries in self._by_length[length].items():
                yield ip_network((number.to_bytes(self._width // 8, "big"), length)), entries[0][1]

    def find(self, dst: Address) -> tuple[int, tuple[Route, ...]]:
        """Return the length of the longest prefix and its routes, of which the kernel takes one; none if there is no
        route, or one that says so (throw)."""
        for length in self._lengths:
            shift = self._width - length
            found = self._by_length[length].get(int(dst) >> shift << shift)
            if found:
                routes = found[0][1]
                return (length, routes) if routes[0].kind != "throw" else (0, ())
        return 0, ()


class Routing:
    """The routes of one family."""

    def __init__(self, snapshot: Snapshot, family: Family) -> None:
        self.family = family
        self.addresses = tuple(_addresses(_load(snapshot.addresses, "addresses"), family))
        self.links: Mapping[str, Any] = {
            str(link["ifname"]): link for link in _load(snapshot.links, "links") if "ifname" in link
        }
        self._bridges_call = snapshot.sysctl(BRIDGE_KEYS[family]) == 1
        self._rules = tuple(_rules(_load(snapshot.rules.get(family, "[]"), "routing rules"), family))
        self._routes = snapshot.routes.get(family, "[]")

    @cached_property
    def _tables(self) -> Mapping[str, RouteTable]:
        try:
            return self._read_tables()
        except _MALFORMED as error:
            raise SnapshotError(f"the routes cannot be read: {error}") from error

    def _read_tables(self) -> Mapping[str, RouteTable]:
        tables: dict[str, RouteTable] = defaultdict(RouteTable)
        for route in _load(self._routes, "routes"):
            network = _network(route.get("dst", "default"), self.family)
            kind = route.get("type", UNICAST)
            # multicast routes of IPv6 stand for every device and decide nothing here
            if network is None or (kind == MULTICAST and self.family is Family.IPV6):
                continue
            routes = tuple(_routes_of(route, kind))
            if routes and not _is_dead(route):
                tables[str(route.get("table", MAIN))].add(network, int(route.get("metric", 0)), routes)
        return dict(tables)

    def route(self, src: Optional[Address], dst: Address, iif: str, mark: int) -> tuple[Route, ...]:
        """Return every route that a packet may take, at least one. `iif` is empty for a packet of the node.

        A packet to a group of IPv6 that comes by a device is for the node; no other route forwards it.
        """
        if iif and self.family is Family.IPV6 and dst.is_multicast:
            return (Route(MULTICAST, iif),)
        found: dict[Route, None] = {}
        skipped = doubtful = 0  # priorities below which rules do not count, or only may
        for rule in self._rules:
            answer = rule.selector.holds(src, dst, iif, mark)
            if answer is False or rule.priority < skipped:
                continue
            certain = bool(answer) and rule.priority >= doubtful
            if rule.goto:
                skipped, doubtful = (rule.goto, doubtful) if certain else (skipped, max(doubtful, rule.goto))
                continue
            routes = self._of(rule, dst)
            found.update(dict.fromkeys(routes))
            if routes and certain:
                break
        else:
            found[NO_ROUTE] = None
        return tuple(found)[:MAX_ROUTES]

    def _of(self, rule: PolicyRule, dst: Address) -> tuple[Route, ...]:
        if rule.action:
            return (Route(rule.action, text=f"routing rule {rule.action}"),)
        table = self._tables.get(rule.table)
        length, routes = table.find(dst) if table else (0, ())
        return routes if length > rule.suppressed else ()

    def unicast(self) -> Iterator[tuple[Network, Route]]:
        """Yield every route of the main table by which packets leave, with its destination."""
        table = self._tables.get(MAIN)
        for network, routes in table.all() if table else ():
            yield from ((network, route) for route in routes[:1] if route.kind == UNICAST)

    def type_of(self, address: Address, device: str = "") -> int:
        """Return the type of an address for this host, as `fib daddr type` and the match addrtype see it.

        With a device, an address of another one is no address of the host.
        Sources: `inet_dev_addr_type` in net/ipv4/fib_frontend.c, net/ipv6/netfilter/nft_fib_ipv6.c.
        """
        if self.family is Family.IPV4 and (int(address) == 0xFFFFFFFF or int(address) >> 24 == 0):
            return ROUTE_TYPES["broadcast"]
        if address.is_multicast:
            return ROUTE_TYPES[MULTICAST]
        table = self._tables.get(LOCAL)
        routes = table.find(address)[1] if table else ()
        if routes and (not device or self._is_at(address, device, routes[0])):
            return ROUTE_TYPES.get(routes[0].kind, 0)
        if self.family is Family.IPV4:
            return ROUTE_TYPES[UNICAST]
        kinds = {route.kind for route in self.route(None, address, "", 0)}
        return ROUTE_TYPES["unreachable" if kinds == {"unreachable"} else UNICAST]

    def _is_at(self, address: Address, device: str, route: Route) -> bool:
        """Return True if a route of the table local is one of a device. For IPv6 the device must have the address
        itself; anycast addresses are those of every device."""
        if self.family is Family.IPV4:
            return route.device == device
        return route.kind == "anycast" or self._has(device, address)

    def _has(self, device: str, address: Address) -> bool:
        return any(one.address == address and one.device == device for one in self.addresses)

    def type_at(self, address: Address, device: str) -> Optional[int]:
        """Return the type of an address for one device; None if that is not known.

        nft calls an address of the device anycast if it is one of another device too, addrtype calls it local.
        """
        found = self.type_of(address, device)
        return None if found == ROUTE_TYPES["anycast"] and self._has(device, address) else found

    def is_bridge(self, device: str) -> bool:
        info = self.links.get(device, {}).get("linkinfo")
        return isinstance(info, dict) and info.get("info_kind") == "bridge"

    def bridge_calls(self, device: str) -> bool:
        """Return True if a device is a bridge whose packets pass the rules, by its own switch or the node's."""
        if not self.is_bridge(device):
            return False
        own = self.links[device]["linkinfo"].get("info_data")
        return self._bridges_call or (isinstance(own, dict) and own.get(_BRIDGE_CALLS[self.family]) in (1, True))

    def ports(self, device: str) -> frozenset[str]:
        """Return the names of the ports of a bridge."""
        return frozenset(name for name, link in self.links.items() if link.get("master") == device)

    def is_local(self, address: Address) -> bool:
        return self.type_of(address) == ROUTE_TYPES[LOCAL]

    def source_for(self, route: Route, dst: Address) -> Optional[Address]:
        """Return the address that the kernel masquerades with, on the way by a route; None if it has none there.

        Sources: `inet_select_addr` in net/ipv4/devinet.c, `ipv6_dev_get_saddr` in net/ipv6/addrconf.c.
        """
        device = LOOPBACK if route.kind == LOCAL else route.device
        own = [one for one in self.addresses if one.scope == "global" and not one.secondary]
        if self.family is Family.IPV4:
            usable = [one for one in own if one.device == device]
            hop = dst if route.via is None else route.via
            near = [one for one in usable if hop in one.network]
            return next((one.address for one in (*near, *usable, *own)), None)
        if dst.is_link_local:
            own = [one for one in self.addresses if one.device == device]
        best = max(own, default=None, key=lambda one: _preference(one, device, dst))
        return best.address if best else None

    def reverse_device(self, address: Address, iif: str, mark: int, *, strict: bool) -> Optional[str]:
        """Return the device towards the source of a packet, empty for none; None if that is not known.

        With `strict` only a route by the device that it came by counts.
        """
        devices = {route.device if route.kind == UNICAST else "" for route in self.route(None, address, "", mark)}
        if strict:
            devices = {device if device == iif else "" for device in devices}
        return devices.pop() if len(devices) == 1 else None


def _preference(one: HostAddress, device: str, dst: Address) -> tuple[bool, bool, bool, int]:
    return (
        one.address == dst,
        one.address.is_link_local == dst.is_link_local,
        one.device == device,
        _common(one.address, dst),
    )


def _common(one: Address, other: Address) -> int:
    """Return the length of the prefix that two addresses share."""
    return one.max_prefixlen - (int(one) ^ int(other)).bit_length()


def _load(text: str, what: str) -> list[Any]:
    try:
        content = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"the {what} cannot be read: {error}") from error
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise SnapshotError(f"the {what} cannot be read: expected a list of objects")
    return content


def _addresses(devices: Sequence[Any], family: Family) -> Iterator[HostAddress]:
    wanted = "inet" if family is Family.IPV4 else "inet6"
    try:
        for device in devices:
            for info in device.get("addr_info", ()):
                if info.get("family") == wanted:
                    address = ip_address(info["local"])
                    near = ip_interface(f"{info.get('address', address)}/{info['prefixlen']}").network
                    secondary = bool(info.get("secondary"))
                    yield HostAddress(str(device["ifname"]), address, near, str(info.get("scope")), secondary)
    except _MALFORMED as error:
        raise SnapshotError(f"the addresses cannot be read: {error}") from error


def _network(text: object, family: Family) -> Optional[Network]:
    if text in ("default", "all"):
        return ip_network("0.0.0.0/0" if family is Family.IPV4 else "::/0")
    try:
        found = ip_network(str(text), strict=False)
    except ValueError:
        return None
    return found if found.version == family.data.version else None


def _is_dead(route: Any) -> bool:
    """Return True for a route that the kernel passes over. One by a link without a carrier ("linkdown") it passes over
    only with ignore_routes_with_linkdown, and then marks it dead, too. Source: `fib_nexthop_info`."""
    return "dead" in route.get("flags", ())


def _routes_of(route: Any, kind: str) -> Iterator[Route]:
    source = _address(route.get("prefsrc"))
    for hop in route.get("nexthops") or [route]:
        if not _is_dead(hop):
            via = hop.get("gateway") or (hop.get("via") or {}).get("host")
            device = str(hop.get("dev", route.get("dev", "")))
            text = f"{kind} {route.get('dst')} dev {device} table {route.get('table', MAIN)}"
            yield Route(str(kind), device, _address(via), source, text)


def _address(text: object) -> Optional[Address]:
    try:
        return ip_address(str(text)) if text else None
    except ValueError:
        return None


_KNOWN = frozenset(
    {"priority", "src", "srclen", "dst", "dstlen", "fwmark", "fwmask", "iif", "table", "not"}
) | frozenset({"action", "suppress_prefixlen", "protocol", "goto", "nop"})
_ACTIONS = frozenset({"unreachable", "blackhole", "prohibit"})


def _rules(content: Sequence[Any], family: Family) -> Iterator[PolicyRule]:
    """Yield the rules in order. The kernel passes over one that leads to a rule that is not there ("unresolved")."""
    try:
        for rule in content:
            if "unresolved" not in rule:
                yield _rule(rule, family)
    except _MALFORMED as error:
        raise SnapshotError(f"the routing rules cannot be read: {error}") from error


def _rule(rule: Any, family: Family) -> PolicyRule:
    action = str(rule.get("action", ""))
    return PolicyRule(
        _selector(rule, family),
        _integer(rule, "priority", 0),
        str(rule.get("table", "")),
        action if action in _ACTIONS else "",
        _integer(rule, "suppress_prefixlen", -1),
        _integer(rule, "goto", 0),
    )


def _selector(rule: Any, family: Family) -> Selector:
    """Return the packets that a rule is for; one that cannot be read is for any, and not for certain."""
    try:
        return Selector(
            _selected(rule, "src", family),
            _selected(rule, "dst", family),
            _mark(rule.get("fwmark", 0)),
            _mark(rule.get("fwmask", 0xFFFFFFFF if "fwmark" in rule else 0)),
            str(rule.get("iif", "")),
            "not" in rule,
            bool(rule.keys() - _KNOWN),
        )
    except (TypeError, ValueError):
        return Selector(None, None, 0, 0, "", "not" in rule, unknown=True)


def _integer(rule: Any, name: str, default: int) -> int:
    value = rule.get(name, default)
    return value if isinstance(value, int) else default


def _selected(rule: Any, name: str, family: Family) -> Optional[Network]:
    """Return the addresses that a rule is for, None for all. Raises ValueError."""
    text = rule.get(name, "all")
    if text in ("all", "default"):
        return None
    found = _network(f"{text}/{rule[name + 'len']}" if name + "len" in rule else text, family)
    if found is None:
        raise ValueError("not a network of the family")
    return found


def _mark(value: object) -> int:
    """Return a number. Raises TypeError or ValueError."""
    return int(value, 0) if isinstance(value, str) else int(value)  # type: ignore[call-overload]
