"""Lock files: opens, takes and reads those of the state directory, and identifies the process that holds any other.

Everything here may raise OSError, unless it says otherwise. Format of /proc/locks: proc_locks(5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

_MAX_PID_BYTES = 64
_PID = re.compile(rb"[1-9][0-9]{0,9}")  # /proc/locks has 0 for a program without a pid here
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_MAX_LOCKS = 1 << 20  # bytes of /proc/locks: some 18,000 locks
_CHUNK = 1 << 16


class FlockUsers(NamedTuple):
    """The pids of programs that hold a lock of flock(2), and of those that wait for it. Both are of this process's pid
    namespace: the kernel leaves out programs that have no pid there."""

    holding: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()


def flock_users(path: Path, locks: Path = Path("/proc/locks")) -> FlockUsers:
    """Return who uses the lock of the file at `path`; nobody if there is no such file or if nobody can say."""
    try:
        status = path.stat()
        text = _read(locks)
    except OSError:
        return FlockUsers()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return users_in(text, place.encode())


def users_in(locks: bytes, place: bytes) -> FlockUsers:
    """Return who uses the lock of one file, from the text of /proc/locks. `place` has device and inode, as there."""
    end = b" %b 0 EOF" % place
    holding: list[int] = []
    waiting: list[int] = []
    if end in locks:
        for line in locks.splitlines():
            words = line.split()[-7:-3] if line.endswith(end) else []
            if words[:1] == [b"FLOCK"] and _PID.fullmatch(words[-1]):
                (waiting if b" -> " in line else holding).append(int(words[-1]))
    return FlockUsers(tuple(holding), tuple(waiting))


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = part = os.read(descriptor, _CHUNK)
        while part and len(data) < _MAX_LOCKS:  # a file of /proc gives some pages at a time
            part = os.read(descriptor, _CHUNK)
            data += part
        return data
    finally:
        os.close(descriptor)


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


def write_pid(lock: int) -> None:
    """Write the pid of this process into its lock, and the pid namespace in which it counts."""
    text = f"{os.getpid()}\n{_pid_namespace()}\n".encode()
    os.ftruncate(lock, os.pwrite(lock, text, 0))


def text_in(lock: int) -> str:
    """Return the pid that a daemon wrote into its lock, as text; it says so if that is one of another pid namespace."""
    text, *namespace = _lines(lock)
    return f"{text} in another pid namespace" if _differs(namespace) else text


def pid_in(lock: int) -> int:
    """Return the pid that a daemon wrote into its lock; 0 if there is none, or if the daemon runs in another pid
    namespace, as in a container: its pid in the namespace of this process is not known."""
    text, *namespace = _lines(lock)
    return int(text) if text.isascii() and text.isdigit() and not _differs(namespace) else 0


def is_of_another_namespace(lock: int) -> bool:
    """Return True if a daemon of another pid namespace wrote its pid into its lock."""
    _, *namespace = _lines(lock)
    return _differs(namespace)


def _lines(lock: int) -> list[str]:
    """Return the lines of a lock, at least one."""
    try:
        return os.pread(lock, _MAX_PID_BYTES, 0).decode(errors="replace").strip().split("\n")
    except OSError:
        return [""]


def _differs(namespace: list[str]) -> bool:
    """Return True if a daemon wrote the name of another pid namespace. Earlier releases wrote none."""
    return namespace[:1] not in ([], [_pid_namespace()])


def _pid_namespace() -> str:
    """Return the kernel's name of this process's pid namespace; empty without /proc."""
    try:
        return str(_PID_NAMESPACE.readlink())
    except OSError:
        return ""


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
