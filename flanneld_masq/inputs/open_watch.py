"""Tells when any program opens a file, by inotify(7). The library `watchdog` reports no opens in its older releases."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_IN_OPEN, _IN_CREATE, _IN_MOVED_TO = 0x20, 0x100, 0x80
_EVENT = struct.Struct("iIII")  # watch descriptor, mask, cookie and length of the name behind it
_BUFFER = 1 << 16  # bytes
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def opened(path: Path, call: Callable[[], None]) -> Iterator[None]:
    """Call in the running event loop whenever the file is opened or made. It need not be there yet, but its directory.
    Where that may not be watched, nothing is called."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        yield
        return
    loop = asyncio.get_running_loop()

    def on_events() -> None:
        if any(concerns(os.read(descriptor, _BUFFER), path.name)):
            _watch(descriptor, path, _IN_OPEN)  # it may be another file now
            call()

    _watch(descriptor, path.parent, _IN_CREATE | _IN_MOVED_TO)
    _watch(descriptor, path, _IN_OPEN)
    loop.add_reader(descriptor, on_events)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _watch(descriptor: int, path: Path, mask: int) -> None:
    _libc.inotify_add_watch(descriptor, os.fsencode(path), mask)


def concerns(events: bytes, name: str) -> Iterator[bool]:
    """Yield for each event True if it is about the file: an open, or an event of the directory with its name."""
    offset = 0
    while offset + _EVENT.size <= len(events):
        _, mask, _, length = _EVENT.unpack_from(events, offset)
        offset += _EVENT.size
        its_name = events[offset : offset + length].rstrip(b"\0")
        yield bool(mask & _IN_OPEN) or its_name == os.fsencode(name)
        offset += length
