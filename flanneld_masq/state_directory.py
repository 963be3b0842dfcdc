"""Keeps the state directory: the verified states, the status of the daemon, and the locks.

    lock                  the instance lock; its text is the pid of the daemon that holds it
    FAMILY.lock           held during a reconcile pass, by the daemon or a command
    BACKEND-FAMILY.json   the verified state: the read-back of the last write
    status.json           the status that the daemon reports

Files are replaced by rename, so a reader sees a whole file. An unreadable file counts as missing: the rules are then
written again. The daemon runs as a user of its own and the commands as root, so each accepts the files of these two
users, and of no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pwd
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flanneld_masq.errors import AlreadyRunning, StateError
from flanneld_masq.model import BackendName, Family, Holder, Item, ItemKind, Neighbours, VerifiedState
from flanneld_masq.printable import printable

SERVICE_USER = "flanneld-masq"
PASS_LOCK_SECONDS = 10.0
_RETRY_SECONDS = 0.01
_ASKED_SECONDS = 0.08  # longer than a command holds the lock to find out if a daemon holds it
_LONGEST_RETRY_SECONDS = 0.1
# errors that an administrator must fix; a full file system or too many open files may pass
_LASTING = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
)


class StateDirectory:
    """Reads and writes one state directory, which need not exist before the first write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stopping = threading.Event()
        self._verified_states: dict[str, tuple[tuple[int, int], VerifiedState | None]] = {}

    def verified_state(self, backend: BackendName, family: Family) -> VerifiedState | None:
        """Return the read-back of our last write; None if there is none. The file is read again only if it changed."""
        name = _verified_state_name(backend, family)
        try:
            status = self._path(name).stat()
        except OSError:
            return None
        key = (status.st_ino, status.st_mtime_ns)
        if name not in self._verified_states or self._verified_states[name][0] != key:
            self._verified_states[name] = (key, _verified_state_from(self._read(name)))
        return self._verified_states[name][1]

    def remember(self, backend: BackendName, family: Family, verified_state: VerifiedState) -> None:
        """Store a verified state. Handles are left out: each write changes them."""
        items = tuple(dataclasses.replace(item, handle=0) for item in verified_state.items)
        verified_state = dataclasses.replace(verified_state, items=items)
        if verified_state == self.verified_state(backend, family):
            return
        self._write(_verified_state_name(backend, family), dataclasses.asdict(verified_state))

    def forget(self, backend: BackendName, family: Family) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(_verified_state_name(backend, family)).unlink()

    def status(self) -> dict[str, Any] | None:
        """Return the last status that the daemon reported; None if it cannot be read."""
        return self._read("status.json")

    def write_status(self, status: dict[str, Any]) -> None:
        self._write("status.json", status)

    def holder(self) -> Holder:
        """Find out if a daemon holds the directory. Only its owner can open the lock; others read the status file."""
        lock = self._path("lock")
        try:
            with lock.open("rb") as file:
                if _try_lock(file.fileno(), fcntl.LOCK_SH):
                    return Holder(False, 0, f"nobody holds {lock}")
                return Holder(True, _number(file.read()), f"{lock} is held")
        except (FileNotFoundError, NotADirectoryError):
            return Holder(False, 0, f"there is no {lock}, so nobody holds it")
        except OSError as error:
            return self._by_status(f"{lock} cannot be opened: {error.strerror}")

    def _by_status(self, why_not: str) -> Holder:
        status, path = self.status(), self._path("status.json")
        if status is None:
            return Holder(None, 0, f"{why_not}; {path} cannot be read either")
        if status.get("state") == "stopped":
            return Holder(False, 0, f"{path} says so")
        pid = _number(status.get("pid"))
        if _lives(pid):
            return Holder(True, pid, f"{path} names pid {pid}, which lives")
        if not Path("/proc/1").exists():  # hidepid= of proc(5)
            return Holder(None, 0, f"{why_not}; /proc hides the processes of others")
        return Holder(False, 0, f"{path} names pid {pid}, which has ended")

    @contextlib.contextmanager
    def instance(self, seconds: float = _ASKED_SECONDS) -> Iterator[None]:
        """Hold the instance lock. Raises AlreadyRunning after `seconds`, with the pid of the other daemon."""
        with os.fdopen(self._open_lock("lock"), "r+") as file:
            pause, deadline = threading.Event(), time.monotonic() + seconds
            while not (mine := _try_lock(file)) and time.monotonic() < deadline:
                pause.wait(min(seconds / 8, _LONGEST_RETRY_SECONDS))
            if not mine:
                raise AlreadyRunning(
                    f"another flanneld-masq runs with the state directory {self._directory}: "
                    f"{_describe_process(file.read().strip())}; stop it first, or give this one a state_directory "
                    f"of its own"
                )
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    @contextlib.contextmanager
    def exclusive(self, family: Family) -> Iterator[None]:
        """Hold the lock of a family, to write its rules. Raises StateError after PASS_LOCK_SECONDS."""
        descriptor = self._open_lock(f"{family}.lock")
        try:
            waited = 0.0
            while not _try_lock(descriptor):
                if self._stopping.wait(_RETRY_SECONDS) or waited >= PASS_LOCK_SECONDS:
                    held = f"was held by another flanneld-masq for {waited:.1f} s; it may hang"
                    raise StateError(f"{self._path(f'{family}.lock')} {held}")
                waited += _RETRY_SECONDS
            yield
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        """Stop waiting for locks, now and until `resume`. Another thread may call it."""
        self._stopping.set()

    def resume(self) -> None:
        self._stopping.clear()

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _prepare(self) -> None:
        """Create the directory. Refuse one that other users can write."""
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            status = self._directory.stat()
        except OSError as error:
            raise _state_error(f"state directory {self._directory} cannot be made", error) from error
        if not _is_trusted(status.st_uid) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            message = f"state directory {self._directory} can be written by others than root"
            raise StateError(f"{message}; `chown root` and `chmod 755` it", lasting=True)

    def _open_lock(self, name: str) -> int:
        self._prepare()
        try:
            return self._open_or_make(self._path(name))
        except OSError as error:
            raise _state_error(f"{self._path(name)} cannot be opened", error) from error

    def _open_or_make(self, path: Path) -> int:
        """Open a lock file that only its owner can open, and so hold. If root creates it, the daemon's user owns it."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(path, flags)
        owner = self._directory.stat()
        if owner.st_uid != os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            with self._path(name).open() as file:
                if not _is_trusted(os.fstat(file.fileno()).st_uid):
                    return None
                content = json.load(file)
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._prepare()
        replace_file(self._path(name), json.dumps(content, indent=1))


def replace_file(path: Path, text: str) -> None:
    """Replace a file by rename, so that a reader sees the old text or the new. Raises StateError.

    It removes the temporary file of a killed writer. A lock of the caller ensures that there is one writer at a time.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateError(f"{path} cannot be written: {error.strerror}") from error


