"""The one module that touches dbus-next: a connection to the system bus, in plain values.

Releases of dbus-next end with 0.2.3 (2022), so what is wrong with it is put right here, in `_Bus`. Raises ImportError
where the library is not installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from flanneld_masq import footprint
from flanneld_masq.dbus.object_server import ERROR, Message, Object, Variant
from flanneld_masq.errors import BusError, MasqError

with footprint.without("gi"):  # GLib's bindings, which the package loads where it finds them: 3 MB
    from dbus_next import Message as _Packet
    from dbus_next import MessageFlag, MessageType, NameFlag, RequestNameReply
    from dbus_next import Variant as _Variant
    from dbus_next.aio import MessageBus

DEFAULT_ADDRESS = "unix:path=/run/dbus/system_bus_socket"
BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
CONNECT_SECONDS = 25.0  # the bus may have to be started first
REPLY_SECONDS = 25.0
MAX_UNSENT = 1000  # messages; whoever reads no more of them than that is given up
_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Connection:
    """To the system bus, while it lasts."""

    def __init__(self, bus: _Bus) -> None:
        self._bus = bus
        self._listener: Callable[[Message], None] | None = None
        self._object: Object | None = None
        self._answering: set[asyncio.Task[None]] = set()
        bus.add_message_handler(self._handle)

    async def call(
        self, destination: str, path: str, interface: str, member: str, *arguments: str, seconds: float = REPLY_SECONDS
    ) -> tuple[Any, ...]:
        """Call a method that takes strings; what it answers. Starts nobody. Raises BusError."""
        packet = _Packet(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature="s" * len(arguments),
            body=list(arguments),
            flags=MessageFlag.NO_AUTOSTART,
        )
        attempt = f"{interface}.{member} of {destination}"
        if not self._bus.connected:
            raise BusError(attempt, "the connection to the bus is closed")
        reply = await _within(self._bus.call(packet), seconds, attempt)
        if reply is None:
            raise BusError(attempt, "the connection to the bus was closed")
        if reply.message_type is MessageType.ERROR:
            text = str(reply.body[0]) if reply.body else reply.error_name
            raise BusError(attempt, text, reply.error_name)
        return tuple(map(_from_bus, reply.body))

    async def ask_bus(self, member: str, *arguments: str) -> tuple[Any, ...]:
        """Call a method of the bus itself."""
        return await self.call(BUS, BUS_PATH, BUS, member, *arguments)

    async def owner(self, name: str) -> str:
        """The connection that has a name; empty for none."""
        try:
            (found,) = await self.ask_bus("GetNameOwner", name)
        except BusError as error:
            if error.name:
                return ""
            raise
        return str(found)

    def listen(self, listener: Callable[[Message], None]) -> None:
        """Have each signal given to `listener`, also those that nobody follows: anyone may address one to us."""
        self._listener = listener

    async def follow(self, **conditions: str) -> None:
        """Have signals sent to us, as match rules of the specification say: sender, path, interface, member, arg0..."""
        await self.ask_bus("AddMatch", ",".join(f"{key}='{value}'" for key, value in conditions.items()))

    async def own(self, name: str) -> bool:
        """Take a name; False where another has it, then it becomes ours when that one leaves. Raises BusError."""
        reply = await _within(self._bus.request_name(name, NameFlag.NONE), REPLY_SECONDS, f"taking the name {name}")
        return reply is not RequestNameReply.IN_QUEUE

    def serve(self, served: Object) -> None:
        """Answer what is called on it. At most one object for a connection."""
        self._object = served

    def emit(self, path: str, interface: str, member: str, signature: str, *arguments: Any) -> None:
        """Send a signal to whoever follows it. Raises nothing; if the connection is lost, `lost` tells."""
        try:
            self._bus.send(_Packet.new_signal(path, interface, member, signature, _to_bus(arguments)))
        except ValueError:  # a bug of ours, which must not stop who keeps the rules
            _LOGGER.exception("D-Bus: signal %s cannot be sent", member)

    async def sent(self, seconds: float) -> None:
        """Wait until the bus has got everything. Raises BusError."""
        await self.call(BUS, BUS_PATH, BUS, "GetId", seconds=seconds)

    async def lost(self) -> str:
        """Wait for the end of the connection; why it ended."""
        try:
            await self._bus.wait_for_disconnect()
        except Exception as error:  # whatever broke in the library's reader
            return _why(error)
        return "the connection was closed"

    def close(self) -> None:
        for task in self._answering:
            task.cancel()
        self._bus.close()

    def _handle(self, packet: Any) -> bool:
        """Whether it was handled; what is left to the library are replies."""
        if packet.message_type is MessageType.SIGNAL:
            if self._listener is not None:
                self._listener(_message(packet))
            return True
        if packet.message_type is MessageType.METHOD_CALL:
            task = asyncio.ensure_future(self._answer(packet))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return True
        return False

    async def _answer(self, packet: Any) -> None:
        try:
            answer = await self._answer_of_object(_message(packet))
            reply = _Packet.new_method_return(packet, answer.signature, _to_bus(answer.body))
        except MasqError as error:
            reply = _Packet.new_error(packet, error.dbus_name, _to_bus(str(error)))
        except Exception as error:  # a bug must not leave the caller waiting, nor be hidden
            _LOGGER.exception("D-Bus: internal error in %s", packet.member)
            reply = _Packet.new_error(packet, f"{ERROR}Failed", f"internal error: {error!r}")
        if not packet.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._bus.send(reply)

    async def _answer_of_object(self, call: Message) -> Message:
        if self._object is None:
            raise BusError("D-Bus", "nothing is offered here", f"{ERROR}UnknownObject")
        return await self._object.answer(call)


async def connect() -> Connection:
    """Connect to the system bus. Raises BusError."""
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", DEFAULT_ADDRESS)
    attempt = f"connecting to the system bus at {address}"
    try:
        bus = _Bus(bus_address=address)
    except (OSError, ValueError) as error:
        raise BusError(attempt, _why(error)) from error
    try:
        await _within(bus.connect(), CONNECT_SECONDS, attempt)
    except BaseException:
        bus.close()
        raise
    return Connection(bus)


class _Bus(MessageBus):  # type: ignore[misc]  # the types of the library are not looked at
    """The library's connection, mended: it connects without blocking, ends when the bus goes away while it says hello
    (the original loops for ever), closes its socket, and does not grow without end for a bus that does not read."""

    def __init__(self, bus_address: str) -> None:
        super().__init__(bus_address=bus_address)
        self._closed = False
        self._disconnect_future.add_done_callback(_note)

    def send(self, msg: Any) -> asyncio.Future[None]:
        if self._writer.messages.qsize() >= MAX_UNSENT:
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
        """To the first address that answers. One that is busy is as good as gone: nothing here may wait."""
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
        super()._finalize(err)
        with contextlib.suppress(OSError):  # it flushes first what can no longer be sent
            self._stream.close()
        self._sock.close()


async def _within(call: Awaitable[_Result], seconds: float, attempt: str) -> _Result:
    """Raises BusError, after so many seconds or for whatever goes wrong. Not by `wait_for`, which before Python 3.12
    can swallow a cancellation."""
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise BusError(attempt, f"no answer within {seconds:g} s")
    try:
        return task.result()
    except Exception as error:  # the library has no common class for what its reader and its peers raise
        raise BusError(attempt, _why(error), getattr(error, "type", "")) from error


def _note(future: asyncio.Future[Any]) -> None:
    """Its exception is told elsewhere; asyncio need not complain that nobody asked for it."""
    if not future.cancelled():
        future.exception()


def _why(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the bus closed the connection"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or repr(error)


def _message(packet: Any) -> Message:
    names = (packet.sender, packet.path, packet.interface, packet.member)
    return Message(packet.signature, tuple(map(_from_bus, packet.body)), *(name or "" for name in names))


def _from_bus(value: Any) -> Any:
    """Variants as the values that they carry, structures and arrays as tuples."""
    if isinstance(value, _Variant):
        return _from_bus(value.value)
    if isinstance(value, (list, tuple)):
        return tuple(_from_bus(each) for each in value)
    if isinstance(value, dict):
        return {key: _from_bus(each) for key, each in value.items()}
    return value


def _to_bus(value: Any) -> Any:
    """As the library wants it, and strings as the bus accepts them: UTF-8 without NUL."""
    if isinstance(value, Variant):
        return _Variant(value.signature, _to_bus(value.value))
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", " ")
    if isinstance(value, (list, tuple)):
        return [_to_bus(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _to_bus(each) for key, each in value.items()}
    return value
