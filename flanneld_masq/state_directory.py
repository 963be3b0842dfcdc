"""The state directory: what we wrote last, what the daemon says of itself, and the locks.

    lock              held by the one daemon; its text is the daemon's pid
    FAMILY.lock       held during a reconcile pass, by the daemon or a command
    BACKEND-FAMILY.json   the verified state observation of the last write
    status.json       what the daemon says of itself

Files are replaced by rename, so a reader sees a whole one. A file that cannot be read is as good as
none: the rules are then verified by being written anew. The daemon runs as a user of its own and the commands as
root, so each takes the files of the other, and those of nobody else.
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

SERVICE_USER = "flanneld-masq"
PASS_LOCK_SECONDS = 10.0
_RETRY_SECONDS = 0.01
_ASKED_SECONDS = 0.08  # for a command that asks who holds the directory holds the lock for a moment
_LONGEST_RETRY_SECONDS = 0.1
# of what somebody must mend; a full file system or too many open files may pass
_LASTING = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
)


class StateDirectory:
    """Knows one state directory, which need not exist before something is written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stopping = threading.Event()
        self._verified_states: dict[str, tuple[tuple[int, int], VerifiedState | None]] = {}

    def verified_state(self, backend: BackendName, family: Family) -> VerifiedState | None:
        """The observation of our last write; None where there is none. Read anew only if it changed."""
        name = _verified_state_name(backend, family)
        try:
            found = self._path(name).stat()
        except OSError:
            return None
        key = (found.st_ino, found.st_mtime_ns)
        if name not in self._verified_states or self._verified_states[name][0] != key:
            self._verified_states[name] = (key, _verified_state_from(self._read(name)))
        return self._verified_states[name][1]

    def remember(self, backend: BackendName, family: Family, verified_state: VerifiedState) -> None:
        """Handles are left out: they change with each write, and are of no use later."""
        items = tuple(dataclasses.replace(item, handle=0) for item in verified_state.items)
        verified_state = dataclasses.replace(verified_state, items=items)
        if verified_state == self.verified_state(backend, family):
            return
        self._write(_verified_state_name(backend, family), dataclasses.asdict(verified_state))

    def forget(self, backend: BackendName, family: Family) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(_verified_state_name(backend, family)).unlink()

    def status(self) -> dict[str, Any] | None:
        """What the daemon last said of itself."""
        return self._read("status.json")

    def write_status(self, status: dict[str, Any]) -> None:
        self._write("status.json", status)

    def holder(self) -> Holder:
        """Whether a daemon holds the directory. The lock is for its owner alone; to others the status file tells."""
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
        """Hold the directory as its one daemon. Raises AlreadyRunning after so many seconds, naming the other."""
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
        """Hold the right to write the rules of a family. Raises StateError after PASS_LOCK_SECONDS."""
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
        """Give up waiting for locks, now and from now on. For another thread to call."""
        self._stopping.set()

    def resume(self) -> None:
        self._stopping.clear()

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _prepare(self) -> None:
        """Make the directory, and refuse one that others could have put files into."""
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = self._directory.stat()
        except OSError as error:
            raise _state_error(f"state directory {self._directory} cannot be made", error) from error
        if not _is_trusted(found.st_uid) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            message = f"state directory {self._directory} can be written by others than root"
            raise StateError(f"{message}; `chown root` and `chmod 755` it", lasting=True)

    def _open_lock(self, name: str) -> int:
        self._prepare()
        try:
            return self._open_or_make(self._path(name))
        except OSError as error:
            raise _state_error(f"{self._path(name)} cannot be opened", error) from error

    def _open_or_make(self, path: Path) -> int:
        """For its owner alone, for whoever can open a lock can hold it. What root makes is the daemon's."""
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
    """Write beside it, then rename: a reader sees the old text or the new. Raises StateError.

    What a killed writer left is removed by the next one: there is one at a time, under a lock of its own.
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


def _state_error(what: str, error: OSError) -> StateError:
    return StateError(f"{what}: {error.strerror}; {_remedy(error)}", lasting=error.errno in _LASTING)


def _remedy(error: OSError) -> str:
    if error.errno == errno.EROFS or _is_service(os.geteuid()):
        return (
            f"leave state_directory at its default, or make a directory that the user {SERVICE_USER} may write, and "
            f"name it in ReadWritePaths= of a drop-in (`systemctl edit flanneld-masq`)"
        )
    return "look at what is there, or name another state_directory" if os.geteuid() == 0 else "run as root"


def _is_trusted(uid: int) -> bool:
    """Whether we take what that user wrote: root, ourselves, or the user of the service."""
    return uid in (0, os.geteuid()) or _is_service(uid)


def _is_service(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_name == SERVICE_USER
    except KeyError:
        return False


def _lives(pid: int) -> bool:
    """Whether there is such a process, and whose word we take."""
    try:
        return pid > 0 and _is_trusted(Path(f"/proc/{pid}").stat().st_uid)
    except OSError:
        return False


def _number(text: object) -> int:
    """0 for what is none."""
    try:
        return int(text)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return 0


def _try_lock(file: IO[str] | int, kind: int = fcntl.LOCK_EX) -> bool:
    """Shared for who only asks, so that those who ask are not in each other's way."""
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
                Neighbours(str(found["place"]), tuple(found["before"]), tuple(found["after"]), int(found["jump"]))
                for found in content["neighbours"]
            ),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _describe_process(pid: str) -> str:
    try:
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ValueError):
        return f"pid {pid}"
    return f"pid {pid} ({command})"
