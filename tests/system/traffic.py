"""Traffic that goes on from the pod to the outside, and an account of what became of it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

from flanneld_masq.model import Address
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import eventually

_TICK_SECONDS = 0.01
_PATTERN = bytes(range(251)) * 64  # whatever is lost or doubled in it shows
_KINDS = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOLS = {4: 0x0800, 6: 0x86DD}
_SOURCES = {4: slice(12, 16), 6: slice(8, 24)}  # where a header has it
_PACKET_OUTGOING = 4


class Traffic:
    """Traffic of one family, a hundred times a second: datagrams of a long flow and of a new one, and 16 KB of TCP.

    A long flow keeps the source that its first packet got; a new one shows what the rules say now.
    """

    def __init__(self, topology: Topology, of: Addresses) -> None:
        self.sent: set[bytes] = set()
        self.received: set[bytes] = set()
        self.sources: set[Address] = set()  # of all packets that came to the outside by its device
        self.streamed = 0  # bytes
        self.arrived = bytearray()
        self._topology, self._of = topology, of
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()
        with topology.outside.entered():
            self._ear = self._keep(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
            self._ear.bind(("eth0", _PROTOCOLS[of.pod.version]))
            self._sink = self._keep(self._bound(socket.SOCK_DGRAM, of.far))
            listener = self._keep(self._bound(socket.SOCK_STREAM, of.far))
            listener.listen(1)
        with topology.pod.entered():
            self._long = self._keep(self._bound(socket.SOCK_DGRAM, of.pod))
            self._stream = self._keep(self._bound(socket.SOCK_STREAM, of.pod))
        self._stream.connect_ex(listener.getsockname())
        connection, _ = eventually(lambda: _if_there(listener.accept))
        self._connection = self._keep(connection)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._flow, name=f"traffic {of.family}")

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Send from half a second before the block to half a second after it; then wait for what is on its way."""
        with self._stack:
            self._thread.start()
            try:
                self._more()
                yield
                self._more()
            finally:
                self._end.set()
                self._thread.join()
            with contextlib.suppress(AssertionError):  # then something is missing, as the test will say
                eventually(self._all_there, 3.0)

    def missing(self) -> tuple[str, ...]:
        """Return descriptions of the data that was lost or arrived changed."""
        stream = (_PATTERN * (self.streamed // len(_PATTERN) + 1))[: self.streamed]
        datagrams = len(self.sent - self.received)
        return (
            *([f"{datagrams} of {len(self.sent)} datagrams"] if datagrams else []),
            *([f"of {self.streamed} bytes {len(self.arrived)} arrived"] if self.arrived != stream else []),
        )

    def _all_there(self) -> bool:
        self._take()
        return not self.missing()

    def _more(self) -> None:
        enough = len(self.sent) + 100
        eventually(lambda: len(self.sent) >= enough)

    def _keep(self, made: socket.socket) -> socket.socket:
        made.setblocking(False)
        return self._stack.enter_context(made)

    def _bound(self, kind: int, value: Address) -> socket.socket:
        made = socket.socket(_KINDS[value.version], kind | socket.SOCK_NONBLOCK)
        made.bind((str(value), 0))
        return made

    def _flow(self) -> None:
        while not self._end.wait(_TICK_SECONDS):
            self._send(self._long)
            with self._topology.pod.entered():
                fresh = self._bound(socket.SOCK_DGRAM, self._of.pod)
            with fresh:
                self._send(fresh)
            self.streamed += _if_there(lambda: self._stream.send(_PATTERN[self.streamed % len(_PATTERN) :])) or 0
            self._take()

    def _send(self, source: socket.socket) -> None:
        token = b"%d" % next(self._numbers)
        source.sendto(token, self._sink.getsockname())
        self.sent.add(token)

    def _take(self) -> None:
        """All that has arrived by now."""
        while payload := _if_there(lambda: self._sink.recv(64)):
            self.received.add(payload)
        while data := _if_there(lambda: self._connection.recv(1 << 20)):
            self.arrived += data
        while frame := _if_there(lambda: self._ear.recvfrom(64)):
            header, origin = frame
            if origin[2] != _PACKET_OUTGOING:
                self.sources.add(ip_address(header[_SOURCES[self._of.pod.version]]))


def _if_there(receive: Callable[[], Any]) -> Any:
    """Return what a non-blocking call returns. None: it would wait, or the connection broke, which `missing` shows."""
    try:
        return receive()
    except (BlockingIOError, ConnectionError):
        return None
