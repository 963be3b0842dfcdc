"""Reads what the kernel says about traced packets: each rule that a packet passes, with its verdict.

Formats: NFT_MSG_TRACE in include/uapi/linux/netfilter/nf_tables.h of the kernel for nf_tables. ip_tables reports as a
logger: a packet of linux/netfilter/nfnetlink_log.h, whose prefix is "TRACE: TABLE:CHAIN:KIND:NUMBER " (trace_packet in
net/ipv4/netfilter/ip_tables.c). One socket receives both, so they come in the order in which the kernel sent them.
"""

from __future__ import annotations

import enum
import errno
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Union

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import raise_error
from flanneld_masq.kernel.netlink_wire import (
    NFGENMSG,
    attribute,
    attributes,
    be32,
    message,
    messages_in,
    nfnl_msg_type,
    nft_msg_type,
    text,
    u32,
    u64,
)
from flanneld_masq.model import SLOTS, Address
from flanneld_masq.printable import printable

_TRACE = nft_msg_type(uapi.NFT_MSG_TRACE)
_LOG, _LOG_CONFIG = (
    nfnl_msg_type(uapi.NFNL_SUBSYS_ULOG, kind) for kind in (uapi.NFULNL_MSG_PACKET, uapi.NFULNL_MSG_CONFIG)
)
_ATTEMPT = "reading a trace"
_QUEUE = 4 << 20  # bytes
_BUFFER = 1 << 16  # bytes
_DATAGRAMS = 256  # that one call reads
_CONFIG_TIMEOUT = 10.0  # seconds; the kernel answers during the send
_COPIED_BYTES = 128  # of a packet that ip_tables reports: the headers
_PREFIX = re.compile(r"TRACE: ([^:]{1,32}):(.{1,32}):(rule|return|policy):([0-9]{1,10}) ?", re.ASCII)
_PORTS = frozenset((socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, socket.IPPROTO_UDPLITE))
_VERDICTS = {
    uapi.NF_DROP: "drop",
    uapi.NF_ACCEPT: "accept",
    uapi.NF_STOLEN: "stolen",
    uapi.NF_QUEUE: "queue",
    uapi.NF_REPEAT: "repeat",
    uapi.NFT_CONTINUE: "continue",
    uapi.NFT_BREAK: "break",
    uapi.NFT_JUMP: "jump",
    uapi.NFT_GOTO: "goto",
    uapi.NFT_RETURN: "return",
}


class StepKind(enum.Enum):
    """Why the kernel reports: a rule matched, a chain ended and its caller goes on, or the policy of a hook applied."""

    RULE = "rule"
    RETURN = "return"
    POLICY = "policy"


_KINDS = {
    uapi.NFT_TRACETYPE_POLICY: StepKind.POLICY,
    uapi.NFT_TRACETYPE_RETURN: StepKind.RETURN,
    uapi.NFT_TRACETYPE_RULE: StepKind.RULE,
}


@dataclass(frozen=True, **SLOTS)
class Header:
    """The headers of a packet, and the devices (indexes, 0 for none) that it came by and leaves by.

    Ports are 0 if the protocol has none, or if they are not there.
    """

    src: Address
    dst: Address
    proto: int
    sport: int = 0
    dport: int = 0
    iif: int = 0
    oif: int = 0


@dataclass(frozen=True, **SLOTS)
class NftStep:
    """One step of a packet through nf_tables.

    `nfproto` is the family of the table (NFPROTO_*), `packet` the kernel's number for the packet, which later packets
    may have again. The `header` comes with the first step of each base chain.
    """

    nfproto: int
    table: str
    chain: str
    kind: StepKind
    packet: int
    handle: int = 0
    verdict: str = ""
    target: str = ""
    header: Header | None = None
    mark: int = 0


@dataclass(frozen=True, **SLOTS)
class LegacyStep:
    """One step of a packet through ip_tables. `number` counts the rules of the chain from 1; the policy has one more
    than the last rule."""

    table: str
    chain: str
    kind: StepKind
    number: int
    hook: int
    header: Header | None


Step = Union[NftStep, LegacyStep]


