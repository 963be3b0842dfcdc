"""The stream of bytes from the bus: cut into messages, whatever it holds, in bounded memory."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.dbus.wire import MAX_FIELDS, Frame, Splitter, WireError, read_strings

from ...attacker import HUGE, message, nested, text

LIMIT = 4096
NAMES = st.text("abc._/:é", max_size=30)
WORDS = st.text("abcXYZ_", min_size=1, max_size=20)
DOTTED = st.builds("{}.{}".format, WORDS, WORDS)
SIGNATURES = st.sampled_from(["", "s", "ay"])
CALLS = st.builds(message, NAMES, NAMES, NAMES, path=NAMES, signature=SIGNATURES, body=st.binary())


def split(data: bytes, sizes: Iterable[int] = ()) -> list[Frame]:
    """Feed the data in pieces of these sizes, the rest at once."""
    splitter, frames, pieces = Splitter(LIMIT), [], iter(sizes)
    while data:
        size = next(pieces, len(data))
        splitter.feed(data[:size])
        data = data[size:]
        while (frame := splitter.take()) is not None:
            frames.append(frame)
    return frames


@given(st.lists(CALLS, max_size=4), st.lists(st.integers(1, 40)))
def test_messages_are_the_same_however_they_come(calls: list[bytes], sizes: list[int]) -> None:
    frames = split(b"".join(calls), sizes)
    assert [frame.content for frame in frames] == calls
    assert frames == split(b"".join(calls))


@given(st.tuples(DOTTED, DOTTED, WORDS), st.sampled_from([(), ("x",), ("\xe9" * 300, "")]))
def test_the_library_reads_the_same(names: tuple[str, str, str], strings: tuple[str, ...]) -> None:
    """dbus-next is the oracle."""
    from dbus_next import Message
    from dbus_next._private.unmarshaller import Unmarshaller

    destination, interface, member = names
    written = Message(destination, f"/{member}", interface, member, signature="s" * len(strings), body=list(strings))
    ours = message(destination, interface, member, path=f"/{member}", signature=written.signature, body=b"")
    (frame,), (unread,) = split(bytes(written._marshall())), split(ours)
    theirs = Unmarshaller(io.BytesIO(frame.content)).unmarshall()
    assert frame.fields == unread.fields
    assert frame.fields is not None
    assert frame.fields[:3] == (theirs.path, theirs.interface, theirs.member)
    assert (frame.kind, frame.fields.signature) == (theirs.message_type.value, theirs.signature)
    assert read_strings(frame.body, frame.order, len(strings)) == tuple(theirs.body) == strings


@given(CALLS, st.data())
def test_a_damaged_message_is_read_or_refused(call: bytes, data: st.DataObject) -> None:
    damaged = bytearray(call * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames = split(bytes(damaged))
    except WireError:
        return
    for frame in frames:
        assert len(frame.content) <= 16 + MAX_FIELDS + 8 + LIMIT
        with contextlib.suppress(WireError):
            read_strings(frame.body, frame.order, 2)


@given(st.binary(max_size=60), st.sampled_from("<>"), st.integers(0, 3))
def test_any_body_is_read_or_refused(body: bytes, order: str, count: int) -> None:
    try:
        strings = read_strings(body, order, count)
    except WireError:
        return
    written = b""
    for string in strings:
        encoded = string.encode()
        written += b"\0" * (-len(written) % 4) + struct.pack(f"{order}I", len(encoded)) + encoded + b"\0"
    assert len(written) == len(body)


@pytest.mark.parametrize(
    "large",
    [
        lambda: message("a.b", "c.d", "E", signature="ai", body=bytes(HUGE)),
        lambda: message("a.b", "c.d", "E", path="/" + "x" * HUGE),
    ],
    ids=["body", "header"],
)
def test_a_large_message_is_skipped_in_little_memory(large: Callable[[], bytes]) -> None:
    splitter, small = Splitter(LIMIT), message("a.b", "c.d", "Small")
    stream = memoryview(large() + small)
    frames = []
    tracemalloc.start()
    for start in range(0, len(stream), 65536):
        splitter.feed(stream[start : start + 65536])
        while (frame := splitter.take()) is not None:
            frames.append(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (frames[0].content, frames[0].body, frames[1].content) == (b"", b"", small)
    assert peak < 300_000


def test_a_body_of_the_limit_is_accepted_and_a_larger_one_not() -> None:
    sizes = (LIMIT, LIMIT + 1)
    frames = split(b"".join(message("a.b", "c.d", "E", signature="ay", body=bytes(size)) for size in sizes))
    assert [(frame.size, bool(frame.content)) for frame in frames] == [(LIMIT, True), (LIMIT + 1, False)]
    assert frames[1].fields == frames[0].fields


@pytest.mark.parametrize("start", [b"x" * 16, b"l\1\0\2" + bytes(12)])
def test_a_stream_of_another_protocol_is_refused(start: bytes) -> None:
    with pytest.raises(WireError):
        split(start)


def test_a_header_that_cannot_be_read_costs_one_message_alone() -> None:
    broken = bytearray(message("a.b", "c.d", "E"))
    broken[17] = 2  # the length of a signature
    good = message("a.b", "c.d", "E", signature="v", body=nested(60))
    frames = split(bytes(broken) + good)
    assert [frame.fields is None for frame in frames] == [True, False]


@pytest.mark.parametrize(
    "body", [text("a") + b"\0", text("a")[:-1], text("a\0b"), b"\xff\xff\xff\xff", b"\1\0\0\0\xff\0"]
)
def test_a_string_that_breaks_the_rules_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        read_strings(body, "<", 1)
