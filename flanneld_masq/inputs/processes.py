"""Reads what /proc tells of processes. Formats: proc_loadavg(5), proc_pid_comm(5), proc_pid_cmdline(5), cgroups(7).

It does little more than the system calls, for it runs whenever a program uses the lock of iptables-legacy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

MAX_READ = 4096  # bytes
_PROGRAM = b"flanneld"  # in the command line of each daemon and command, however it was started


class Process(NamedTuple):
    """A process, as the files of /proc describe it. `command` and `cgroup` are empty for one that has just ended."""

    pid: int
    name: bytes
    command: bytes = b""
    cgroup: bytes = b""


def read_process(pid: int, proc: str = "/proc") -> Process | None:
    """Return what is known of a process of the pid namespace of `proc`; None if there is none."""
    name = _read(f"{proc}/{pid}/comm")
    return _described(pid, name, proc) if name else None


def recent_processes(names: tuple[bytes, ...], count: int, proc: str = "/proc") -> Iterator[Process]:
    """Yield the processes whose name begins with one of `names`, the latest first.

    /proc/loadavg ends with the pid that was given last in the pid namespace of `proc`. Only that and the `count - 1`
    numbers before it are tried, which processes and threads share. A process that has ended keeps its name until its
    parent has noticed.
    """
    last = _read(f"{proc}/loadavg").rpartition(b" ")[2].strip()
    newest = int(last) if last.isdigit() else 0
    for pid in range(newest, max(0, newest - count), -1):
        name = _read(f"{proc}/{pid}/comm")
        if name.startswith(names):
            yield _described(pid, name, proc)


def is_running(pid: int, proc: str = "/proc") -> bool:
    """Return True unless the process has ended, or is about to: it gives up its memory before it closes its files."""
    return bool(_read(f"{proc}/{pid}/cmdline"))


def is_of_the_program(process: str) -> bool:
    """Return True if the command line of a process names this program, or is hidden (hidepid=1 of proc(5)). `process`
    is its directory below /proc."""
    try:
        return _PROGRAM in _read_start(f"{process}/cmdline")
    except PermissionError:
        return True
    except OSError:
        return False


def _described(pid: int, name: bytes, proc: str) -> Process:
    return Process(pid, name, _read(f"{proc}/{pid}/cmdline"), _read(f"{proc}/{pid}/cgroup"))


def _read(path: str) -> bytes:
    try:
        return _read_start(path)
    except OSError:  # ESRCH: it has ended
        return b""


def _read_start(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.read(descriptor, MAX_READ)
    finally:
        os.close(descriptor)