class TraceSocket:
    """Receives the steps of traced packets, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, uapi.NETLINK_NETFILTER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE)
            self._socket.settimeout(_CONFIG_TIMEOUT)
            self._socket.bind((0, 0))
        except OSError as error:
            raise KernelError("listening for traces", error.strerror or "", error.errno or 0) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive_logs(self) -> None:
        """Receive what the kernel logs to group 0 of nfnetlink_log, as ip_tables does. Call it before `listen`. Raises
        KernelError, for example if another program receives that group."""
        for body in log_requests():
            self._configure(body)

    def listen(self) -> None:
        """Receive the steps through nf_tables from now on. Raises KernelError."""
        try:
            self._socket.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, uapi.NFNLGRP_NFTRACE)
            self._socket.setblocking(False)
        except OSError as error:
            raise KernelError("listening for traces", error.strerror or "", error.errno or 0) from error

    def read(self) -> tuple[tuple[Step, ...], bool]:
        """Return steps since the last call, and True if some are lost: they were too many, or cannot be read. A flood
        is read in several calls."""
        steps: list[Step] = []
        lost = False
        for _ in range(_DATAGRAMS):
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(_ATTEMPT, error.strerror or "", error.errno or 0) from error
                lost = True
                continue
            try:
                steps += parse_steps(data)
            except KernelError:
                lost = True
        return tuple(steps), lost

    def _configure(self, body: bytes) -> None:
        attempt = "asking for the log of ip_tables"
        flags = uapi.NLM_F_REQUEST | uapi.NLM_F_ACK
        try:
            self._socket.sendto(message(_LOG_CONFIG, flags, uapi.NFPROTO_UNSPEC, 0, body, 1), (0, 0))
            answer = self._socket.recv(_BUFFER)
        except OSError as error:
            raise KernelError(attempt, error.strerror or "", error.errno or 0) from error
        for kind, its_flags, *_, payload in messages_in(answer, attempt):
            if kind == uapi.NLMSG_ERROR:
                raise_error(attempt, its_flags, payload)


def log_requests() -> tuple[bytes, ...]:
    """Return the bodies that bind a socket to the group and have each packet sent at once, headers only."""
    mode = attribute(uapi.NFULA_CFG_MODE, struct.pack(">IBB", _COPIED_BYTES, uapi.NFULNL_COPY_PACKET, 0))
    return (
        attribute(uapi.NFULA_CFG_CMD, bytes((uapi.NFULNL_CFG_CMD_BIND,))),
        mode + be32(uapi.NFULA_CFG_QTHRESH, 1),
    )


def parse_steps(datagram: bytes) -> Iterator[Step]:
    """Yield the steps in a datagram; messages of other kinds and other programs' logs are left out. Raises
    KernelError."""
    for kind, _, _, _, payload in messages_in(datagram, _ATTEMPT):
        if kind == _TRACE:
            yield _nft_step(payload)
        elif kind == _LOG and (step := _legacy_step(payload)) is not None:
            yield step


def _nft_step(payload: bytes) -> NftStep:
    nfproto, values = _opened(payload)
    kind = _KINDS.get(u32(values.get(uapi.NFTA_TRACE_TYPE)))
    if kind is None:
        raise KernelError(_ATTEMPT, "it has an unknown type")
    verdict, target = _verdict(values, kind)
    return NftStep(
        nfproto,
        _name(values.get(uapi.NFTA_TRACE_TABLE)),
        _name(values.get(uapi.NFTA_TRACE_CHAIN)),
        kind,
        u32(values.get(uapi.NFTA_TRACE_ID)),
        u64(values.get(uapi.NFTA_TRACE_RULE_HANDLE)),
        verdict,
        target,
        _header(
            values.get(uapi.NFTA_TRACE_NETWORK_HEADER, b""),
            values.get(uapi.NFTA_TRACE_TRANSPORT_HEADER, b""),
            u32(values.get(uapi.NFTA_TRACE_IIF)),
            u32(values.get(uapi.NFTA_TRACE_OIF)),
        ),
        u32(values.get(uapi.NFTA_TRACE_MARK)),
    )


def _opened(payload: bytes) -> tuple[int, dict[int, bytes]]:
    """Return the family in struct nfgenmsg and the attributes behind it."""
    if len(payload) < NFGENMSG.size:
        raise KernelError(_ATTEMPT, "it is cut short")
    return payload[0], dict(attributes(payload[NFGENMSG.size :]))


def _verdict(values: dict[int, bytes], kind: StepKind) -> tuple[str, str]:
    """Return the verdict, and the chain that it names."""
    if kind is StepKind.POLICY:
        return _verdict_name(u32(values.get(uapi.NFTA_TRACE_POLICY))), ""
    verdict = dict(attributes(values.get(uapi.NFTA_TRACE_VERDICT, b"")))
    code = u32(verdict.get(uapi.NFTA_VERDICT_CODE))
    return _verdict_name(code - (1 << 32) if code >> 31 else code), _name(verdict.get(uapi.NFTA_VERDICT_CHAIN))


def _verdict_name(code: int) -> str:
    known = code if code < 0 else code & uapi.NF_VERDICT_MASK
    return _VERDICTS.get(known, f"verdict {code}")


def _legacy_step(payload: bytes) -> LegacyStep | None:
    """Return None for what another rule logs."""
    _, values = _opened(payload)
    prefix = _PREFIX.fullmatch(text(values.get(uapi.NFULA_PREFIX)))
    packet = values.get(uapi.NFULA_PACKET_HDR, b"")
    if prefix is None:
        return None
    if len(packet) < 3:  # struct nfulnl_msg_packet_hdr: protocol (2 bytes), hook, padding
        raise KernelError(_ATTEMPT, "the header of a logged packet is cut short")
    table, chain, kind, number = prefix.groups()
    return LegacyStep(
        printable(table),
        printable(chain),
        StepKind(kind),
        int(number),
        packet[2],
        _header(
            values.get(uapi.NFULA_PAYLOAD, b""),
            None,
            u32(values.get(uapi.NFULA_IFINDEX_INDEV)),
            u32(values.get(uapi.NFULA_IFINDEX_OUTDEV)),
        ),
    )


def _header(network: bytes, transport: bytes | None, iif: int, oif: int) -> Header | None:
    """Decode the headers of a packet. If `transport` is None, it follows the network header. Return None if the packet
    is not IP, or not whole."""
    version = network[0] >> 4 if network else 0
    if version == 4 and len(network) >= 20:
        length, proto = (network[0] & 15) * 4, network[9]
        src: Address = IPv4Address(network[12:16])
        dst: Address = IPv4Address(network[16:20])
        first = not int.from_bytes(network[6:8], "big") & 0x1FFF  # only the first fragment has a transport header
    elif version == 6 and len(network) >= 40:
        length, proto, first = 40, network[6], True
        src, dst = IPv6Address(network[8:24]), IPv6Address(network[24:40])
    else:
        return None
    ports = network[length : length + 4] if transport is None else transport[:4]
    if proto not in _PORTS or not first or len(ports) < 4:
        return Header(src, dst, proto, iif=iif, oif=oif)
    sport, dport = struct.unpack(">HH", ports)
    return Header(src, dst, proto, sport, dport, iif, oif)


def _name(data: bytes | None) -> str:
    return printable(text(data))
