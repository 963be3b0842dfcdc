"""The state of a packet on its way: what rules changed so far, what they can read, and which rules decided."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Callable, Optional

from flanneld_masq.model import SLOTS, Address, Family
from flanneld_masq.packet_path import names
from flanneld_masq.packet_path.packet import (
    ECHO_REQUEST,
    ICMP,
    ICMPV6,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    TCP,
    WITH_PORTS,
    CtState,
    Endpoint,
    Packet,
)
from flanneld_masq.packet_path.routing import LOCAL, LOOPBACK, Route, Routing
from flanneld_masq.packet_path.rules import Field, Hook, Place
from flanneld_masq.packet_path.values import MISSING, UNKNOWN, Choices, Value

CONNTRACK_PRIORITY = -200  # NF_IP_PRI_CONNTRACK


class Effect(str, enum.Enum):
    """The effect of a rule on the packet."""

    DROPPED = "dropped"
    REJECTED = "rejected"
    ACCEPTED = "accepted"
    TRANSLATED = "translated"
    MARKED = "marked"
    UNTRACKED = "untracked"
    MAY = "may"  # the rule could not be evaluated


@dataclass(frozen=True, **SLOTS)
class Step:
    """A rule that decided something, with the jumps that led to it. `tracked` is False where connection tracking has
    not seen the packet yet."""

    hook: Hook
    place: Place
    effect: Effect
    detail: str = ""
    jumps: tuple[Place, ...] = ()
    tracked: bool = True


@dataclass(frozen=True, **SLOTS)
class Nat:
    """The NAT of a flow so far. `source_done` and `destination_done` say that the kernel looks no further."""

    source_done: bool = False
    destination_done: bool = False
    source: bool = False
    destination: bool = False


@dataclass(frozen=True, **SLOTS)
class State:
    """A packet on its way. `first` is the packet as it came; `src`, `dst` and `mark` are as rules left them.

    A port or mark of None is not known. `untracked` is True behind a rule that keeps tracking away, `unknown_end`
    behind one that may have written any address. `uncertain` is True if a test on this way could not be evaluated.
    """

    first: Packet
    src: Endpoint
    dst: Endpoint
    mark: Optional[int]
    ct_mark: Optional[int]
    untracked: bool = False
    nat: Nat = Nat()
    route: Optional[Route] = None
    unknown_end: bool = False
    uncertain: bool = False
    steps: tuple[Step, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that later rules can see. Ways that agree in it are one way."""
        return (self.src, self.dst, self.mark, self.ct_mark, self.untracked, self.nat, self.route, self.unknown_end)


def begin(packet: Packet) -> State:
    """Return the state of a packet that has met no rule."""
    connection, untracked = packet.connection, packet.state is CtState.UNTRACKED
    ends = (packet, packet.source, packet.destination, packet.mark)
    if connection is None:
        return State(*ends, 0, untracked)
    translated = (connection.src != connection.new_src, connection.dst != connection.new_dst)
    return State(*ends, connection.mark, untracked, Nat(True, True, *translated))


@dataclass(frozen=True, **SLOTS)
class Scene:
    """Where a chain sees the packet: the hook, the chain's priority, and the node's routes."""

    hook: Hook
    priority: int
    routing: Routing

    @property
    def tracked(self) -> bool:
        """True if connection tracking has seen the packet; both hooks at which it begins run it at one priority."""
        begins = self.hook in (Hook.PREROUTING, Hook.OUTPUT)
        return self.hook is not Hook.INGRESS and (not begins or self.priority > CONNTRACK_PRIORITY)


def read(field: Field, proto: Optional[int], state: State, scene: Scene) -> Value:
    """Return the value of a field of the packet."""
    if proto is not None and state.first.proto != proto:
        return MISSING
    return _READERS[field](state, scene)


def has_connection(state: State, scene: Scene) -> bool:
    """Return True if the packet has an entry of connection tracking here."""
    return scene.tracked and not state.untracked and state.first.state is not CtState.INVALID


def _known(value: Optional[int]) -> Value:
    return UNKNOWN if value is None else value


def _address(kind: type[Address], value: Address) -> Value:
    return int(value) if isinstance(value, kind) else MISSING


def _nfproto(state: State) -> int:
    return (Family.IPV4 if state.src.address.version == 4 else Family.IPV6).data.nfproto


def _has_ethernet(state: State, scene: Scene) -> bool:
    """Return True behind a device, and where the node is about to send by one."""
    return bool(state.first.iif) or scene.hook is Hook.EGRESS


