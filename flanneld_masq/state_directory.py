"""Keeps the state directory: the verified states, the status of the daemon, and the locks.

    lock                  the instance lock; its text is the pid of the daemon that holds it, and its pid namespace
    FAMILY.lock           held during a reconcile pass, by the daemon or a command
    BACKEND-FAMILY.json   the verified state: the read-back of the last write
    status.json           the status that the daemon reports
    authors.json          the command lines of those who made the last repairs necessary; not for other users

Files are replaced by rename, so a reader sees a whole file. An unreadable file counts as missing: the rules are then
written again. The daemon runs as a user of its own and the commands as root, so each accepts the files of these two
users, and of no other.

No repair depends on the directory. What cannot be written there is kept in memory, and a lock that cannot be opened
excludes nobody; `trouble` says so.
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
from typing import Any, NamedTuple, Optional

from flanneld_masq.errors import AlreadyRunning, StateError
from flanneld_masq.inputs.json_values import decode, parse
from flanneld_masq.inputs.processes import is_of_the_program
from flanneld_masq.inputs.text import read_regular, read_start
from flanneld_masq.lock_files import is_of_another_namespace, open_or_make, pid_in, text_in, try_lock, write_pid
from flanneld_masq.model import BackendName, Family, Holder, VerifiedState
from flanneld_masq.printable import printable

SERVICE_USER = "flanneld-masq"
PASS_LOCK_SECONDS = 10.0
_RETRY_SECONDS = 0.01
_ASKED_SECONDS = 0.08  # longer than a command holds the lock to find out if a daemon holds it
_LONGEST_RETRY_SECONDS = 0.1
_MAX_BYTES = 32 * 1024 * 1024  # of a file; a verified state names each foreign rule around the jump
_MAX_PID = 1 << 31
_MAX_COMMAND_BYTES = 256
_INSECURE = "can be written by others than root"
_STATUS, _AUTHORS, _INSTANCE_LOCK = "status.json", "authors.json", "lock"

_Identity = Optional[tuple[int, int]]  # inode and time of the last change of a file; None for a missing one


class _Failure(NamedTuple):
    """Reason why a file cannot be used, and its remedy."""

    reason: str
    remedy: str


def _failure(error: OSError | StateError) -> _Failure:
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return _Failure(cause.strerror or str(cause), _remedy(cause))
    reason, _, remedy = str(error).partition("; ")
    return _Failure(reason, remedy)


class _Failures:
    """The files of the state directory that cannot be used, and why."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._failures: dict[str, _Failure] = {}

    @contextlib.contextmanager
    def noting(self, name: str, *, go_on: bool = False) -> Iterator[None]:
        """Note if something with a file fails, and that it works again. `go_on` says not to raise the failure."""
        try:
            yield
        except (OSError, StateError) as error:
            self._failures[name] = _failure(error)
            if not go_on:
                raise
        else:
            self._failures.pop(name, None)

    def text(self) -> str:
        """Return why the directory, or a file in it, cannot be used; empty if all is well."""
        reasons: dict[str, str] = {}  # one file for each; the next one that fails for this reason is no news
        for name, failure in list(self._failures.items()):
            reasons.setdefault(failure.reason, f"{name}: {failure.reason}; {failure.remedy}")
        if not reasons:
            return ""
        return (
            f"state directory {self._directory} cannot be used; repairs go on, but the daemon keeps its state in "
            f"memory, and locks that cannot be opened have no effect: {'; '.join(reasons.values())}"
        )


