"""A stream of new connections through the node, to see what becomes of each."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType

from flanneld_masq.model import Family
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import eventually


class Flow(AbstractContextManager["Flow"]):
    """New connections from the pod to the outside, so many a second, and the source that each had there."""

    def __init__(self, topology: Topology, of: Addresses, *, per_second: int = 200) -> None:
        self.sent = 0
        self._arrived: list[str] = []
        self._pause = 1 / per_second
        self._pod, self._of = topology.pod, of
        self._kind = socket.AF_INET if of.family is Family.IPV4 else socket.AF_INET6
        with topology.outside.entered():
            self._target = socket.socket(self._kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._target.bind((str(of.far), 0))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send, name=f"flow of {of.family}")

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._target.close()

    def finish(self) -> list[str]:
        """Stop, and return the source of each packet that arrived."""
        self._end.set()
        self._thread.join()
        return [*self._arrived, *self._received()]

    def more(self, number: int) -> None:
        """Wait until so many more were sent."""
        until = self.sent + number
        eventually(lambda: self.sent >= until)

    def _send(self) -> None:
        destination = (str(self._of.far), self._target.getsockname()[1])
        started = time.monotonic()
        with self._pod.entered():
            for port in itertools.cycle(range(2000, 1 << 16)):
                with socket.socket(self._kind, socket.SOCK_DGRAM) as source:
                    source.bind((str(self._of.pod), port))
                    source.sendto(b"new", destination)
                self.sent += 1
                self._arrived.extend(self._received())  # before the buffer of the socket is full
                if self._end.wait(max(0.0, started + self.sent * self._pause - time.monotonic())):
                    return

    def _received(self) -> Iterator[str]:
        while True:
            try:
                yield self._target.recvfrom(64)[1][0]
            except BlockingIOError:
                return
