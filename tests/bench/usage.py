"""Counters of the kernel for a process."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from flanneld_masq.model import SLOTS
from flanneld_masq.selftest.netns import spawn

from .clock import BenchError, now, pause, until

_TICKS = os.sysconf("SC_CLK_TCK")
_MINFLT_OF_CHILDREN, _UTIME_OF_CHILDREN, _STIME_OF_CHILDREN = 8, 13, 14  # in /proc/PID/stat, behind the name
_QUIET_SECONDS, _QUIET_CPU, _SETTLE_SECONDS = 0.3, 0.001, 30.0
_STARTED = re.compile(r"\b(execve|execveat|fork|vfork|clone|clone3)\(")


@dataclass(frozen=True, **SLOTS)
class Usage:
    """`cpu` and `children` in seconds. `faults` are page faults of children that ended: no process that was
    started and waited for has none. `switches` are the times that a thread went to sleep, `turns` those of the first
    thread: as often its event loop woke up."""

    moment: float
    cpu: float
    children: float
    faults: int
    switches: int
    turns: int
    living: int

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.moment - earlier.moment,
            self.cpu - earlier.cpu,
            self.children - earlier.children,
            self.faults - earlier.faults,
            self.switches - earlier.switches,
            self.turns - earlier.turns,
            self.living,
        )

    @property
    def share(self) -> float:
        """CPU time of the process and its children, as a share of one core."""
        return (self.cpu + self.children) / self.moment

    @property
    def alone(self) -> bool:
        """True if no child process lives, and none ended in the time between."""
        return self.faults == 0 and self.living == 0


def usage_of(pid: int) -> Usage:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[_UTIME_OF_CHILDREN]) + int(fields[_STIME_OF_CHILDREN])
    return Usage(
        now(),
        sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9,
        ticks / _TICKS,
        int(fields[_MINFLT_OF_CHILDREN]),
        sum(_status(task / "status", "voluntary_ctxt_switches") for task in tasks),
        _status(Path(f"/proc/{pid}/status"), "voluntary_ctxt_switches"),
        sum(len((task / "children").read_text().split()) for task in tasks),
    )


def settle(pid: int) -> None:
    """Wait until the process does nothing: what it still had to do after its start is no idleness.

    A process with a timer may never rest on a busy machine, where each wake-up costs much; the bench then goes on.
    """

    def quiet() -> bool:
        before = usage_of(pid)
        pause(_QUIET_SECONDS)
        used = usage_of(pid).since(before)
        return used.alone and used.cpu < _QUIET_CPU

    with contextlib.suppress(BenchError):
        until(quiet, f"process {pid} comes to rest", deadline=_SETTLE_SECONDS)


def resident(pid: int) -> float:
    """Megabytes."""
    return _status(Path(f"/proc/{pid}/status"), "VmRSS") * 1024 / 1e6


def _status(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def traced(pid: int, output: Path) -> Iterator[Optional[list[str]]]:
    """Under strace: afterwards the list has each call that started a process or program. None without strace."""
    if shutil.which("strace") is None:
        yield None
        return
    found: list[str] = []
    argv = ("strace", "-f", "-qq", "-e", "trace=execve,execveat,fork,vfork,clone,clone3", "-o", str(output))
    with output.with_suffix(".errors").open("wb") as errors:
        process = spawn((*argv, "-p", str(pid)), output=errors)
    until(lambda: _all_traced(pid), f"strace attaches to {pid}")
    try:
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        until(lambda: process.poll() is not None, "strace ends")
        lines = output.read_text(errors="replace").splitlines()
        found += [line for line in lines if _STARTED.search(line) and "CLONE_THREAD" not in line]


def _all_traced(pid: int) -> bool:
    return all(_status(task / "status", "TracerPid") for task in Path(f"/proc/{pid}/task").iterdir())
