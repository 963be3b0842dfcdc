"""Answers of the kernel, as bytes, and a socket that gives them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attribute, be32, nft_msg_type, string

NFGENMSG = b"\2\0\0\0"
NEWGEN, NEWRULE = nft_msg_type(uapi.NFT_MSG_NEWGEN), nft_msg_type(uapi.NFT_MSG_NEWRULE)
NEWTABLE, NEWCHAIN = nft_msg_type(uapi.NFT_MSG_NEWTABLE), nft_msg_type(uapi.NFT_MSG_NEWCHAIN)


def encoded(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in pairs)


def expression(name: str, data: bytes) -> bytes:
    body = string(uapi.NFTA_EXPR_NAME, name) + attribute(uapi.NFTA_EXPR_DATA, data)
    return attribute(uapi.NFTA_LIST_ELEM, body)


def rule_reply(*expressions: bytes, handle: int = 7, userdata: bytes = b"", table: str = "nat") -> bytes:
    """The attributes of a rule in POSTROUTING."""
    reply = string(uapi.NFTA_RULE_TABLE, table) + string(uapi.NFTA_RULE_CHAIN, "POSTROUTING")
    reply += attribute(uapi.NFTA_RULE_HANDLE, handle.to_bytes(8, "big"))
    reply += attribute(uapi.NFTA_RULE_EXPRESSIONS, b"".join(expressions))
    return reply + (attribute(uapi.NFTA_RULE_USERDATA, userdata) if userdata else b"")


def generation_reply(generation: int) -> bytes:
    return NFGENMSG + be32(uapi.NFTA_GEN_ID, generation)


def message(kind: int, payload: bytes, sequence: int = 1, flags: int = 0) -> bytes:
    header = struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0)
    return header + payload + b"\0" * (-len(payload) % 4)


def error(number: int, sequence: int = 1) -> bytes:
    return message(uapi.NLMSG_ERROR, struct.pack("=i", -number), sequence)


def done(sequence: int = 1) -> bytes:
    return message(uapi.NLMSG_DONE, bytes(4), sequence)


class Socket:
    """Answers each receive with the next datagram, and keeps what is sent."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams: Iterator[bytes] = iter(datagrams)
        self.sent: list[bytes] = []
        self.flags = 0

    def sendto(self, data: bytes, address: object) -> None:
        self.sent.append(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, object]:
        for datagram in self.datagrams:
            return datagram, [], self.flags, None
        raise TimeoutError("timed out")

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise BlockingIOError

    def settimeout(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def netlink(answers: Socket) -> NetlinkSocket:
    return NetlinkSocket(answers)  # type: ignore[arg-type]