def _port(state: State, endpoint: Endpoint) -> Value:
    return _known(endpoint.port) if state.first.proto in WITH_PORTS else UNKNOWN


def _icmp(state: State, proto: int) -> Value:
    first = state.first
    if first.proto != proto:
        return MISSING
    if proto == ICMPV6 and first.state is CtState.UNTRACKED:
        return NEIGHBOUR_ADVERTISEMENT if first.reply else NEIGHBOUR_SOLICITATION
    return ECHO_REQUEST[proto] if not first.reply else {ICMP: 0, ICMPV6: 129}[proto]


def _iif(state: State, scene: Scene) -> Value:
    return state.first.iif if scene.hook not in (Hook.OUTPUT, Hook.EGRESS) else ""


def _oif(state: State, scene: Scene) -> Value:
    if scene.hook in (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT) or state.route is None:
        return ""
    return state.route.device if state.route.kind != LOCAL else LOOPBACK


def _port_in(state: State, scene: Scene) -> Value:
    """Return the port by which a bridge got the packet: one of its ports, empty without a bridge that calls rules."""
    device = state.first.iif
    if not device or not scene.routing.bridge_calls(device):
        return ""
    return Choices(scene.routing.ports(device))


def _group(device: Value, scene: Scene) -> Value:
    """Return the group of a device. A name other than "default" stands for a number that the snapshot does not have."""
    if not isinstance(device, str) or not device:
        return MISSING
    text = str(scene.routing.links.get(device, {}).get("group", ""))
    return int(text) if text.isdecimal() else names.DEVICE_GROUPS.get(text, UNKNOWN)


def _type(device: Value, scene: Scene) -> Value:
    """Return the type of a device."""
    if not isinstance(device, str) or not device:
        return MISSING
    return names.DEVICE_TYPES.get(str(scene.routing.links.get(device, {}).get("link_type")), UNKNOWN)


def _version(number: int, state: State) -> Value:
    return number if state.src.address.version == number else MISSING


def _state_bit(state: State, scene: Scene) -> int:
    if state.untracked:
        return names.STATE_BITS[CtState.UNTRACKED]
    if not scene.tracked:
        return names.STATE_BITS[CtState.INVALID]
    return names.STATE_BITS[state.first.state]


def _state_and_nat(state: State, scene: Scene) -> Value:
    bits = _state_bit(state, scene)
    if has_connection(state, scene):
        bits |= names.SNAT_BIT * state.nat.source | names.DNAT_BIT * state.nat.destination
    return bits


def _status(state: State, scene: Scene) -> Value:
    """Return the bits that NAT sets. Those of the connection's age are set only if it has one."""
    if not has_connection(state, scene):
        return MISSING
    if state.first.state is CtState.NEW and not state.nat.source_done and not state.nat.destination_done:
        return 0
    bits = 0x10 * state.nat.source | 0x20 * state.nat.destination
    bits |= 0x80 * state.nat.source_done | 0x100 * state.nat.destination_done
    return bits if state.first.state is CtState.NEW else bits | 0x188 | 0x2


def _ct_mark(state: State, scene: Scene) -> Value:
    return _known(state.ct_mark) if has_connection(state, scene) else MISSING


def _direction(state: State, scene: Scene) -> Value:
    return int(state.first.reply) if has_connection(state, scene) else MISSING


def _original(state: State, scene: Scene, *, source: bool) -> Value:
    """Return an address of the first packet of the flow."""
    if not has_connection(state, scene):
        return MISSING
    connection = state.first.connection
    if connection is not None:
        return int((connection.src if source else connection.dst).address)
    return int(state.first.src if source else state.first.dst)


def _original_port(state: State, scene: Scene) -> Value:
    if not has_connection(state, scene):
        return MISSING
    connection = state.first.connection
    return _known(connection.dst.port if connection is not None else state.first.dport)


def _unread(state: State, scene: Scene) -> Value:
    return UNKNOWN if has_connection(state, scene) else MISSING


def _packet_type(state: State, _: Scene) -> Value:
    address = state.dst.address
    if address.is_multicast:
        return names.PACKET_TYPES["multicast"]
    return names.PACKET_TYPES["host"] if state.first.iif else UNKNOWN


def _type_at(address: Address, device: Value, scene: Scene) -> Value:
    """Return the type of an address for one device."""
    return _known(scene.routing.type_at(address, device)) if isinstance(device, str) and device else UNKNOWN


