"""Sends packets of any kind from the hosts of a topology, and sees where and how they arrive."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Optional

from flanneld_masq.model import Address, Family, Network
from flanneld_masq.packet_path.packet import ACK, ICMP, ICMPV6, TCP, UDP, Endpoint, Packet
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import Topology, batch, route

_ETHERTYPE = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
_SO_MARK, _RECVPKTINFO, _PKTINFO = 36, 49, 50
_OUTGOING = 4
_MAGIC = b"packet-path-"
_QUIET_HOST = "table inet quiet { chain input { type filter hook input priority 0; policy drop; }; }"
_DEADLINE, _QUIET = 3.0, 0.03  # seconds


@dataclass(frozen=True)
class Arrival:
    """A packet that arrived: by which device it left the node (empty: it stayed there), and its ends."""

    device: str
    src: Endpoint
    dst: Endpoint


class PacketLab:
    """Sockets in every host of a topology. Neighbours are fixed, so no rule can drop their discovery."""

    def __init__(self, topology: Topology, family: Family) -> None:
        self._family = family
        self._hosts = {
            "cni0": (topology.pod, "eth0"),
            "flannel.1": (topology.remote, "flannel.1"),
            "eth0": (topology.outside, "eth0"),
        }
        self._node = topology.node
        self._sent = 0
        self._of = topology.of(family)
        self._stack = ExitStack()
        self._listeners: dict[socket.socket, tuple[str, int]] = {}
        _fix_neighbours(topology, family)
        for host, _ in self._hosts.values():  # no host answers by itself
            with host.entered():
                ProcessRunner()(("nft", "-f", "-"), stdin=_QUIET_HOST)
        for device, (host, own) in self._hosts.items():
            with host.entered():
                found = self._stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
                found.bind((own, _ETHERTYPE[family]))
            self._listen(found, device, 0)
        with self._node.entered():
            for proto in (TCP, UDP, ICMP if family is Family.IPV4 else ICMPV6):
                self._listen(self._stack.enter_context(self._raw(proto)), "", proto)

    def __enter__(self) -> PacketLab:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pods(self, addresses: Sequence[Address]) -> None:
        """Let the node reach more addresses at the local pod's host."""
        host, device = self._hosts["cni0"]
        with host.entered():
            mac = _mac(device)
        with self._node.entered():
            batch(ProcessRunner(), [_neighbour(one, mac, "cni0") for one in addresses])

    def route(self, network: Network) -> None:
        """Let the outside host reach a network by the node."""
        with self._hosts["eth0"][0].entered():
            batch(ProcessRunner(), [route(network, "eth0", self._of.node)])

    def _listen(self, found: socket.socket, device: str, proto: int) -> None:
        found.setblocking(False)
        self._listeners[found] = (device, proto)

    def _raw(self, proto: int) -> socket.socket:
        if self._family is Family.IPV4:
            return socket.socket(socket.AF_INET, socket.SOCK_RAW, proto)
        made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, proto)
        if proto != socket.IPPROTO_RAW:
            made.setsockopt(socket.IPPROTO_IPV6, _RECVPKTINFO, 1)
        return made

    def send(self, packets: Sequence[Packet], wanted: Sequence[bool]) -> list[Optional[Arrival]]:
        """Send packets and return how each arrived, None for one that did not. Wait for those that are `wanted`."""
        arrived: dict[int, Arrival] = {}
        first, self._sent = self._sent, self._sent + len(packets)
        for number, packet in enumerate(packets, first):
            self._send(packet, _MAGIC + b"%06d" % number)
        missing = {number for number, one in enumerate(wanted, first) if one}
        deadline = time.monotonic() + _DEADLINE
        while True:
            due = missing - arrived.keys() and time.monotonic() < deadline
            ready, _, _ = select.select(list(self._listeners), [], [], 0.1 if due else _QUIET)
            for one in ready:
                for number, arrival in self._read(one):
                    arrived.setdefault(number, arrival)
            if not ready and not due:
                return [arrived.get(number) for number in range(first, self._sent)]

    def _send(self, packet: Packet, token: bytes) -> None:
        host = self._hosts[packet.iif][0] if packet.iif else self._node
        with host.entered(), self._raw(socket.IPPROTO_RAW) as sender:
            if not packet.iif:
                sender.setsockopt(socket.SOL_SOCKET, _SO_MARK, struct.pack("I", packet.mark))
            # A rule of the node's output hook may drop or reject it.
            with contextlib.suppress(*(() if packet.iif else (OSError,))):
                sender.sendto(_bytes(packet, token), (str(packet.dst), 0))

    def _read(self, one: socket.socket) -> Iterator[tuple[int, Arrival]]:
        device, proto = self._listeners[one]
        try:
            data, ancillary, _, origin = one.recvmsg(4096, 256)
        except OSError:
            return
        number = data.rpartition(_MAGIC)[2][:6]
        if not number.isdigit() or (proto == 0 and origin[2] == _OUTGOING):
            return
        if proto and self._family is Family.IPV6:
            own = [value for level, kind, value in ancillary if (level, kind) == (socket.IPPROTO_IPV6, _PKTINFO)]
            ends = ip_address(origin[0].partition("%")[0]), ip_address(own[0][:16])
            payload = data
        else:
            proto, ends, payload = _split(data)
        ports = _ports(proto, payload)
        if ports is not None:
            yield int(number), Arrival(device, Endpoint(ends[0], ports[0]), Endpoint(ends[1], ports[1]))


