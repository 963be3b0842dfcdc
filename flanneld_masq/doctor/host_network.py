"""The interfaces, addresses and routes of the node, from the JSON that ip(8) prints. Pure.

Format: `ip -j -d address`, `ip -j route`, `ip -j route get`, `ip -j neigh` and `bridge -j fdb` of iproute2 4.20 and
later (ip/ipaddress.c, ip/iplink_vxlan.c, ip/iproute.c, ip/ipneigh.c, bridge/fdb.c). Members that are not named here are
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Optional

from flanneld_masq.inputs.json_values import MAX_NUMBER, parse
from flanneld_masq.inputs.text import Interface
from flanneld_masq.model import SLOTS, Address, Family, Network, family_of

_NAME = re.compile(r"(?!\.\.?$)[^/\s\x00-\x1f]{1,15}")  # dev_valid_name in net/core/dev.c
_DEFAULT = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_MAIN = "main"
FLANNEL = "flannel"  # begins the name of each interface that flannel makes


@dataclass(frozen=True, **SLOTS)
class Vxlan:
    """A VXLAN interface. It sends from the address `local`, None if the kernel chooses, by the interface `device`,
    empty for any, to the UDP port `port`. An `external` one receives every VNI."""

    local: Optional[Address] = None
    device: str = ""
    port: int = 0
    external: bool = False


@dataclass(frozen=True, **SLOTS)
class Link:
    """An interface. `mtu` is in bytes; `master` is the bridge that it is a port of, and `kind` the kernel's name of
    its type, empty for hardware. `calls` are the families whose rules a bridge calls whatever the sysctl says. `up` is
    False if it was switched off. `vxlan` is None for an interface of another kind. `hairpin` says if a bridge sends
    packets back by this port of it, None if that is not known; `promiscuous` if the interface takes packets to others.
    """

    name: str
    mtu: int = 1500
    kind: str = ""
    master: str = ""
    addresses: tuple[Interface, ...] = ()
    calls: frozenset[Family] = frozenset()
    up: bool = True
    vxlan: Optional[Vxlan] = None
    hairpin: Optional[bool] = None
    promiscuous: bool = False

    @property
    def is_flannel(self) -> bool:
        return self.name.startswith(FLANNEL)

    def addresses_of(self, family: Family) -> tuple[Interface, ...]:
        """Return the addresses of the family that other hosts can reach."""
        return tuple(one for one in self.addresses if family_of(one.network) is family and not one.is_link_local)


@dataclass(frozen=True, **SLOTS)
class Route:
    """A route of the main table. `device` is empty for one that rejects packets; `gateway` says if another host
    forwards them, `advertised` if a router's advertisement made it."""

    network: Network
    device: str = ""
    gateway: bool = False
    advertised: bool = False

    @property
    def is_default(self) -> bool:
        return self.network.prefixlen == 0

    def __str__(self) -> str:
        return f"route {self.network} dev {self.device}"


@dataclass(frozen=True, **SLOTS)
class Way:
    """The interface by which packets to `address`, inside `network`, leave; `expected` is the one of its route."""

    network: Network
    address: Address
    expected: str
    found: str


@dataclass(frozen=True, **SLOTS)
class Peer:
    """Another node, as flannel tells it to an interface: the `address` of a neighbour, or of a tunnel's other end."""

    device: str
    address: Address


@dataclass(frozen=True, **SLOTS)
class HostNetwork:
    """Interfaces, routes and neighbours of the node. `ways` are sampled addresses of pods, one for each interface that
    leads to any. `br_netfilter` is True if that module is loaded. `neighbours` are the permanent ones, `ends` the other
    ends of flannel's tunnels."""

    links: tuple[Link, ...] = ()
    routes: Mapping[Family, tuple[Route, ...]] = field(default_factory=dict)
    ways: tuple[Way, ...] = ()
    br_netfilter: bool = True
    neighbours: tuple[Peer, ...] = ()
    ends: tuple[Peer, ...] = ()

    def ports(self, bridge: str) -> Iterator[Link]:
        return (link for link in self.links if link.master == bridge)

    def routes_of(self, family: Family) -> tuple[Route, ...]:
        return self.routes.get(family, ())


def parse_links(text: str) -> tuple[Link, ...]:
    """Return the interfaces that `ip -j -d address` printed. Raises ValueError for anything else."""
    return tuple(_link(entry) for entry in _entries(text) if entry)  # a filter of ip leaves empty objects


