"""Netlink messages and attributes as bytes, in both directions. Pure.

Formats: struct nlmsghdr and struct nlattr in include/uapi/linux/netlink.h of the kernel, struct nfgenmsg in
linux/netfilter/nfnetlink.h beside it. Headers are in host byte order, numbers of nf_tables in network byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.uapi import NFNETLINK_V0, NFNL_SUBSYS_NFTABLES, NLA_F_NESTED, NLA_TYPE_MASK

NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence number, netlink port
NFGENMSG = struct.Struct(">BBH")  # nfproto, version, resource
_NLATTR = struct.Struct("=HH")  # length, type
_MAX_LENGTH = 0xFFFF  # bytes, of an attribute

FIXED_SEQUENCE = 0xFFFFFFFF  # of requests that are encoded once and sent many times; no other request has it


def aligned(length: int) -> int:
    """Round a length in bytes up to where the next message or attribute begins (NLMSG_ALIGN). Loops write it out, for
    a call costs as much as the rest of their body."""
    return (length + 3) & ~3


def message(kind: int, flags: int, nfproto: int, resource: int, body: bytes, sequence: int) -> bytes:
    """Encode one nfnetlink message, whose `body` is an attribute stream."""
    header = NLMSGHDR.pack(NLMSGHDR.size + NFGENMSG.size + len(body), kind, flags, sequence, 0)
    return header + NFGENMSG.pack(nfproto, NFNETLINK_V0, resource) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded to where the next one begins. Raises KernelError for a value that is too long."""
    length = 4 + len(value)
    if length > _MAX_LENGTH:
        raise KernelError("encoding a netlink attribute", f"its value has {len(value)} bytes")
    return _NLATTR.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, value: bytes) -> bytes:
    """Encode one attribute whose value is an attribute stream."""
    return attribute(kind | NLA_F_NESTED, value)


def string(kind: int, value: str) -> bytes:
    """Encode one attribute that holds a string with its terminating zero."""
    return attribute(kind, value.encode() + b"\0")


def be32(kind: int, value: int) -> bytes:
    """Encode one attribute that holds an unsigned number of 32 bits."""
    return attribute(kind, value.to_bytes(4, "big"))


def nfnl_msg_type(subsystem: int, kind: int) -> int:
    """Return the nlmsg_type of a message of an nfnetlink subsystem."""
    return subsystem << 8 | kind


def nft_msg_type(kind: int) -> int:
    """Return the nlmsg_type of an NFT_MSG_* message."""
    return nfnl_msg_type(NFNL_SUBSYS_NFTABLES, kind)


def messages_in(data: bytes, attempt: str) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield type, flags, sequence number, port and payload of each message of a datagram. Raises KernelError if one is
    cut short; `attempt` says in it what the caller is doing."""
    offset, end = 0, len(data)
    while offset < end:
        if offset + NLMSGHDR.size > end:
            raise KernelError(attempt, "the answer is cut short")
        length, kind, flags, sequence, port = NLMSGHDR.unpack_from(data, offset)
        if length < NLMSGHDR.size or offset + length > end:
            raise KernelError(attempt, "the answer is cut short")
        yield kind, flags, sequence, port, data[offset + NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the (type, value) pairs of an attribute stream. Raises KernelError if it is cut short."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _NLATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise KernelError("reading a netlink attribute", "it is cut short")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    if offset < end:
        raise KernelError("reading a netlink attribute", "it is cut short")


def u32(data: bytes | None) -> int:
    """Decode an unsigned number of 32 bits; 0 if the attribute is absent."""
    return 0 if data is None else int.from_bytes(data[:4], "big")


def u64(data: bytes | None) -> int:
    """Decode an unsigned number of 64 bits; 0 if the attribute is absent."""
    return 0 if data is None else int.from_bytes(data[:8], "big")


def text(data: bytes | None) -> str:
    """Decode a string without its terminating zero; empty if the attribute is absent."""
    return "" if data is None else data.rstrip(b"\0").decode("utf-8", "replace")
