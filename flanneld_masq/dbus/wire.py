"""Cuts the stream of bytes from the bus into messages, and reads a header and strings. Pure, bounded and strict.

Any local user may send the daemon a message, so no other code parses bytes of unknown senders. The format:
https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-messages
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple, Optional

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 0x1
MAX_FIELDS = 4096  # bytes of header fields; the names in them have at most 255 each
_PREFIX = 16  # bytes until the header fields begin
_ORDERS = {ord("l"): "<", ord("B"): ">"}
_VERSION = 1
_CACHED = 64  # headers; a sender that floods mostly repeats itself
_NUMBER, _TEXT, _SIGNATURE = b"u", b"so", b"g"
_REPLY_SERIAL = 5
_FIELDS = {1: "path", 2: "interface", 3: "member", _REPLY_SERIAL: "", 7: "sender", 8: "signature"}


class WireError(Exception):
    """The bytes are no D-Bus message. `str` gives the reason."""


class Fields(NamedTuple):
    """The header fields that the daemon reads."""

    path: str = ""
    interface: str = ""
    member: str = ""
    sender: str = ""
    signature: str = ""
    reply_serial: int = 0


class Frame(NamedTuple):
    """One message: its header, the size of its body in bytes, and all its bytes if it is not larger than allowed.

    `fields` is None if the header cannot be read, or is too large to be.
    """

    kind: int
    flags: int
    serial: int
    order: str
    size: int
    fields: Optional[Fields]
    content: bytes

    @property
    def body(self) -> bytes:
        return self.content[len(self.content) - self.size :] if self.content else b""


class Splitter:
    """Takes bytes as they come, and gives messages whose body has at most `limit` bytes; others without their bytes.

    It holds the bytes fed last and one message that is not complete.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._start = 0  # of the next message in the buffer
        self._skip = 0  # bytes to come of a message that is too large

    def feed(self, data: bytes | memoryview) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        del self._buffer[: self._start]
        self._start = 0
        self._buffer += data[skipped:]

    def take(self) -> Frame | None:
        """Return the next message; None if its bytes have not all come. Raises WireError for what is no message: then
        nothing that follows can be read."""
        held = len(self._buffer) - self._start
        if held < _PREFIX:
            return None
        order = _ORDERS.get(self._buffer[self._start])
        kind, flags, version = self._buffer[self._start + 1 : self._start + 4]
        if order is None or version != _VERSION:
            raise WireError("the stream holds no message of D-Bus version 1")
        size, serial, fields_size = struct.unpack_from(f"{order}III", self._buffer, self._start + 4)
        before_body = _PREFIX + _aligned(fields_size, 8)
        total = before_body + size
        readable = fields_size <= MAX_FIELDS
        if held < (total if readable and size <= self._limit else before_body if readable else _PREFIX):
            return None
        content = b""
        if readable and size <= self._limit:
            content = bytes(self._buffer[self._start : self._start + total])
        fields = self._fields(order, fields_size) if readable else None
        self._advance(total)
        return Frame(kind, flags, serial, order, size, fields, content)

    def _fields(self, order: str, size: int) -> Fields | None:
        begin = self._start + _PREFIX
        try:
            return read_fields(bytes(self._buffer[begin : begin + size]), order)
        except WireError:
            return None

    def _advance(self, count: int) -> None:
        held = min(count, len(self._buffer) - self._start)
        self._start += held
        self._skip = count - held


@lru_cache(_CACHED)
def read_fields(data: bytes, order: str) -> Fields:
    """Read the header fields, an array of (code, variant). Raises WireError."""
    values: dict[str, str] = {}
    reply_serial = 0
    position = 0
    while position < len(data):
        position = _aligned(position, 8)
        code, kind = data[position : position + 1], data[position + 1 : position + 4]
        if len(kind) != 3 or kind[0] != 1 or kind[2] != 0:
            raise WireError("a header field has no simple type")
        value, position = _value(data, position + 4, kind[1:2], order)
        name = _FIELDS.get(code[0])
        if code[0] == _REPLY_SERIAL and isinstance(value, int):
            reply_serial = value
        elif name and isinstance(value, str):
            values[name] = value
    return Fields(**values, reply_serial=reply_serial)


def read_strings(body: bytes, order: str, count: int) -> tuple[str, ...]:
    """Read a body of so many strings and nothing else. Raises WireError."""
    values, position = [], 0
    for _ in range(count):
        value, position = _text(body, _aligned(position, 4), order)
        values.append(value)
    if position != len(body):
        raise WireError("the body does not end with its last string")
    return tuple(values)


def _value(data: bytes, position: int, kind: bytes, order: str) -> tuple[str | int, int]:
    """Return a value and the position behind it."""
    if kind in _TEXT:
        return _text(data, _aligned(position, 4), order)
    if kind == _SIGNATURE:
        return _terminated(data, position + 1, sum(data[position : position + 1]))
    if kind == _NUMBER:
        return _number(data, _aligned(position, 4), order), _aligned(position, 4) + 4
    raise WireError("a header field has an unknown type")


def _text(data: bytes, position: int, order: str) -> tuple[str, int]:
    return _terminated(data, position + 4, _number(data, position, order))


def _terminated(data: bytes, begin: int, length: int) -> tuple[str, int]:
    """Return text of that many bytes, which a NUL must follow."""
    end = begin + length
    if data[end : end + 1] != b"\0":
        raise WireError("a string does not end")
    try:
        text = data[begin:end].decode()
    except UnicodeDecodeError:
        raise WireError("a string is not UTF-8") from None
    if "\0" in text:
        raise WireError("a string holds a NUL")
    return text, end + 1


def _number(data: bytes, position: int, order: str) -> int:
    try:
        number: int = struct.unpack_from(f"{order}I", data, position)[0]
    except struct.error:
        raise WireError("a number is cut short") from None
    return number


def _aligned(position: int, width: int) -> int:
    return -(-position // width) * width