class StateDirectory:
    """Reads and writes one state directory, which need not exist before the first write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stopping = threading.Event()
        self._verified_states: dict[str, tuple[_Identity, VerifiedState | None]] = {}
        self._unwritten: set[str] = set()  # verified states that are in memory alone
        self._instance: int | None = None  # the descriptor of the instance lock
        self._failures = _Failures(directory)

    @property
    def trouble(self) -> str:
        """Reason why the directory, or a file in it, cannot be used; empty if all is well."""
        return self._failures.text()

    def verified_state(self, backend: BackendName, family: Family) -> VerifiedState | None:
        """Return the read-back of the last write; None if there is none. The file is read again only if it changed."""
        name = _verified_state_name(backend, family)
        identity = self._identity(name)
        if name not in self._verified_states or self._verified_states[name][0] != identity:
            self._verified_states[name] = (identity, self._read_verified_state(name) if identity else None)
            self._unwritten.discard(name)
        elif name in self._unwritten:
            self._keep(name, self._verified_states[name][1])
        return self._verified_states[name][1]

    def remember(self, backend: BackendName, family: Family, verified_state: VerifiedState) -> None:
        """Store a verified state. Handles are left out: each write changes them."""
        items = tuple(dataclasses.replace(item, handle=0) for item in verified_state.items)
        verified_state = dataclasses.replace(verified_state, items=items)
        if verified_state == self.verified_state(backend, family):
            return
        self._keep(_verified_state_name(backend, family), verified_state)

    def forget(self, backend: BackendName, family: Family) -> None:
        if self.verified_state(backend, family) is not None or self._identity(_verified_state_name(backend, family)):
            self._keep(_verified_state_name(backend, family), None)

    @property
    def status_file(self) -> Path:
        """The path of the status, which is replaced whenever the daemon reports another one."""
        return self._path(_STATUS)

    def status(self) -> dict[str, Any] | None:
        """Return the last status that the daemon reported; None if it cannot be read."""
        content = self._read(_STATUS)
        return content if isinstance(content, dict) else None

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace the status file. Raises StateError."""
        with self._failures.noting(_STATUS):
            self._write(_STATUS, status)

    def authors(self) -> object:
        """Return what was written last for root alone; None if it cannot be read."""
        return self._read(_AUTHORS)

    def write_authors(self, authors: dict[str, Any]) -> None:
        """Replace what root alone may read, if it is new. Raises StateError."""
        with self._failures.noting(_AUTHORS):
            if (self.authors() or {}) != authors:
                self._write(_AUTHORS, authors, 0o600)

    def holder(self) -> Holder:
        """Find out if a daemon holds the directory. Only its owner can open the lock; others read the status file."""
        lock = self._path(_INSTANCE_LOCK)
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return self._without_lock(Holder(False, 0, f"there is no {lock}, so no process holds it"))
        except OSError as error:
            return self._by_status(f"{lock} cannot be opened: {error.strerror}")
        try:
            if try_lock(descriptor, fcntl.LOCK_SH):
                return Holder(False, 0, f"nobody holds {lock}")
            elsewhere = is_of_another_namespace(descriptor)
            return Holder(True, pid_in(descriptor), f"{lock} is held", elsewhere)
        except OSError as error:
            return self._by_status(f"{lock} cannot be locked: {error.strerror}")
        finally:
            os.close(descriptor)

    def _without_lock(self, nobody: Holder) -> Holder:
        """A daemon that could not make the lock may have written its status."""
        holder = self._by_status(nobody.why)
        return holder if holder.runs else nobody

    def _by_status(self, why_not: str) -> Holder:
        status, path = self.status(), self._path(_STATUS)
        if status is None:
            return Holder(None, 0, f"{why_not}; {path} cannot be read either")
        if status.get("state") == "stopped":
            return Holder(False, 0, f"{path} says so")
        pid = status.get("pid")
        pid = pid if type(pid) is int and 0 < pid < _MAX_PID else 0
        if _lives(pid):
            if is_of_the_program(f"/proc/{pid}"):
                return Holder(True, pid, f"{path} names pid {pid}, which lives")
            other = f"{path} names pid {pid}, here another program: the daemon has ended, or runs in a container"
            return Holder(None, 0, f"{why_not}; {other}")
        if not Path("/proc/1").exists():  # hidepid= of proc(5)
            return Holder(None, 0, f"{why_not}; /proc hides the processes of others")
        return Holder(False, 0, f"{path} names pid {pid}, which has ended")

    @contextlib.contextmanager
    def instance(self, seconds: float = _ASKED_SECONDS) -> Iterator[None]:
        """Hold the instance lock, if it can be opened. Raises as `take_instance` does."""
        try:
            self.take_instance(seconds)
            yield
        finally:
            descriptor, self._instance = self._instance, None
            _close(descriptor)

    def take_instance(self, seconds: float = 0.0) -> None:
        """Take the instance lock, unless it cannot be opened. If this process holds it already, write its pid again.

        Raises AlreadyRunning after `seconds`, with the pid of the other daemon; StateError if other users can write the
        directory.
        """
        if self._instance is not None:
            self._write_pid(self._instance)
            return
        self._refuse_insecure()
        descriptor = self._open_lock(_INSTANCE_LOCK)
        if descriptor is None:
            return
        try:
            self._wait_for_instance(descriptor, seconds)
        except AlreadyRunning:
            os.close(descriptor)
            raise
        self._instance = descriptor
        self._write_pid(descriptor)

    def _write_pid(self, lock: int) -> None:
        with self._failures.noting(_INSTANCE_LOCK, go_on=True):
            write_pid(lock)

    def _wait_for_instance(self, descriptor: int, seconds: float) -> None:
        pause, deadline = threading.Event(), time.monotonic() + seconds
        while not self._lock(_INSTANCE_LOCK, descriptor):
            if time.monotonic() >= deadline:
                raise AlreadyRunning(
                    f"another flanneld-masq runs with the state directory {self._directory}: "
                    f"{_describe_process(text_in(descriptor))}; stop it first, or give this one a state_directory of "
                    f"its own"
                )
            pause.wait(min(seconds / 8, _LONGEST_RETRY_SECONDS))

    @contextlib.contextmanager
    def exclusive(self, family: Family) -> Iterator[None]:
        """Hold the lock of a family, to write its rules, if it can be opened.

        Raises StateError if another process holds it for PASS_LOCK_SECONDS.
        """
        name, waited = f"{family}.lock", 0.0
        descriptor = self._open_lock(name)
        try:
            while descriptor is not None and not self._lock(name, descriptor):
                if self._stopping.wait(_RETRY_SECONDS) or waited >= PASS_LOCK_SECONDS:
                    held = f"was held by another flanneld-masq for {waited:.1f} s; it may hang"
                    raise StateError(f"{self._path(name)} {held}")
                waited += _RETRY_SECONDS
            yield
        finally:
            _close(descriptor)

    def stop(self) -> None:
        """Stop waiting for locks, now and until `resume`. Another thread may call it."""
        self._stopping.set()

    def resume(self) -> None:
        self._stopping.clear()

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _identity(self, name: str) -> _Identity:
        try:
            status = self._path(name).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _keep(self, name: str, verified_state: VerifiedState | None) -> None:
        """Write the file, or remove it; what cannot be written is kept in memory until the file changes."""
        self._unwritten.add(name)
        with self._failures.noting(name, go_on=True):
            if verified_state is None:
                self._path(name).unlink(missing_ok=True)
            else:
                self._write(name, dataclasses.asdict(verified_state))
            self._unwritten.discard(name)
        self._verified_states[name] = (self._identity(name), verified_state)

    def _refuse_insecure(self) -> None:
        """Raise StateError if other users can write the directory."""
        try:
            status = self._directory.stat()
        except OSError:
            return
        if not _is_trusted(status.st_uid) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StateError(f"state directory {self._directory} {_INSECURE}; `chown root` and `chmod 755` it")

    def _prepare(self) -> None:
        """Create the directory. Raises OSError, and StateError for one that other users can write."""
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._refuse_insecure()

    def _lock(self, name: str, descriptor: int) -> bool:
        """Return True if the lock could be taken, or if that failed with an error: then it excludes no process."""
        with self._failures.noting(name, go_on=True):
            return try_lock(descriptor)
        return True

    def _open_lock(self, name: str) -> int | None:
        """Return the descriptor of a lock file; None if it cannot be opened."""
        with self._failures.noting(name, go_on=True):
            self._prepare()
            return open_or_make(self._path(name))
        return None

    def _read(self, name: str) -> object:
        """Return the content of a file of JSON; None if it cannot be read, or belongs to a user who is not trusted."""
        try:
            data, status = read_regular(self._path(name), _MAX_BYTES)
            return parse(data) if _is_trusted(status.st_uid) else None
        except (OSError, ValueError):
            return None

    def _read_verified_state(self, name: str) -> VerifiedState | None:
        try:
            return decode(VerifiedState, self._read(name))
        except ValueError:
            return None

    def _write(self, name: str, content: dict[str, Any], mode: int = 0o644) -> None:
        """Replace a file. Raises StateError."""
        try:
            self._prepare()
        except OSError as error:
            raise StateError(f"{self._path(name)} cannot be written: {error.strerror}") from error
        replace_file(self._path(name), json.dumps(content, indent=1), mode)


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file by rename, so that a reader sees the old text or the new. Raises StateError.

    It removes the temporary file of a killed writer. A lock of the caller ensures that there is one writer at a time.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateError(f"{path} cannot be written: {error.strerror}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, or name another state_directory"
    if error.errno == errno.EROFS or _is_service(os.geteuid()):
        return (
            f"leave state_directory at its default, or make a directory that the user {SERVICE_USER} may write, and "
            f"name it in ReadWritePaths= of a drop-in (`systemctl edit flanneld-masq`)"
        )
    return "check the files there, or name another state_directory" if os.geteuid() == 0 else "run as root"


def _is_trusted(uid: int) -> bool:
    """Return True for a user whose files are accepted: root, that of this process, or the user of the service."""
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


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _verified_state_name(backend: BackendName, family: Family) -> str:
    return f"{backend}-{family}.json"


def _describe_process(pid: str) -> str:
    try:
        command = read_start(Path(f"/proc/{int(pid)}/cmdline"), _MAX_COMMAND_BYTES).replace(b"\0", b" ")
    except (OSError, ValueError):
        return f"pid {pid}"
    return f"pid {pid} ({printable(command.decode(errors='replace').strip())})"