def _split(data: bytes) -> tuple[int, tuple[Address, Address], bytes]:
    if data[0] >> 4 == 4:
        return data[9], (ip_address(data[12:16]), ip_address(data[16:20])), data[(data[0] & 15) * 4 :]
    return data[6], (ip_address(data[8:24]), ip_address(data[24:40])), data[40:]


def _ports(proto: int, payload: bytes) -> Optional[tuple[Optional[int], Optional[int]]]:
    """Return the ports; None for an answer of ICMP, which quotes the packet."""
    if proto in (TCP, UDP):
        source, destination = struct.unpack("!HH", payload[:4])
        return source, destination
    return (None, None) if payload[0] in (8, 128) else None


def _bytes(packet: Packet, token: bytes) -> bytes:
    """Return the packet with all its headers and checksums."""
    ports = struct.pack("!HH", packet.sport or 0, packet.dport or 0)
    if packet.proto == TCP:
        head = ports + struct.pack("!IIBBH", 1, 2 * bool(packet.flags & ACK), 0x50, packet.flags, 1024)
        payload, place = head + b"\0\0\0\0" + token, 16
    elif packet.proto == UDP:
        payload, place = ports + struct.pack("!HH", 8 + len(token), 0) + token, 6
    else:
        kind = 8 if packet.proto == ICMP else 128
        payload, place = struct.pack("!BBHHH", kind, 0, 0, int(token[-6:]) + 1, 1) + token, 2
    packed = packet.src.packed + packet.dst.packed
    pseudo = packed + struct.pack("!II", len(payload), packet.proto) if packet.proto != ICMP else b""
    checksum = _checksum(pseudo + payload)
    payload = payload[:place] + struct.pack("!H", checksum) + payload[place + 2 :]
    if packet.src.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), packet.proto, 64) + packed + payload
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, packet.proto, 0)
    return header + packed + payload


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def _fix_neighbours(topology: Topology, family: Family) -> None:
    of = topology.of(family)
    run = ProcessRunner()

    def hardware(host: Netns, device: str) -> str:
        with host.entered():
            return _mac(device)

    links = (
        (topology.pod, "eth0", topology.node, "cni0", (of.pod, of.next_pod), (of.gateway, of.next_gateway, of.overlay)),
        (topology.remote, "flannel.1", topology.node, "flannel.1", (of.remote_overlay, of.remote_pod), (of.overlay,)),
        (topology.outside, "eth0", topology.node, "eth0", (of.outside,), (of.node,)),
    )
    for host, device, node, own, there, here in links:
        for owner, of_owner, other, of_other, known in (
            (node, own, host, device, there),
            (host, device, node, own, here),
        ):
            mac = hardware(other, of_other)
            with owner.entered():
                batch(run, [_neighbour(one, mac, of_owner) for one in known])


def _neighbour(address: Address, mac: str, device: str) -> str:
    return f"neigh replace {address} lladdr {mac} dev {device} nud permanent"


def _mac(device: str) -> str:
    """Return the hardware address of a device of this namespace."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as found:
        found.bind((device, 0))
        return ":".join(f"{byte:02x}" for byte in found.getsockname()[4])
