"""Starts the program in a third of the time: a process that has imported it already forks, by multiprocessing.

The kernel layer starts it 1,300 times, and most of a short command is the import of its modules. A child has arguments,
environment, files and a network namespace of its own, and ends like any program; only the imports are shared. A test of
the start itself, of a SIGHUP during it, or of what the environment does to it, starts it as a user does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, reduction
from typing import IO, Any, Optional

from flanneld_masq.selftest import netns
from flanneld_masq.selftest.netns import Netns

_context = multiprocessing.get_context("forkserver")
_prepared: list[tuple[int, dict[str, str]]] = []


def prepare() -> None:
    """Start the process that forks, where it keeps no namespace of a test alive."""
    _context.set_forkserver_preload(["flanneld_masq.cli.main", "tests.preloaded", "tests.kernel.ends_with_tests"])
    forkserver.ensure_running()
    _prepared.append(_process())


def possible() -> bool:
    """Return False in a process that did not `prepare`, with other settings of Python, and for `make coverage`."""
    return _process() in _prepared and "COVERAGE_PROCESS_START" not in os.environ


def _process() -> tuple[int, dict[str, str]]:
    return os.getpid(), {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}


class _Descriptor:
    """Arrives in the child as a number, that of a duplicate."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._number),)


def _received(duplicate: Any) -> int:
    return int(duplicate.detach())


class Started:
    """The program, started in the network namespace of this thread, with what tests need of `subprocess.Popen`.

    `argv` is what follows the program's name; `out` and `err` are file descriptors. It ends with this process.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], out: int, err: int) -> None:
        self.args = argv
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        files = (_Descriptor(namespace), _Descriptor(out), _Descriptor(err))
        self._process = _context.Process(target=_become, args=(tuple(argv), dict(environ), *files), daemon=True)
        try:
            self._process.start()
        finally:
            os.close(namespace)
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> Optional[int]:
        return self._process.exitcode

    def poll(self) -> Optional[int]:
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> int:
        """Return the exit status, minus the number of the signal that ended it. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        status = self.returncode
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(argv: Sequence[str], environ: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with what it printed. Raises subprocess.TimeoutExpired after `timeout` seconds, and
    shows what the program had printed by then."""
    with os.fdopen(os.memfd_create("out"), "r+") as out, os.fdopen(os.memfd_create("err"), "r+") as err:
        started = Started(argv, environ, out.fileno(), err.fileno())
        try:
            status = started.wait(timeout)
        except subprocess.TimeoutExpired:
            print(*argv, "does not end. It printed:", _whole(out), _whole(err))
            raise
        finally:
            started.kill()
        return subprocess.CompletedProcess(argv, status, _whole(out), _whole(err))


def _whole(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _become(argv: tuple[str, ...], environ: dict[str, str], namespace: int, out: int, err: int) -> None:
    """Be the program, in a child that has just been forked."""
    netns.die_with_parent()
    os.environ.clear()
    os.environ.update(environ)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.argv = ["flanneld-masq", *argv]
    with Netns("the namespace of the test", namespace).entered():
        runpy.run_module("flanneld_masq", run_name="__main__", alter_sys=True)
