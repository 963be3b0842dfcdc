"""Runs programs: takes argv and input, returns the output or raises CommandError. No other module starts processes.

The memory that a program can make this process need is bounded: too much output is an error, and of too many complaints
the first are kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flanneld_masq.errors import CommandError
from flanneld_masq.model import SLOTS

SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
DEFAULT_TIMEOUT = 20.0
MAX_STDOUT = 64 * 1024 * 1024  # bytes; 80,000 rules of kube-proxy print 20 MB
MAX_STDERR = 16 * 1024
_CHUNK = 64 * 1024
_ENCODING = ("utf-8", "surrogateescape")  # the comment of a foreign rule may hold any bytes, a lone CR among them
LOCKFILE_VARIABLE = "XTABLES_LOCKFILE"  # names the lock file of iptables-legacy
_XTABLES_LOCK = "run/xtables.lock"
_REMEMBERED_PIDS = 64


@dataclass(frozen=True, **SLOTS)
class Completed:
    """The output of a program that ended with status 0."""

    argv: tuple[str, ...]
    stdout: str
    stderr: str


def search_path(environ: Mapping[str, str] = MappingProxyType(os.environ)) -> tuple[str, ...]:
    """Return the directories to search for programs: PATH, then SYSTEM_PATH; each once, absolute ones only."""
    named = environ.get("PATH", "").split(os.pathsep)
    return tuple(dict.fromkeys(path for path in (*named, *SYSTEM_PATH) if os.path.isabs(path)))


def xtables_lock(root: Path = Path("/"), environ: Mapping[str, str] = MappingProxyType(os.environ)) -> Path:
    """Return the lock file of iptables-legacy: each of its programs holds it while it reads and writes tables."""
    named = environ.get(LOCKFILE_VARIABLE, "")
    return Path(named) if named else root / _XTABLES_LOCK


class ProcessRunner:
    """Starts programs with a fixed environment and without a shell. Of `environ` they get LOCKFILE_VARIABLE alone.

    `stop` may be called from another thread: it ends the running programs, by pid, and refuses to start more.
    """

    def __init__(
        self, path: tuple[str, ...] | None = None, environ: Mapping[str, str] = MappingProxyType(os.environ)
    ) -> None:
        self.path = search_path() if path is None else path
        passed = {name: environ[name] for name in (LOCKFILE_VARIABLE,) if name in environ}
        self._environment = {"PATH": os.pathsep.join(self.path), "LC_ALL": "C", **passed}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self.started_pids: deque[int] = deque(maxlen=_REMEMBERED_PIDS)  # of the programs started last
        self.moved = -math.inf  # when a program last started or ended, by the monotonic clock
        self.running: tuple[str, ...] = ()  # the program that one thread waits for; empty while there is none

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> Completed:
        """Run a program to its end; `timeout` is in seconds. Raises CommandError unless it exits with status 0."""
        self.moved = time.monotonic()
        process = self._start(argv, executable)
        try:
            self.running = argv
            stdout, stderr = _Exchange(process, stdin.encode(*_ENCODING)).run(timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise CommandError(argv, f"gave no answer within {timeout:g} s and was ended") from None
        except _TooMuch:
            _kill(process)
            raise CommandError(argv, f"printed more than {MAX_STDOUT >> 20} MiB and was ended") from None
        except BaseException:  # Ctrl-C, or the time limit of a command
            _kill(process)
            raise
        finally:
            with self._lock:
                self._running.discard(process)
            self.running = ()
            self.moved = time.monotonic()
        return _judge(argv, process.returncode, stdout, stderr)

    @property
    def stopped(self) -> bool:
        """True between `stop` and `resume`."""
        return self._stopped

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill_group(process)

    def resume(self) -> None:
        with self._lock:
            self._stopped = False

    def _start(self, argv: tuple[str, ...], executable: str | None) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise CommandError(argv, "was not started: the daemon is stopping")
            try:
                process = subprocess.Popen(
                    argv,
                    executable=executable,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=self._environment,
                    cwd="/",
                    start_new_session=True,  # a group of its own, to end the processes that it starts too
                )
            except OSError as error:
                raise CommandError(argv, f"could not be started: {error.strerror}") from error
            self._running.add(process)
            self.started_pids.append(process.pid)
            return process


class ExitHook:
    """Runs a program once this process has ended, however it ends: also by SIGKILL.

    A shell waits for the end of a pipe that no other process has. It costs no time, and 1 MB. Raises CommandError if it
    cannot be started.
    """

    _WAIT = 'read -r _ || exec "$@"'  # a line says that the program is not to be run

    def __init__(self, argv: tuple[str, ...]) -> None:
        shell = ("sh", "-c", self._WAIT, "sh", *argv)
        try:
            self._shell = subprocess.Popen(
                shell,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.pathsep.join(search_path()), "LC_ALL": "C"},
                cwd="/",
                start_new_session=True,  # a signal to the group of this process must not end it
            )
        except OSError as error:
            raise CommandError(shell, f"could not be started: {error.strerror}") from error

    @property
    def waits(self) -> bool:
        """True unless another program ended the shell."""
        return self._shell.poll() is None

    def cancel(self) -> None:
        """Run nothing at the end of this process."""
        with contextlib.suppress(OSError):
            self._shell.communicate(b"\n")


class _TooMuch(Exception):
    """A program printed more than is accepted."""


class _Exchange:
    """Feeds a program and reads its output until it ends. What it complains beyond MAX_STDERR is read and dropped."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        self._process = process
        self._input = memoryview(stdin)
        self._output = bytearray()
        self._complaints = bytearray()

    def run(self, timeout: float) -> tuple[str, str]:
        """Return standard output and standard error. Raises TimeoutExpired and _TooMuch; then it still runs."""
        deadline = time.monotonic() + timeout
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        with stdin, stdout, stderr, selectors.DefaultSelector() as selector:
            os.set_blocking(stdin.fileno(), False)
            selector.register(stdin, selectors.EVENT_WRITE, self._write)
            selector.register(stdout, selectors.EVENT_READ, self._read_output)
            selector.register(stderr, selectors.EVENT_READ, self._read_complaints)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    if key.data(key.fd):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                if selector.get_map() and time.monotonic() >= deadline:
                    raise subprocess.TimeoutExpired(self._process.args, timeout)
            self._process.wait(max(0.0, deadline - time.monotonic()))
        return self._output.decode(*_ENCODING), self._complaints.decode(*_ENCODING)

    def _write(self, descriptor: int) -> bool:
        """Write more of the input. Return True if that was all, or if the program reads no more."""
        with contextlib.suppress(BlockingIOError):
            try:
                self._input = self._input[os.write(descriptor, self._input[:_CHUNK]) :]
            except BrokenPipeError:
                return True
        return not self._input

    def _read_output(self, descriptor: int) -> bool:
        """Read more of the output. Return True at its end."""
        data = os.read(descriptor, _CHUNK)
        self._output += data
        if len(self._output) > MAX_STDOUT:
            raise _TooMuch
        return not data

    def _read_complaints(self, descriptor: int) -> bool:
        data = os.read(descriptor, _CHUNK)
        self._complaints += data[: MAX_STDERR - len(self._complaints)]
        return not data


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children."""
    _kill_group(process)
    process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _judge(argv: tuple[str, ...], status: int, stdout: str, stderr: str) -> Completed:
    if status < 0:
        raise CommandError(argv, f"was ended by {_signal_name(-status)}", status=status, stderr=stderr.strip())
    if status > 0:
        raise CommandError(argv, f"failed with exit status {status}", status=status, stderr=stderr.strip())
    return Completed(argv, stdout, stderr)
