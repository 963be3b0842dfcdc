"""Lock files of the state directory: opens, takes and reads them. Everything here may raise OSError."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

_MAX_PID_BYTES = 32


def open_or_make(path: Path) -> int:
    """Open a lock file that only its owner can open, and so hold. If root creates it, the daemon's user owns it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return _regular(os.open(path, flags))
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return _regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    owner = path.parent.stat()
    if owner.st_uid != os.geteuid() == 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def text_in(lock: int) -> str:
    """Return the pid that a daemon wrote into its lock, as text."""
    try:
        return os.pread(lock, _MAX_PID_BYTES, 0).decode(errors="replace").strip()
    except OSError:
        return ""


def pid_in(lock: int) -> int:
    """Return the pid that a daemon wrote into its lock; 0 if there is none."""
    text = text_in(lock)
    return int(text) if text.isascii() and text.isdigit() else 0


def _regular(descriptor: int) -> int:
    """Return the descriptor if it is that of a regular file. Raises OSError, and closes any other."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file")


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Try to take a lock. To find out if a lock is held, take it shared: such attempts do not block each other.

    Raises OSError if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
