"""The endpoint: a listening socket, and one thread that answers all scrapes.

Any user of the node, and with another address any host of the network, may connect. So the number of connections, the
time and size of each request, and the answers in a second are bounded; what is beyond that waits in the kernel or is
dropped. The daemon itself never waits for a client.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable

from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Metric
from flanneld_masq.model import Address
from flanneld_masq_prometheus import requests

MAX_CONNECTIONS = 16  # for one more the oldest is dropped: a scraper's is young
BACKLOG = 32
REQUEST_SECONDS = 5.0  # from connection to the last byte of the answer
ANSWERS_PER_SECOND, BURST = 5.0, 10
LIBRARY = "prometheus_client"

Encode = Callable[[str], "tuple[bytes, str]"]
_LOGGER = logging.getLogger("flanneld_masq")


@dataclass(eq=False)
class Connection:
    """A client: the bytes that it has sent, and the bytes that are still to be sent to it. `due` is the time when it
    must be done."""

    socket: socket.socket
    due: float
    received: bytes = b""
    pieces: int = 0  # in which it came
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


class RateLimit:
    """Allows a burst, and then so many a second. `clock` counts seconds."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._tokens, self._at = float(burst), clock()

    def wait(self) -> float:
        """Return the seconds until the next one is allowed; 0.0 for now."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, (1.0 - self._tokens) / self._per_second)

    def take(self) -> None:
        self._tokens -= 1.0


class Server:
    """Serves the connections of a listening socket, in one thread. `encode` makes the document."""

    def __init__(self, listener: socket.socket, encode: Encode) -> None:
        self._listener = listener
        self._encode = encode
        self._limit = RateLimit(ANSWERS_PER_SECOND, BURST)
        self._connections: deque[Connection] = deque()  # the oldest first
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)

    def run(self, wake: socket.socket) -> None:
        """Serve until `wake` can be read."""
        self._selector.register(wake, selectors.EVENT_READ)
        try:
            while True:
                events = self._await()
                if any(key.fileobj is wake for key, _ in events):
                    return
                for key, _ in events:
                    self._handle(key.data)
                self._drop_late()
        finally:
            for connection in tuple(self._connections):
                self._close(connection)
            self._selector.close()

    def _await(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events. No connection is accepted for which there is no answer yet."""
        wait = self._limit.wait()
        accepting = self._listener.fileno() in self._selector.get_map()
        if not wait and not accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif wait and accepting:
            self._selector.unregister(self._listener)
        times = [one.due - time.monotonic() for one in self._connections] + ([wait] if wait else [])
        return self._selector.select(max(0.0, min(times)) if times else None)

    def _handle(self, connection: Connection | None) -> None:
        if connection is None:
            self._accept()
        elif connection in self._connections:
            try:
                self._advance(connection)
            except BlockingIOError:
                pass
            except OSError:  # the client is gone
                self._close(connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it is gone already, or there are too many open files
            self._limit.take()
            return
        self._limit.take()
        if len(self._connections) >= MAX_CONNECTIONS:
            self._close(self._connections[0])
        client.setblocking(False)
        connection = Connection(client, time.monotonic() + REQUEST_SECONDS)
        self._connections.append(connection)
        self._selector.register(client, selectors.EVENT_READ, connection)

    def _advance(self, connection: Connection) -> None:
        """Receive or send what is possible now."""
        if not connection.answer:
            data = connection.socket.recv(requests.MAX_BYTES)
            connection.received += data
            connection.pieces += 1
            if data and not requests.is_whole(connection.received, connection.pieces):
                return
            connection.answer = memoryview(self._answer(connection.received))
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
        connection.answer = connection.answer[connection.socket.send(connection.answer) :]
        if not connection.answer:
            self._close(connection)

    def _answer(self, data: bytes) -> bytes:
        try:
            request = requests.parse(data)
        except requests.Refused as refused:
            return _response(str(refused), b"", "text/plain")
        try:
            document, content_type = self._encode(request.accept)
        except Exception:  # the top of the thread: a bug must not end it, nor be hidden
            _LOGGER.exception("metrics cannot be encoded")
            return _response("500 Internal Server Error", b"", "text/plain")
        return _response("200 OK", document, content_type, body_wanted=request.body_wanted)

    def _drop_late(self) -> None:
        while self._connections and self._connections[0].due <= time.monotonic():
            self._close(self._connections[0])

    def _close(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()


class Endpoint:
    """Listens at once. Its thread loads the library, and serves until `close`. Raises MasqError."""

    def __init__(self, address: Address, port: int, metrics: Callable[[], Sequence[Metric]]) -> None:
        if importlib.util.find_spec(LIBRARY) is None:
            raise MasqError("metrics.port needs prometheus-client; install python3-prometheus-client")
        self.place = (address, port)
        self.failure = ""  # why the thread ended by itself
        self._metrics = metrics
        self._listener = _listen(address, port)
        self._wake, self._woken = socket.socketpair()
        self.port: int = self._listener.getsockname()[1]  # the kernel chooses one for port 0
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Free the port, and have the thread end. Does not wait: the thread may be loading the library."""
        with contextlib.suppress(OSError):  # the thread has ended by itself
            self._listener.shutdown(socket.SHUT_RDWR)
        self._wake.close()

    def join(self) -> None:
        """Wait for the end of the thread after `close`, no longer than one request may take."""
        self._thread.join(REQUEST_SECONDS)

    def _run(self) -> None:
        try:
            from flanneld_masq_prometheus.exposition import Exposition

            Server(self._listener, Exposition(self._metrics).encode).run(self._woken)
        except Exception as error:  # the top of the thread: a bug must not be hidden
            _LOGGER.exception("metrics are not served any more")
            self.failure = f"metrics are not served any more: {error!r}"
        finally:
            self._listener.close()
            self._woken.close()


def _listen(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    place = f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
    try:
        return socket.create_server((str(address), port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise MasqError(f"metrics cannot be served on {place}: {error.strerror or error}") from error


def _response(status: str, body: bytes, content_type: str, *, body_wanted: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if body_wanted else b"")
