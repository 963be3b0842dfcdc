"""Defines the packet that is followed, and the connection that it belongs to."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS, Address, Family, family_of

TCP, UDP, ICMP, ICMPV6, SCTP, DCCP, UDPLITE = 6, 17, 1, 58, 132, 33, 136
WITH_PORTS = frozenset({TCP, UDP, SCTP, DCCP, UDPLITE})
ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
SYN, ACK = 0x02, 0x10


class CtState(enum.Enum):
    """The state that connection tracking gives a packet."""

    NEW = "new"
    ESTABLISHED = "established"
    RELATED = "related"
    INVALID = "invalid"
    UNTRACKED = "untracked"


@dataclass(frozen=True, **SLOTS)
class Endpoint:
    """One end of a flow. `port` is None if it is unknown or the protocol has none."""

    address: Address
    port: Optional[int] = None

    def __str__(self) -> str:
        if self.port is None:
            return str(self.address)
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, **SLOTS)
class Connection:
    """A connection as its first packet left it: the ends before (`src`, `dst`) and after (`new_src`, `new_dst`) NAT.

    `mark` is the mark of the connection. None stands for one that is not known.
    """

    src: Endpoint
    dst: Endpoint
    new_src: Endpoint
    new_dst: Endpoint
    mark: Optional[int] = 0


@dataclass(frozen=True, **SLOTS)
class Packet:
    """A packet as it reaches the node, or as the node makes it.

    `proto` is the number of the protocol. A port is None if it can be any. `iif` is the device that it arrives by,
    empty for a packet of the node itself. An established packet belongs to `connection`, in the direction of its first
    packet or, with `reply`, against it. `tcp_flags` None stands for those that the state implies. `uid` is the owner of
    the socket of a packet of the node.

    Of ICMPv6, an untracked packet is a neighbour solicitation or, with `reply`, an advertisement: the kernel tracks
    neither. Source: net/netfilter/nf_conntrack_proto_icmpv6.c.
    """

    src: Address
    dst: Address
    proto: int = UDP
    sport: Optional[int] = None
    dport: Optional[int] = None
    iif: str = ""
    mark: int = 0
    state: CtState = CtState.NEW
    reply: bool = False
    connection: Optional[Connection] = None
    tcp_flags: Optional[int] = None
    uid: Optional[int] = None

    @property
    def family(self) -> Family:
        return family_of(self.src)

    @property
    def flags(self) -> int:
        if self.tcp_flags is not None:
            return self.tcp_flags
        if self.state is CtState.NEW:
            return SYN
        return ACK

    @property
    def source(self) -> Endpoint:
        return Endpoint(self.src, self.sport)

    @property
    def destination(self) -> Endpoint:
        return Endpoint(self.dst, self.dport)