def _uid(state: State, scene: Scene) -> Value:
    """Return the owner of the packet's socket. A packet that the node forwards has none."""
    if not state.first.iif:
        return _known(state.first.uid)
    return UNKNOWN if scene.hook is Hook.INPUT else MISSING


def _reverse(state: State, scene: Scene, *, strict: bool, marked: bool = False) -> Value:
    """Return the device towards the source, with the packet's mark or without one."""
    mark = state.mark if marked else 0
    if not state.first.iif or mark is None:
        return UNKNOWN
    found = scene.routing.reverse_device(state.src.address, state.first.iif, mark, strict=strict)
    return UNKNOWN if found is None else found


_Reader = Callable[[State, Scene], Value]
_READERS: Mapping[Field, _Reader] = {
    Field.NFPROTO: lambda state, _: _nfproto(state),
    Field.ETHER_TYPE: lambda state, scene: _nfproto(state) if _has_ethernet(state, scene) else MISSING,
    Field.VERSION4: lambda state, _: _version(4, state),
    Field.VERSION6: lambda state, _: _version(6, state),
    Field.PROTO: lambda state, _: state.first.proto,
    Field.SADDR4: lambda state, _: _address(IPv4Address, state.src.address),
    Field.DADDR4: lambda state, _: _address(IPv4Address, state.dst.address),
    Field.SADDR6: lambda state, _: _address(IPv6Address, state.src.address),
    Field.DADDR6: lambda state, _: _address(IPv6Address, state.dst.address),
    Field.SPORT: lambda state, _: _port(state, state.src),
    Field.DPORT: lambda state, _: _port(state, state.dst),
    Field.TCP_FLAGS: lambda state, _: state.first.flags if state.first.proto == TCP else MISSING,
    Field.ICMP_TYPE: lambda state, _: _icmp(state, ICMP),
    Field.ICMPV6_TYPE: lambda state, _: _icmp(state, ICMPV6),
    Field.IIFNAME: _iif,
    Field.OIFNAME: _oif,
    Field.PHYSDEV_IN: _port_in,
    Field.IIFGROUP: lambda state, scene: _group(_iif(state, scene), scene),
    Field.OIFGROUP: lambda state, scene: _group(_oif(state, scene), scene),
    Field.IIFTYPE: lambda state, scene: _type(_iif(state, scene), scene),
    Field.OIFTYPE: lambda state, scene: _type(_oif(state, scene), scene),
    Field.MARK: lambda state, _: _known(state.mark),
    Field.CT_STATE: _state_bit,
    Field.CT_STATE_NAT: _state_and_nat,
    Field.CT_STATUS: _status,
    Field.CT_MARK: _ct_mark,
    Field.CT_DIRECTION: _direction,
    Field.CT_SADDR: lambda state, scene: _original(state, scene, source=True),
    Field.CT_DADDR: lambda state, scene: _original(state, scene, source=False),
    Field.CT_DPORT: _original_port,
    Field.CT_REPLY_SADDR: _unread,
    Field.CT_REPLY_DADDR: _unread,
    Field.SOURCE_TYPE: lambda state, scene: scene.routing.type_of(state.src.address),
    Field.DESTINATION_TYPE: lambda state, scene: scene.routing.type_of(state.dst.address),
    Field.SOURCE_TYPE_IIF: lambda state, scene: _type_at(state.src.address, _iif(state, scene), scene),
    Field.DESTINATION_TYPE_IIF: lambda state, scene: _type_at(state.dst.address, _iif(state, scene), scene),
    Field.SOURCE_TYPE_OIF: lambda state, scene: _type_at(state.src.address, _oif(state, scene), scene),
    Field.DESTINATION_TYPE_OIF: lambda state, scene: _type_at(state.dst.address, _oif(state, scene), scene),
    Field.REVERSE_OIF: lambda state, scene: _reverse(state, scene, strict=False),
    Field.REVERSE_OIF_STRICT: lambda state, scene: _reverse(state, scene, strict=True),
    Field.REVERSE_OIF_MARK: lambda state, scene: _reverse(state, scene, strict=False, marked=True),
    Field.REVERSE_OIF_MARK_STRICT: lambda state, scene: _reverse(state, scene, strict=True, marked=True),
    Field.PKTTYPE: _packet_type,
    Field.UID: _uid,
    Field.FRAGMENT: lambda state, _: 0 if state.src.address.version == 4 else MISSING,
}
