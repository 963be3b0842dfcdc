"""Reads a request of HTTP/1: RFC 9112, as far as a scrape needs it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

MAX_BYTES = 8192  # of a request, its end included
MAX_PIECES = 16
PATH = "/metrics"
_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"(GET|HEAD) ([!-~]{1,200}) HTTP/1\.[01]")
_ACCEPT = re.compile(rb"^accept:([ -~\t]*)\r?$", re.IGNORECASE | re.MULTILINE)  # nothing here can match in two ways


@dataclass(frozen=True, **SLOTS)
class Request:
    """A request for the metrics. `accept` has the formats that the client takes."""

    accept: str = ""
    body_wanted: bool = True


class Refused(Exception):
    """The status line of the answer to a request that is not for the metrics."""


def is_whole(data: bytes, pieces: int) -> bool:
    """Return True if nothing more is to be read, because the request ends here, or is too long, or came in too many
    pieces."""
    return len(data) >= MAX_BYTES or pieces >= MAX_PIECES or data.endswith((b"\n\n", b"\n\r\n"))


def parse(data: bytes) -> Request:
    """Read the first request in `data`. Raises Refused."""
    end = _END.search(data[:MAX_BYTES])
    if end is None:
        raise Refused("431 Request Header Fields Too Large")
    first, *_ = data.split(b"\n", 1)
    line = _LINE.fullmatch(first.rstrip(b"\r"))
    if line is None:
        raise Refused("400 Bad Request")
    if line[2].split(b"?", 1)[0].decode() != PATH:
        raise Refused("404 Not Found")
    accepted = [match[1].strip().decode() for match in _ACCEPT.finditer(data[: end.end()])]
    return Request(",".join(accepted), body_wanted=line[1] == b"GET")
