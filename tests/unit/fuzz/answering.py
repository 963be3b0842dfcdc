"""A netlink socket whose kernel answers each request with messages of an input."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import NFGENMSG, NLMSGHDR, aligned

from ..kernel.answers import Socket, done, error

_ENOENT = 2


_PORT = 4242


class AnsweringSocket(Socket):
    """Each request is answered by all messages, under its sequence number; a dump then ends.

    With `sort` the answer is what a kernel would choose: of the wanted kind, and one message unless for a dump.
    """

    def __init__(self, data: bytes, *, sort: bool = False) -> None:
        super().__init__()
        self._messages = tuple(_split(data))
        self._sort = sort

    def sendto(self, data: bytes, address: object) -> None:
        requests = [NLMSGHDR.unpack_from(request) for request in _split(data) if len(request) >= NLMSGHDR.size]
        self.datagrams = iter([answer for request in requests for answer in self._answer(*request)])

    def getsockname(self) -> tuple[int, int]:
        """Return a port that no message names, and no groups."""
        return _PORT, 0

    def _answer(self, length: int, kind: int, flags: int, sequence: int, port: int) -> list[bytes]:
        dump = flags & uapi.NLM_F_DUMP == uapi.NLM_F_DUMP
        chosen = self._messages
        if self._sort:
            chosen = tuple(message for message in chosen if _kind(message) == kind - 1)
            chosen = chosen if dump else chosen[:1] or (error(_ENOENT),)
        numbered = [message[:8] + sequence.to_bytes(4, "little") + message[12:] for message in chosen]
        return [b"".join(numbered), *([done(sequence)] if dump else [])]


def _kind(message: bytes) -> int:
    return int.from_bytes(message[4:6], "little")


def _split(data: bytes) -> Iterator[bytes]:
    """Yield the messages of a datagram; the last one may be cut short."""
    while data:
        length = int.from_bytes(data[:4], "little")
        length = aligned(length) if length >= NLMSGHDR.size + NFGENMSG.size else len(data)
        yield data[:length]
        data = data[length:]
