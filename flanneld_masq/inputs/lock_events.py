"""Reads that a program opened or closed a lock file, from inotify(7). Commands load it, and no event loop with it.

The library `watchdog` reports no opens in its older releases. Formats and flags: include/uapi/linux/inotify.h of the
kernel. It joins an event to an equal one that was not read yet, and so the events cannot be counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_CLOSE_WRITE, _IN_CLOSE_NOWRITE, _IN_OPEN, _IN_MOVED_TO, _IN_CREATE = 0x8, 0x10, 0x20, 0x80, 0x100
_IN_Q_OVERFLOW = 0x4000
_CLOSES = _IN_CLOSE_WRITE | _IN_CLOSE_NOWRITE
_EVENT = struct.Struct("iIII")  # watch descriptor, mask, cookie and length of the name behind it
_BUFFER = 1 << 16  # bytes
_MAX_EVENT = _EVENT.size + 256  # bytes, with the longest name
_libc = ctypes.CDLL(None, use_errno=True)


class Use(enum.Enum):
    """The use of the file by a program."""

    OPENED = enum.auto()
    CLOSED = enum.auto()
    UNKNOWN = enum.auto()  # events were lost, or the path may lead to another file now


class LockState:
    """Concludes from the uses of a file whether a program has it open. It begins as not known."""

    def __init__(self) -> None:
        self._open: int | None = None  # the number of programs that have it open; None if not known

    @property
    def free(self) -> bool:
        """True if certainly no program has the file open, but for one that opened it at the same time as another."""
        return self._open == 0

    @property
    def known(self) -> bool:
        return self._open is not None

    def note(self, use: Use) -> None:
        """Take the next use. Two programs at once may be reported as one, so what follows two opens is not known."""
        before, after = {Use.OPENED: (0, 1), Use.CLOSED: (1, 0)}.get(use, (None, None))
        self._open = after if self._open == before else None

    def found_free(self) -> None:
        """Note that no program holds a lock of the file."""
        self._open = 0


class LockEvents:
    """The opens and closes of the file at `path` since the last read. The file may be created or replaced later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = os.fsencode(path.name)
        self.descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.failure = ""  # why the file is not watched; empty if it is, or if it does not exist yet
        self.watching = False  # the file, or its directory while there is no file
        if self.descriptor < 0:
            self.failure = os.strerror(ctypes.get_errno())
        self.refresh()

    def refresh(self) -> None:
        """Watch the directory and the file that the path leads to now."""
        if self.descriptor >= 0:
            above = self._add(self._path.parent, _IN_CREATE | _IN_MOVED_TO)
            failure = above or self._add(self._path, _IN_OPEN | _CLOSES)
            self.failure = os.strerror(failure) if failure not in (0, errno.ENOENT) else ""
            self.watching = not (above or self.failure)

    def read(self) -> tuple[Use, ...]:
        """Return what was done in that order, as far as it is not joined. A file that was made is `UNKNOWN`: the
        program that made it may have used it before it was watched. So is the end of a full buffer: more may follow."""
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(self.descriptor, _BUFFER)
        uses = tuple(uses_in(data, self._name))
        if len(data) > _BUFFER - _MAX_EVENT:
            uses = (*uses, Use.UNKNOWN)
        if Use.UNKNOWN in uses:
            self.refresh()
        return uses

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.watching = False

    def _add(self, path: Path, mask: int) -> int:
        """Return the error number; 0 for none. The kernel keeps one watch for each inode, so this can be repeated."""
        return ctypes.get_errno() if _libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask) < 0 else 0

    def __del__(self) -> None:
        self.close()


def uses_in(events: bytes, name: bytes) -> Iterator[Use]:
    """Yield what the events say of a file: of the file itself, or of its directory with the name of the file."""
    offset = 0
    while offset + _EVENT.size <= len(events):
        _, mask, _, length = _EVENT.unpack_from(events, offset)
        offset += _EVENT.size
        if mask & _IN_OPEN:
            yield Use.OPENED
        elif mask & _CLOSES:
            yield Use.CLOSED
        elif mask & _IN_Q_OVERFLOW or (
            mask & (_IN_CREATE | _IN_MOVED_TO) and events[offset : offset + length].rstrip(b"\0") == name
        ):
            yield Use.UNKNOWN
        offset += length
