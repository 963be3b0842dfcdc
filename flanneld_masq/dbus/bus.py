"""dbus-next's connection, corrected, with a bounded reader of its own instead of the library's.

Releases of dbus-next end with 0.2.3 (2022), so its faults are corrected here. Raises ImportError where the library is
not installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import Callable
from typing import Any

from flanneld_masq import footprint
from flanneld_masq.dbus.wire import ERROR, METHOD_RETURN, Frame, Splitter, WireError

with footprint.without("gi"):  # GLib's bindings, which the package loads where it finds them: 3 MB
    from dbus_next._private.unmarshaller import Unmarshaller
    from dbus_next.aio import MessageBus
    from dbus_next.aio.message_bus import _MessageWriter

MAX_UNSENT = 1000  # messages; the connection to a bus that leaves more of them unread is given up
TURN = 256  # frames that one turn of the event loop may take; one read from the socket counts as READ of them
READ = 8
READ_BYTES = 65536
PAUSE_SECONDS = 0.001  # after a full turn: the rules, signals and timers come first


class _Writer(_MessageWriter):  # type: ignore[misc]
    """Goes on later when the bus does not read at the moment; the original ends the connection."""

    buf: memoryview | None  # the rest of the message that is being sent begins at `offset`
    offset: int

    def write_callback(self) -> None:
        try:
            while self.buf is not None or self.messages.qsize():
                if self.buf is None:
                    message, _, self.fut = self.messages.get_nowait()
                    self.buf, self.offset = memoryview(message), 0
                self.offset += self.sock.send(self.buf[self.offset :])
                if self.offset == len(self.buf):
                    self.buf = None
                    if self.fut is not None and not self.fut.done():
                        self.fut.set_result(None)
            self.loop.remove_writer(self.fd)
        except BlockingIOError:
            return
        except OSError as error:
            self.bus._finalize(error)


class Bus(MessageBus):  # type: ignore[misc]  # the types of the library are not looked at
    """Connects without blocking, and closes its socket. Ends if the bus disconnects during the hello (the original
    loops for ever). Tolerates a slow bus, and limits the queue for a bus that does not read.

    Of what it reads it keeps no message whose body is larger than `limit` bytes, and it takes at most TURN messages
    before other tasks of the event loop get their turn. Calls and signals go to `receive`; the library parses nothing
    but the replies to its own calls.
    """

    def __init__(self, bus_address: str, limit: int) -> None:
        super().__init__(bus_address=bus_address)
        self._writer = _Writer(self)
        self.receive: Callable[[Frame], None] = _ignore
        self._splitter = Splitter(limit)
        self._chunk = bytearray(READ_BYTES)
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self._disconnect_future.add_done_callback(_note)

    @property
    def unsent(self) -> int:
        """The number of messages that the bus has not read."""
        return int(self._writer.messages.qsize())

    def send(self, msg: Any) -> asyncio.Future[None]:
        if self.unsent >= MAX_UNSENT:
            self._finalize(ConnectionError(f"the bus does not read: {MAX_UNSENT} messages wait for it"))
        sent: asyncio.Future[None] = self._loop.create_future()
        if self._disconnected:
            sent.set_exception(ConnectionError("the connection is closed"))
        else:
            sent = super().send(msg)
        sent.add_done_callback(_note)
        return sent

    def close(self) -> None:
        self._finalize()

    def _setup_socket(self) -> None:
        """Connect to the first address that accepts at once. Skip a busy one, because the event loop must not wait."""
        problem: Exception = ValueError("no address of a Unix socket")
        for transport, options in self._bus_address:
            path = options.get("path") or "\0" + options.get("abstract", "")
            if transport != "unix" or path == "\0":
                continue
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            found.setblocking(False)
            try:
                found.connect(path)
            except OSError as error:
                found.close()
                problem = error
                continue
            self._sock, self._stream, self._fd = found, found.makefile("rwb"), found.fileno()
            return
        raise problem

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            received = await self._loop.sock_recv(self._sock, 1)
            if not received:
                raise EOFError("the bus closed the connection")
            line += received
        return line[:-2].decode()

    def _finalize(self, err: Any = None) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        super()._finalize(err)
        with contextlib.suppress(OSError):  # it flushes first what can no longer be sent
            self._stream.close()
        self._sock.close()

    def _message_reader(self) -> None:
        """Take what has come, at most a turn of it."""
        try:
            if self._take_turn():
                self._loop.remove_reader(self._fd)
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
        except Exception as error:
            self._finalize(error)

    def _resume(self) -> None:
        self._loop.add_reader(self._fd, self._message_reader)
        self._message_reader()

    def _take_turn(self) -> bool:
        """Return True if the turn ended before everything that has come was taken."""
        left = TURN
        while left > 0 and not self._closed:
            frame = self._splitter.take()
            if frame is not None:
                left -= 1
                self._dispatch(frame)
            elif self._read():
                left -= READ
            else:
                return False
        return not self._closed

    def _read(self) -> bool:
        """Read what has come, at most READ_BYTES. Return False if nothing has. Raises EOFError at the end."""
        try:
            count = self._sock.recv_into(self._chunk)
        except BlockingIOError:
            return False
        if count == 0:
            raise EOFError
        self._splitter.feed(memoryview(self._chunk)[:count])
        return True

    def _dispatch(self, frame: Frame) -> None:
        if frame.kind in (METHOD_RETURN, ERROR):
            self._take_reply(frame)
        else:
            self.receive(frame)

    def _take_reply(self, frame: Frame) -> None:
        """Take the reply to a call that waits for it; nothing else is parsed."""
        serial = frame.fields.reply_serial if frame.fields is not None else 0
        if serial not in self._method_return_handlers:
            return
        try:
            packet = parse(frame)
        except WireError as error:
            self._method_return_handlers.pop(serial)(None, error)
        else:
            self._on_message(packet)


def parse(frame: Frame) -> Any:
    """Parse a message of a trusted sender by means of the library. Raises WireError if it cannot be read."""
    if not frame.content:
        raise WireError(f"a message of {frame.size} bytes is larger than any that is accepted")
    try:
        packet = Unmarshaller(io.BytesIO(frame.content)).unmarshall()
    except Exception as error:  # the library has no common class for what it finds wrong
        raise WireError(f"a message cannot be read: {error!r}") from error
    if packet is None:
        raise WireError("a message is cut short")
    if len(packet.body) != len(packet.signature_tree.types):  # the library reads no body of 0 bytes, whatever it lacks
        raise WireError("a message has fewer values than its signature")
    return packet


def _ignore(_: Frame) -> None:
    """Ignore frames that come before the connection is in use."""


def _note(future: asyncio.Future[Any]) -> None:
    """Read the exception, which is reported elsewhere, so that asyncio does not complain that it was never read."""
    if not future.cancelled():
        future.exception()
