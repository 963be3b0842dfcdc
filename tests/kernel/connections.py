"""Real flows through the node, and entries of its connection table that no packet made."""

from __future__ import annotations

import ipaddress
import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Optional

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attribute, attributes, be32, message, nested, nfnl_msg_type, u32
from flanneld_masq.model import Address, Family
from flanneld_masq.selftest.netns import Netns

NEW = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_NEW)
GET = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_GET)
NLM_F_EXCL = 0x200
CTA_TUPLE_PROTO, CTA_TIMEOUT = 2, 7
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
IPS_CONFIRMED = 1 << 3
_KINDS = {4: socket.AF_INET, 6: socket.AF_INET6}
_ports = itertools.count(20000)


class UdpFlow:
    """A flow of one source port from one host to another."""

    def __init__(self, sender: Netns, receiver: Netns, src: Address, dst: Address) -> None:
        self.src, self.dst = src, dst
        kind = _KINDS[src.version]
        with receiver.entered():
            self._target = socket.socket(kind, socket.SOCK_DGRAM)
            self._target.bind((str(dst), 0))
            self._target.settimeout(0.2)
        with sender.entered():
            self._source = socket.socket(kind, socket.SOCK_DGRAM)
            self._source.bind((str(src), next(_ports)))
            self._source.settimeout(0.2)
        self._peer: tuple[object, ...] = ()
        self._numbers = itertools.count()

    def send(self) -> Optional[Address]:
        """Send a packet; return the source address that it arrives with, None if it does not arrive."""
        token = str(next(self._numbers)).encode()
        self._source.sendto(token, self._target.getsockname()[:2])
        try:
            while True:
                data, peer = self._target.recvfrom(64)
                if data == token:
                    self._peer = peer
                    return ipaddress.ip_address(peer[0])
        except OSError:
            return None

    def answer(self) -> bool:
        """Answer the last packet; return True if the answer arrives."""
        self._target.sendto(b"answer", self._peer)
        try:
            return self._source.recv(64) == b"answer"
        except OSError:
            return False

    def close(self) -> None:
        self._target.close()
        self._source.close()


class TcpConnection:
    """An established connection."""

    def __init__(self, sender: Netns, receiver: Netns, src: Address, dst: Address) -> None:
        kind = _KINDS[src.version]
        with receiver.entered():
            listener = socket.socket(kind, socket.SOCK_STREAM)
            listener.bind((str(dst), 0))
            listener.listen(1)
        with sender.entered():
            self._source = socket.socket(kind, socket.SOCK_STREAM)
            self._source.settimeout(10)
            self._source.bind((str(src), next(_ports)))
        self._source.connect(listener.getsockname()[:2])
        self._target, peer = listener.accept()
        listener.close()
        self._target.settimeout(10)
        self.peer = ipaddress.ip_address(peer[0])

    def talks(self) -> bool:
        """Return True if data passes in both directions."""
        self._source.sendall(b"there")
        self._target.sendall(self._target.recv(64))
        return self._source.recv(64) == b"there"

    def close(self) -> None:
        self._source.close()
        self._target.close()


@contextmanager
def flows(sender: Netns, receiver: Netns, src: Address, dst: Address, number: int) -> Iterator[list[UdpFlow]]:
    with ExitStack() as stack:
        made = []
        for _ in range(number):
            made.append(UdpFlow(sender, receiver, src, dst))
            stack.callback(made[-1].close)
        yield made


def ping(src: Address, dst: Address) -> None:
    """Send one echo request, from the calling thread's namespace."""
    request = {4: 8, 6: 128}[src.version]
    protocol = socket.IPPROTO_ICMP if src.version == 4 else socket.IPPROTO_ICMPV6
    number, sequence = 0x1234, 1
    checksum = ~((request << 8) + number + sequence) & 0xFFFF  # IPv6 overwrites it
    with socket.socket(_KINDS[src.version], socket.SOCK_RAW, protocol) as source:
        source.bind((str(src), 0))
        source.sendto(struct.pack("!BBHHH", request, 0, checksum, number, sequence), (str(dst), 0))


def _tuple(kind: int, src: Address, dst: Address, ports: tuple[int, int]) -> bytes:
    version4 = src.version == 4
    source, destination = (
        (uapi.CTA_IP_V4_SRC, uapi.CTA_IP_V4_DST) if version4 else (uapi.CTA_IP_V6_SRC, uapi.CTA_IP_V6_DST)
    )
    addresses = attribute(source, src.packed) + attribute(destination, dst.packed)
    protocol = attribute(CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    for number, port in zip((CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT), ports):
        protocol += attribute(number, struct.pack("!H", port))
    return nested(kind, nested(uapi.CTA_TUPLE_IP, addresses) + nested(CTA_TUPLE_PROTO, protocol))


def entry(src: Address, dst: Address, ports: tuple[int, int], *, status: int = 0, zone: int = 0) -> bytes:
    """The attributes of a new connection. Its timeout is an hour."""
    body = _tuple(uapi.CTA_TUPLE_ORIG, src, dst, ports) + _tuple(uapi.CTA_TUPLE_REPLY, dst, src, ports[::-1])
    body += be32(CTA_TIMEOUT, 3600) + be32(uapi.CTA_STATUS, IPS_CONFIRMED | status)
    return body + (attribute(uapi.CTA_ZONE, struct.pack("!H", zone)) if zone else b"")


def insert(family: Family, entries: Sequence[bytes]) -> None:
    """Add connections to the table of the calling thread's namespace."""
    flags = uapi.NLM_F_REQUEST | uapi.NLM_F_CREATE | NLM_F_EXCL
    requests = [message(NEW, flags, family.data.nfproto, 0, body, 1) for body in entries]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uapi.NETLINK_NETFILTER) as writer:
        writer.bind((0, 0))
        for start in range(0, len(requests), 200):
            writer.sendto(b"".join(requests[start : start + 200]), (0, 0))
        writer.setblocking(False)
        try:
            refused = writer.recv(1 << 16)  # only errors are answered
        except BlockingIOError:
            return
    raise AssertionError(f"the kernel refused a connection: {refused.hex()}")


def statuses(family: Family) -> list[int]:
    """The status of every connection of a family, in the calling thread's namespace."""
    reader = NetlinkSocket()
    replies = reader.request("reading connections", GET, family.data.nfproto, b"", dump=True)
    reader.close()
    return [u32(dict(attributes(reply))[uapi.CTA_STATUS]) for reply in replies]
