"""Sends real packets between namespaces, and returns the source address that they arrive with.

Sockets are made inside a namespace and used from outside of it, so a packet costs no process. Every packet gets a
source port of its own, so it is a new connection for conntrack, and thus for NAT.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import time
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.model import Address, Family, Network, Packet
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import ROUTER, SYSCTLS, address, batch, families, route

DEADLINE = 10.0  # seconds, many more than a packet needs on a busy machine
_RESEND = 0.1  # the first packet on a fresh link may fall to neighbour discovery

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# Constants that the socket module has only in later versions of Python, or never.
_SO_MARK = 36
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_PACKET_OUTGOING = 4

_ports = itertools.cycle(range(1024, 32768))
_tokens = itertools.count(int.from_bytes(os.urandom(4), "big") << 32)


class PacketError(MasqError):
    """A packet could not be sent, or did not arrive."""


def udp(sender: Netns, receiver: Netns, packet: Packet, *, device: str = "", deadline: float = DEADLINE) -> Address:
    """Send a datagram; return the source address that it has at the receiver.

    `device` is the one that multicast and link-local packets leave and arrive by.
    """
    with ExitStack() as stack:
        with receiver.entered():
            target = stack.enter_context(_socket(packet.dst, socket.SOCK_DGRAM))
            target.bind(_endpoint(packet.dst, 0, device))
            if packet.dst.is_multicast:
                _join(target, packet.dst, device)
        with sender.entered():
            source = stack.enter_context(_socket(packet.src, socket.SOCK_DGRAM))
            destination = _endpoint(packet.dst, target.getsockname()[1], device)
            _prepare(source, packet, device)
        token = _token()
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            _send(source, token, destination, packet)
            while _readable(target, min(_RESEND, until - time.monotonic())):
                payload, peer = target.recvfrom(2048)
                if payload == token:
                    return _peer(peer)
    raise PacketError(_story("UDP", sender, receiver, packet, f"did not arrive within {deadline:g} s"))


def tcp(sender: Netns, receiver: Netns, packet: Packet, *, device: str = "", deadline: float = DEADLINE) -> Address:
    """Connect, answers included; return the source address that the receiver sees."""
    with ExitStack() as stack:
        with receiver.entered():
            listener = stack.enter_context(_socket(packet.dst, socket.SOCK_STREAM))
            listener.bind(_endpoint(packet.dst, 0, device))
            listener.listen(1)
        with sender.entered():
            source = stack.enter_context(_socket(packet.src, socket.SOCK_STREAM))
            destination = _endpoint(packet.dst, listener.getsockname()[1], device)
            _prepare(source, packet, device)
        # Closing resets the connection, and leaves nothing waiting.
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until = time.monotonic() + deadline
        source.connect_ex(destination)
        poller = select.poll()
        poller.register(source, select.POLLOUT)
        answered = poller.poll(deadline * 1000)
        failure = source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if answered and failure:
            raise PacketError(_story("TCP", sender, receiver, packet, os.strerror(failure)))
        if answered and _readable(listener, until - time.monotonic()):
            connection, peer = listener.accept()
            connection.close()
            return _peer(peer)
    raise PacketError(_story("TCP", sender, receiver, packet, f"did not connect within {deadline:g} s"))


class Wire:
    """A node that sends every packet out by one device, and a socket that listens at that device's other end.

    Any packet that `carries` allows can be sent from the node, even from addresses that the node does not have.
    """

    def __init__(self, *, prefix: str = "wire-", run: Optional[ProcessRunner] = None) -> None:
        self._run = ProcessRunner() if run is None else run
        versions = [family.data.version for family in families()]
        names = [prefix + "node", prefix + "sink"]
        with ExitStack() as undo:
            batch(self._run, [f"netns add {name}" for name in names])
            undo.callback(batch, self._run, [f"netns del {name}" for name in names])
            self.node, self.sink = (Netns(name) for name in names)
            for host in (self.node, self.sink):
                undo.callback(host.close)
                host.sysctl(SYSCTLS)
            self.node.sysctl(ROUTER)
            # Without ARP a packet goes to the device's own hardware address, which is that of its peer, too.
            link = f"link add {_DEVICE} address {_HARDWARE} netns {names[0]} type veth"
            batch(self._run, [f"{link} peer name {_DEVICE} address {_HARDWARE} netns {names[1]}"])
            up = ["link set lo up", f"link set {_DEVICE} arp off up"]
            with self.sink.entered():
                batch(self._run, up)
                self._listeners = {version: undo.enter_context(_listen(_DEVICE, version)) for version in versions}
            with self.node.entered():
                own = [address(_DEVICE, _NODE[version]) for version in versions]
                own += [route(_EVERYWHERE[version], _DEVICE) for version in versions]
                own += [address(_DEVICE, _LINK_LOCAL, 64)] * (6 in versions)
                batch(self._run, up + own)
                self._scope = socket.if_nametoindex(_DEVICE)
            self._undo = undo.pop_all()

    def node_address(self, family: Family, dst: Optional[Address] = None) -> Address:
        """Return the address that the node masquerades with, on the way to `dst`."""
        if isinstance(dst, IPv6Address) and dst.is_link_local:
            return _LINK_LOCAL
        return _NODE[family.data.version]

    def carries(self, packet: Packet) -> bool:
        """Return True if the kernel sends such a packet out, and by the device."""
        return packet.dst.version in self._listeners and carries(packet)

    def observe(self, packet: Packet, *, deadline: float = DEADLINE) -> Address:
        """Send it as UDP from the node; return the source address that it leaves with."""
        token = _token()
        with self.node.entered(), _socket(packet.src, socket.SOCK_DGRAM) as source:
            if packet.src.version == 4:
                source.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                source.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            _prepare(source, packet, _DEVICE)
            _send(source, token, _endpoint(packet.dst, 9, _DEVICE), packet)
        listener = self._listeners[packet.dst.version]
        until = time.monotonic() + deadline
        while _readable(listener, until - time.monotonic()):
            frame, origin = listener.recvfrom(65535)
            if origin[2] != _PACKET_OUTGOING and frame.endswith(token):
                return _source(frame)
        raise PacketError(f"{_text(packet)} never left the node, within {deadline:g} s")

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def carries(packet: Packet) -> bool:
    """Return True if a `Wire` can carry the packet, on a kernel that has the family."""
    src, dst = ends = packet.src, packet.dst
    if src.version != dst.version or src.is_multicast or dst in (*_NODE.values(), _LINK_LOCAL):
        return False
    if any(end.is_loopback or end.is_unspecified for end in ends):
        return False
    if isinstance(src, IPv4Address):
        # 'This network' and the broadcast address are neither sources nor routed.
        return not any(int(end) >> 24 == 0 or int(end) == 0xFFFFFFFF for end in ends)
    mapped = any(isinstance(end, IPv6Address) and end.ipv4_mapped is not None for end in ends)
    # The scopes 0 and 1 of multicast never leave the machine.
    return not mapped and not (dst.is_multicast and (int(dst) >> 112) & 0xF < 2)


_DEVICE = "wire0"
_HARDWARE = "02:00:00:00:00:01"
_NODE: dict[int, Address] = {4: IPv4Address("203.0.113.1"), 6: IPv6Address("2001:db8:ffff::1")}
_LINK_LOCAL = IPv6Address("fe80::1")
_EVERYWHERE: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


def _listen(device: str, version: int) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    listener.bind((device, _ETH_P_IP if version == 4 else _ETH_P_IPV6))
    return listener


def _source(frame: bytes) -> Address:
    if frame[0] >> 4 == 4:
        return IPv4Address(frame[12:16])
    return IPv6Address(frame[8:24])


def _socket(value: Address, kind: int) -> socket.socket:
    made = socket.socket(_FAMILIES[value.version], kind | socket.SOCK_NONBLOCK)
    if value.version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _endpoint(value: Address, port: int, device: str) -> tuple[Any, ...]:
    """Return the address as the socket module takes it. Valid only in the namespace of `device`."""
    if value.version == 4:
        return (str(value), port)
    scoped = value.is_link_local or value.is_multicast
    return (str(value), port, 0, socket.if_nametoindex(device) if scoped else 0)


def _prepare(source: socket.socket, packet: Packet, device: str) -> None:
    """Bind the socket to the packet's source and a new port, and set the mark."""
    source.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("I", packet.mark))
    if packet.dst.is_multicast:
        index = socket.if_nametoindex(device)
        if packet.dst.version == 4:
            source.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", index))
            source.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            source.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            source.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    for port in itertools.islice(_ports, 100):
        try:
            source.bind(_endpoint(packet.src, port, device))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PacketError(f"{_text(packet)}: the node cannot send from there: {error.strerror}") from error
        else:
            return
    raise PacketError(f"{_text(packet)}: no free port")


def _join(target: socket.socket, group: Address, device: str) -> None:
    index = socket.if_nametoindex(device)
    if group.version == 4:
        request = struct.pack("4s4si", group.packed, b"", index)
        target.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    else:
        request = struct.pack("16si", group.packed, index)
        target.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


def _send(source: socket.socket, token: bytes, destination: tuple[Any, ...], packet: Packet) -> None:
    try:
        source.sendto(token, destination)
    except OSError as error:
        raise PacketError(f"{_text(packet)} cannot be sent: {error.strerror}") from error


def _readable(one: socket.socket, timeout: float) -> bool:
    poller = select.poll()
    poller.register(one, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


def _token() -> bytes:
    return b"flanneld-masq" + struct.pack(">Q", next(_tokens))


def _peer(peer: tuple[Any, ...]) -> Address:
    return ip_address(peer[0].partition("%")[0])


def _text(packet: Packet) -> str:
    return f"packet from {packet.src} to {packet.dst}" + (f" with mark {packet.mark:#x}" if packet.mark else "")


def _story(kind: str, sender: Netns, receiver: Netns, packet: Packet, what: str) -> str:
    return f"{kind} {_text(packet)}, by {sender.name} to {receiver.name}, {what}"