def parse_routes(text: str, family: Family) -> tuple[Route, ...]:
    """Return the routes of the main table that `ip -j -4 route` (or -6) printed, with those of any other tables.

    Raises ValueError for anything else.
    """
    main = (entry for entry in _entries(text) if entry.get("table", _MAIN) == _MAIN)
    return tuple(route for entry in main for route in _routes(entry, family))


def parse_way(text: str) -> str:
    """Return the interface that `ip -j route get` printed; empty for an address of the node itself, or no route.

    Raises ValueError for anything else.
    """
    (entry,) = _entries(text) or ({},)
    return "" if _text(entry, "type") == "local" else _device(entry)


def parse_neighbours(text: str) -> tuple[Peer, ...]:
    """Return the neighbours that `ip -j neigh` printed. Raises ValueError for anything else."""
    return tuple(
        Peer(_name(_text(entry, "dev")), ip_address(_text(entry, "dst"))) for entry in _entries(text) if "dst" in entry
    )


def parse_ends(text: str, device: str) -> tuple[Peer, ...]:
    """Return the other ends of the tunnel on `device` in the output of `bridge -j fdb`, of all interfaces or of one.

    Raises ValueError for any other text.
    """
    found = (entry for entry in _entries(text) if "dst" in entry and entry.get("ifname", device) == device)
    return tuple(Peer(device, ip_address(_text(entry, "dst"))) for entry in found)


def _entries(text: str) -> list[dict[str, Any]]:
    content = parse(text.encode("utf-8", "surrogateescape")) if text.strip() else []
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("expected a list of objects")
    return content


def _link(entry: dict[str, Any]) -> Link:
    info = _object(entry, "linkinfo")
    data = _object(info, "info_data")
    hairpin = _object(info, "info_slave_data").get("hairpin")
    calls = {Family.IPV4: "nf_call_iptables", Family.IPV6: "nf_call_ip6tables"}
    return Link(
        _name(_text(entry, "ifname")),
        _number(entry, "mtu"),
        _text(info, "info_kind"),
        _text(entry, "master"),
        tuple(_address(one) for one in _list(entry, "addr_info") if _text(one, "local")),
        frozenset(family for family, key in calls.items() if data.get(key) in (1, True)),
        "UP" in _flags(entry),
        _vxlan(data) if _text(info, "info_kind") == "vxlan" else None,
        hairpin if isinstance(hairpin, bool) else None,
        "PROMISC" in _flags(entry),
    )


def _flags(entry: dict[str, Any]) -> list[Any]:
    """Return the flags of an interface; UP for one that is printed without flags."""
    flags = entry.get("flags", ["UP"])
    if not isinstance(flags, list):
        raise ValueError("flags is not a list")  # noqa: TRY004
    return flags


def _vxlan(data: dict[str, Any]) -> Vxlan:
    local = _text(data, "local") or _text(data, "local6")
    return Vxlan(
        ip_address(local) if local else None, _text(data, "link"), _number(data, "port"), bool(data.get("external"))
    )


def _address(entry: dict[str, Any]) -> Interface:
    """Return an address; that of a tunnel has its peer's prefix length, which is not that of its own network."""
    local, length = _text(entry, "local"), _number(entry, "prefixlen")
    own = ip_interface(local)
    return own if "address" in entry else ip_interface(f"{local}/{length}")


def _routes(entry: dict[str, Any], family: Family) -> Iterator[Route]:
    destination = _text(entry, "dst")
    network = ip_network(_DEFAULT[family] if destination == "default" else destination)
    if family_of(network) is not family:
        raise ValueError(f"{destination} is not of {family}")
    for hop in (entry, *_list(entry, "nexthops")):
        device = _device(hop)
        if device or (hop is entry and "nexthops" not in entry):
            yield Route(network, device, "gateway" in hop or "via" in hop, entry.get("protocol") == "ra")


def _device(entry: dict[str, Any]) -> str:
    device = _text(entry, "dev")
    return _name(device) if device else ""


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("not a name of an interface")
    return text


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")  # noqa: TRY004  one error for any wrong JSON
    return value


def _number(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < MAX_NUMBER:
        raise ValueError(f"{key} is not a number")
    return value


def _object(entry: dict[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not an object")  # noqa: TRY004
    return value


def _list(entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{key} is not a list of objects")
    return value


def sample(network: Network) -> Optional[Address]:
    """Return an address of a pod in the network, the last but one; None for a network too small for any."""
    return network[-2] if network.num_addresses > 2 else None
