"""Makes the inputs of parsers from the files of `corpus/`, by a tape of random bytes.

A tape of zeros stands for the first file as it is, so a shrunk tape is a simple input. The same tape gives the same
input as long as the corpus is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 64 * 1024  # of an input
TAPE_BYTES = 48
_MAX_MUTATIONS = 5
_RAW, _LONG = 251, 256  # of 256 inputs: those up to the first number are mutated, then come raw bytes, then long inputs
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WORD = (b"\0", b"\n", b" ", b"-1", b"9" * 5000, b"\xff\xfe", "\u0663\u00b2".encode(), b"\xed\xa0\x80", b"\x1b[2J")


@cache
def files(target: str) -> tuple[bytes, ...]:
    """Return the files of a target's corpus."""
    return tuple(path.read_bytes() for path in sorted((CORPUS / target).iterdir()))


class Tape:
    """Takes decisions from bytes. Beyond their end each decision is 0."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def choose(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        self._position += 2
        return int.from_bytes(self._data[self._position - 2 : self._position], "big") % count

    def pick(self, values: Sequence[bytes]) -> bytes:
        return values[self.choose(len(values))]

    def slice(self, data: bytes) -> tuple[int, int]:
        """Return begin and end of a part of the data; most parts are short."""
        begin = self.choose(len(data) + 1)
        longest = len(data) - begin
        return begin, begin + min(self.choose(longest + 1), (4, 16, 64, longest)[self.choose(4)])

    @property
    def rest(self) -> bytes:
        return self._data[self._position :]


def derive(tape: Tape, corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """Return the input that a tape stands for. `words` are tokens that the parser knows."""
    kind = tape.choose(_LONG)
    data = tape.pick(corpus)
    words = (*words, *_WORD)
    if kind >= _LONG - 1:
        return _repeated(tape, data, words)
    if kind >= _RAW:
        return tape.rest
    for _ in range(tape.choose(_MAX_MUTATIONS + 1)):
        mutation = _MUTATIONS[tape.choose(len(_MUTATIONS))]
        data = mutation(tape, data, corpus, words)
    return data[:MAX_BYTES]


def _repeated(tape: Tape, data: bytes, words: Sequence[bytes]) -> bytes:
    """Repeat a part of a file, or a word, up to the size limit: what takes quadratic time shows."""
    begin, end = tape.slice(data)
    part = (data[begin:end], tape.pick(words))[tape.choose(2)] or b"\0"
    room = MAX_BYTES - len(data) + end - begin
    return (data[:begin] + part * (room // len(part)) + data[end:])[:MAX_BYTES]


def _flip(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    position = tape.choose(len(data) + 1)
    return (
        data[:position]
        + bytes(byte ^ 1 << tape.choose(8) for byte in data[position : position + 1])
        + data[position + 1 :]
    )


def _cut(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = tape.slice(data)
    return data[:begin] + data[end:]


def _truncate(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    return data[: tape.choose(len(data) + 1)]


def _duplicate(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = tape.slice(data)
    return data[:end] + data[begin:]


def _move(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = tape.slice(data)
    position = tape.choose(len(data) + 1)
    return data[:position] + data[begin:end] + data[position:]


def _splice(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    other = tape.pick(corpus)
    return data[: tape.choose(len(data) + 1)] + other[tape.choose(len(other) + 1) :]


def _append(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    return data + tape.pick(corpus)


def _exchange(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Replace a number of 1, 2 or 4 bytes, perhaps a length, by an extreme one."""
    width, order = (1, 2, 4)[tape.choose(3)], ("little", "big")[tape.choose(2)]
    position = tape.choose(len(data) + 1) // width * width
    value = _EXTREMES[tape.choose(len(_EXTREMES))] & (1 << 8 * width) - 1
    number = value.to_bytes(width, "little" if order == "little" else "big")
    return data[:position] + number + data[position + width :]


def _insert(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    position = tape.choose(len(data) + 1)
    return data[:position] + tape.pick(words) + data[position:]


def _overwrite(tape: Tape, data: bytes, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = tape.slice(data)
    return data[:begin] + tape.pick(words) + data[end:]


_Mutation = Callable[[Tape, bytes, Sequence[bytes], Sequence[bytes]], bytes]
_MUTATIONS: tuple[_Mutation, ...] = (
    *(_flip, _cut, _truncate, _duplicate, _move, _splice, _append, _exchange, _insert, _overwrite),
)