def _state_error(failure: str, error: OSError) -> StateError:
    return StateError(f"{failure}: {error.strerror}; {_remedy(error)}", lasting=error.errno in _LASTING)


def _remedy(error: OSError) -> str:
    if error.errno == errno.EROFS or _is_service(os.geteuid()):
        return (
            f"leave state_directory at its default, or make a directory that the user {SERVICE_USER} may write, and "
            f"name it in ReadWritePaths= of a drop-in (`systemctl edit flanneld-masq`)"
        )
    return "look at what is there, or name another state_directory" if os.geteuid() == 0 else "run as root"


def _is_trusted(uid: int) -> bool:
    """Return True for a user whose files are accepted: root, our own, or the user of the service."""
    return uid in (0, os.geteuid()) or _is_service(uid)


def _is_service(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name == SERVICE_USER
    except KeyError:
        return False


def _lives(pid: int) -> bool:
    """Return True if the process exists and belongs to a trusted user."""
    try:
        return pid > 0 and _is_trusted(Path(f"/proc/{pid}").stat().st_uid)
    except OSError:
        return False


def _number(text: object) -> int:
    """Return the number; 0 if it is none."""
    try:
        return int(text)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return 0


def _try_lock(file: IO[str] | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Try to take a lock. To find out if a lock is held, take it shared: such attempts do not block each other."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _verified_state_name(backend: BackendName, family: Family) -> str:
    return f"{backend}-{family}.json"


def _verified_state_from(content: dict[str, Any] | None) -> VerifiedState | None:
    try:
        if content is None:
            return None
        return VerifiedState(
            str(content["fingerprint"]),
            tuple(Item(**{**item, "kind": ItemKind(item["kind"])}) for item in content["items"]),
            tuple(
                Neighbours(str(around["place"]), tuple(around["before"]), tuple(around["after"]), int(around["jump"]))
                for around in content["neighbours"]
            ),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _describe_process(pid: str) -> str:
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return f"pid {pid}"
    return f"pid {pid} ({printable(command)})"
