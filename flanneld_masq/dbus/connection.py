"""A connection to the system bus, in plain values. Only this module and `bus` touch dbus-next.

Raises ImportError where the library is not installed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from flanneld_masq import footprint
from flanneld_masq.dbus import wire
from flanneld_masq.dbus.bus import MAX_UNSENT, Bus, parse
from flanneld_masq.dbus.call_queue import CallQueue
from flanneld_masq.dbus.object_server import ERROR, Message, Object, Variant
from flanneld_masq.dbus.wire import Frame, WireError
from flanneld_masq.errors import BusError, MasqError

with footprint.without("gi"):  # GLib's bindings, which the package loads where it finds them: 3 MB
    from dbus_next import Message as _Packet
    from dbus_next import MessageFlag, MessageType, NameFlag, RequestNameReply
    from dbus_next import Variant as _Variant

DEFAULT_ADDRESS = "unix:path=/run/dbus/system_bus_socket"
BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
CONNECT_SECONDS = 25.0  # the bus may have to be started first
REPLY_SECONDS = 25.0
MAX_BODY = 4096  # bytes of a message that the daemon accepts; its methods take three strings at most
ANSWERS = 4  # answers in one turn of the event loop
ANSWER_PAUSE_SECONDS = 0.002  # between such turns: about 1500 answers a second, a third of a core
MAX_ANSWERING = 64  # calls that are being answered; a Reconcile takes as long as a pass
_STRINGS = {"s": 1, "ss": 2}  # the arguments that any offered method takes; of others the signature alone is read
_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Connection:
    """A connection to the system bus, while the bus lasts.

    Any local user may send calls. They wait in a queue that is bounded and fair to each sender, and are answered a few
    in each turn of the event loop. `on_excess` gets the sender of a call that is too large or one too many.
    """

    def __init__(self, bus: Bus) -> None:
        self.on_excess: Callable[[str], None] = _ignore
        self._bus = bus
        self._wants: Callable[[Message], bool] | None = None
        self._listener: Callable[[Message], None] | None = None
        self._object: Object | None = None
        self._calls: CallQueue[Frame] = CallQueue()
        self._next_answers: asyncio.Handle | None = None
        self._answering: set[asyncio.Task[None]] = set()
        bus.receive = self._receive

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        *arguments: str,
        seconds: float = REPLY_SECONDS,
        answers: str | None = None,
    ) -> tuple[Any, ...]:
        """Call a method that takes strings; what it answers. Starts nobody. Raises BusError, also for an answer of
        another signature than `answers`; None is any."""
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
        if answers is not None and reply.signature != answers:
            raise BusError(attempt, f"the answer has the signature {reply.signature!r}, not {answers!r}")
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

    def listen(self, listener: Callable[[Message], None], wants: Callable[[Message], bool]) -> None:
        """Have signals given to `listener`. Any user can send one to this connection. So `wants` is called first, with
        the message without its body; a message is parsed only if that returns True, and its sender must be trusted."""
        self._listener, self._wants = listener, wants

    async def follow(self, **conditions: str) -> None:
        """Subscribe to signals by match rules of the specification: sender, path, interface, member, arg0..."""
        await self.ask_bus("AddMatch", ",".join(f"{key}='{value}'" for key, value in conditions.items()))

    async def own(self, name: str) -> bool:
        """Request a name on the bus; False if another process has it. The bus then gives it to this process when the
        other one leaves. Raises BusError."""
        reply = await _within(self._bus.request_name(name, NameFlag.NONE), REPLY_SECONDS, f"taking the name {name}")
        return reply is not RequestNameReply.IN_QUEUE

    def serve(self, served: Object) -> None:
        """Answer what is called on it. At most one object for a connection."""
        self._object = served

    def emit(self, path: str, interface: str, member: str, signature: str, *arguments: Any) -> None:
        """Send a signal to its subscribers. Raises nothing; `lost` reports a lost connection."""
        try:
            self._bus.send(_Packet.new_signal(path, interface, member, signature, _to_bus(arguments)))
        except ValueError:  # a bug here must not stop the daemon
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
        if self._next_answers is not None:
            self._next_answers.cancel()
        self._bus.close()

    def _receive(self, frame: Frame) -> None:
        """Take a signal or a call; its bytes may be anything."""
        if frame.fields is None:
            return
        if frame.kind == wire.SIGNAL:
            self._take_signal(frame, _header(frame.fields))
        elif frame.kind == wire.METHOD_CALL:
            self._take_call(frame, frame.fields.sender)

    def _take_signal(self, frame: Frame, header: Message) -> None:
        if self._listener is None or self._wants is None or not self._wants(header):
            return
        try:
            self._listener(message_of(parse(frame)))
        except WireError as error:
            _LOGGER.warning("D-Bus: signal %s of %s is ignored: %s", header.member, header.sender, error)
        except Exception:  # a sender that is trusted, or a bug, must not end the connection
            _LOGGER.exception("D-Bus: internal error in signal %s", header.member)

    def _take_call(self, frame: Frame, sender: str) -> None:
        if not frame.content:
            self.on_excess(sender)
        if not self._calls.put(sender, frame):
            self.on_excess(sender)
        elif self._next_answers is None:
            self._next_answers = asyncio.get_running_loop().call_soon(self._answer_some)

    def _answer_some(self) -> None:
        """Answer the next calls. Then wait, also if no call is left: the next one may come at once."""
        self._next_answers = None
        if not self._calls:
            return
        room = min(MAX_ANSWERING - len(self._answering), MAX_UNSENT // 10 - self._bus.unsent)
        for _ in range(min(ANSWERS, len(self._calls), room)):
            task = asyncio.ensure_future(self._answer(self._calls.take()))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        self._next_answers = asyncio.get_running_loop().call_later(ANSWER_PAUSE_SECONDS, self._answer_some)

    async def _answer(self, frame: Frame) -> None:
        try:
            answer = await self._answer_of_object(_call(frame))
            reply = _reply(frame, MessageType.METHOD_RETURN, answer.signature, _to_bus(answer.body))
        except MasqError as error:
            reply = _error(frame, error.dbus_name, str(error))
        except Exception as error:  # a bug must not leave the caller waiting, nor be hidden
            _LOGGER.exception("D-Bus: internal error in %s", frame.fields.member if frame.fields else "a call")
            reply = _error(frame, f"{ERROR}Failed", f"internal error: {error!r}")
        if not frame.flags & wire.NO_REPLY_EXPECTED:
            self._bus.send(reply)

    async def _answer_of_object(self, call: Message) -> Message:
        if self._object is None:
            raise BusError("D-Bus", "nothing is offered here", f"{ERROR}UnknownObject")
        return await self._object.answer(call)


async def connect(limit: int = MAX_BODY) -> Connection:
    """Connect to the system bus. Messages whose body has more than `limit` bytes are refused. Raises BusError."""
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", DEFAULT_ADDRESS)
    attempt = f"connecting to the system bus at {address}"
    try:
        bus = Bus(address, limit)
    except (OSError, ValueError) as error:
        raise BusError(attempt, _why(error)) from error
    try:
        await _within(bus.connect(), CONNECT_SECONDS, attempt)
    except BaseException:
        bus.close()
        raise
    return Connection(bus)


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


def _why(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the bus closed the connection"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or repr(error)


def _ignore(_: str) -> None:
    """Do nothing. Commands use it, because they serve no calls."""


def _header(fields: wire.Fields) -> Message:
    """Return the message without its body."""
    return Message(fields.signature, (), fields.sender, fields.path, fields.interface, fields.member)


def _call(frame: Frame) -> Message:
    """Return the method call in a frame. The body is read only if it consists of strings. Raises BusError if the call
    is too large or cannot be read."""
    if frame.fields is None or not frame.content:
        raise BusError("D-Bus", f"a call may have {MAX_BODY} bytes, not {frame.size}", f"{ERROR}LimitsExceeded")
    call = _header(frame.fields)
    count = _STRINGS.get(call.signature)
    if count is None:
        return call
    try:
        return call._replace(body=wire.read_strings(frame.body, frame.order, count))
    except WireError as error:
        raise BusError("D-Bus", str(error), f"{ERROR}InvalidArgs") from error


def _reply(frame: Frame, kind: Any, signature: str, body: list[Any], error_name: str | None = None) -> Any:
    return _Packet(
        message_type=kind,
        reply_serial=frame.serial,
        destination=frame.fields.sender if frame.fields is not None else None,
        error_name=error_name,
        signature=signature,
        body=body,
    )


def _error(frame: Frame, name: str, text: str) -> Any:
    return _reply(frame, MessageType.ERROR, "s", [_to_bus(text)], name)


def message_of(packet: Any) -> Message:
    """Return a message of the library in plain values."""
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
    """Return a value in the types of the library. Strings become what the bus accepts: UTF-8 without NUL."""
    if isinstance(value, Variant):
        return _Variant(value.signature, _to_bus(value.value))
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", " ")
    if isinstance(value, (list, tuple)):
        return [_to_bus(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _to_bus(each) for key, each in value.items()}
    return value
