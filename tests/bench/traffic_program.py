"""Sends new flows from a pod's address through a node, and counts those that leave with it. A program by itself.

`traffic_program NODE SINK FIRST` names two network namespaces that a wire joins, and the number of the first flow: an
earlier stream may have left entries in the connection table of the node. Each flow is one UDP datagram with the pod's
address as source, to an address and port that no flow had before. Nothing answers. The program prints a line of JSON
with its counts for each line on its standard input. At the end of the input it sends one more datagram of each flow
that left with the pod's address, and prints the counts once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from ipaddress import IPv4Address

from flanneld_masq.selftest.netns import Netns

PER_SECOND = 1000
DEVICE, PORT = "bench0", 5000
POD = IPv4Address("10.244.1.5")
_FIRST = IPv4Address("198.18.0.1")  # RFC 2544: for benchmarks
_PORTS, _LOWEST = 60_000, 1024
_IP_TRANSPARENT, _ETH_P_IP, _SO_RCVBUFFORCE = 19, 0x0800, 33
_BUFFER = 16 << 20  # bytes, for the frames of 10 s in which this program does not run
_PACKET_OUTGOING = 4
_PAYLOAD = struct.Struct(">5s?Q")  # magic, whether the flow had a datagram before, number of the flow
_MAGIC = b"bench"
_LATE_SECONDS = 1.0  # for the last datagrams to arrive


def endpoint(flow: int) -> tuple[str, int]:
    """Return the destination of a flow by its number: address and port, the same for no two flows."""
    return str(_FIRST + flow // _PORTS), _LOWEST + flow % _PORTS


def payload(flow: int, *, again: bool) -> bytes:
    return _PAYLOAD.pack(_MAGIC, again, flow)


class Ledger:
    """Counts datagrams, by the IPv4 packets that arrive."""

    def __init__(self) -> None:
        self.sent = self.arrived = self.arrived_again = 0
        self.late = 0.0  # seconds, the longest time by which a flow was sent too late
        self.wrong: set[int] = set()  # flows of which the first datagram left with the pod's address
        self.stuck: set[int] = set()  # of these, those of which the second one did too

    def enter(self, packet: bytes) -> None:
        """Count a packet. Packets of other programs are ignored."""
        content = packet[-_PAYLOAD.size :]
        if len(packet) < 28 + _PAYLOAD.size or not content.startswith(_MAGIC):
            return
        _, again, flow = _PAYLOAD.unpack(content)
        if again:
            self.arrived_again += 1
        else:
            self.arrived += 1
        if packet[12:16] == POD.packed:
            (self.stuck if again else self.wrong).add(flow)

    def as_json(self) -> str:
        counts = {"sent": self.sent, "arrived": self.arrived, "wrong": len(self.wrong)}
        return json.dumps({**counts, "again": self.arrived_again, "stuck": len(self.stuck), "late": self.late})


class Traffic:
    def __init__(self, node: str, sink: str, first: int) -> None:
        self._first = first
        with Netns(sink).entered():
            self._listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
            with contextlib.suppress(OSError):  # in the user namespace of an ordinary user the limit holds
                self._listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._listener.bind((DEVICE, _ETH_P_IP))
        with Netns(node).entered():
            self._source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._source.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            self._source.bind((str(POD), PORT))
        self._ledger = Ledger()

    def run(self) -> None:
        """Send until the standard input ends; answer each of its lines."""
        started = time.monotonic()
        while True:
            due = started + self._ledger.sent / PER_SECOND
            ready, _, _ = select.select([self._listener, sys.stdin], [], [], max(0.0, due - time.monotonic()))
            self._receive()
            if sys.stdin in ready:
                if not os.read(sys.stdin.fileno(), 4096):
                    return
                print(self._ledger.as_json(), flush=True)
            late = time.monotonic() - due
            if late >= 0:
                self._ledger.late = max(self._ledger.late, late)
                self._send(self._first + self._ledger.sent, again=False)
                self._ledger.sent += 1

    def finish(self) -> None:
        """Send one more datagram of each flow that left with the pod's address, and print the last counts."""
        self._receive()
        flows = sorted(self._ledger.wrong)
        for number, flow in enumerate(flows, 1):
            self._send(flow, again=True)
            if not number % 100:
                self._receive()
        end = time.monotonic() + _LATE_SECONDS
        while self._ledger.arrived_again < len(flows) and time.monotonic() < end:
            select.select([self._listener], [], [], end - time.monotonic())
            self._receive()
        print(self._ledger.as_json(), flush=True)

    def _send(self, flow: int, *, again: bool) -> None:
        with contextlib.suppress(PermissionError):  # a filter drops it: then it does not arrive
            self._source.sendto(payload(flow, again=again), endpoint(flow))

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, origin = self._listener.recvfrom(2048)
                if origin[2] != _PACKET_OUTGOING:
                    self._ledger.enter(packet)


if __name__ == "__main__":
    traffic = Traffic(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    traffic.run()
    traffic.finish()
