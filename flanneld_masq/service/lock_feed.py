"""Feeds to the families that the lock of iptables-legacy is free again, and who used it.

Each of its programs opens the lock file before it reads a table, and keeps it open until it ends. inotify reports both,
but not by whom. /proc/locks names the holder, but the kernel makes its reader wait for a grace period of RCU (measured:
6 to 10 ms; percpu_down_write in locks_start of fs/locks.c), and most programs have ended by then. So it is read only if
several programs have the file open, or if none is known. Else a program of iptables that was started last before the
open, and has ended by the close, is taken for the user.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.inputs.lock_events import LockEvents, LockState, Use
from flanneld_masq.inputs.lock_watch import LockWatch
from flanneld_masq.inputs.processes import Process, is_running, read_process, recent_processes
from flanneld_masq.lock_files import flock_users
from flanneld_masq.process import xtables_lock

LOOK_SECONDS = 0.004  # from an event that says too little to a look at /proc/locks
MAX_STARTED = 8  # processes and threads since the user of the lock
TOOLS = (b"iptables\n", b"ip6tables\n", b"iptables-l", b"ip6tables-l", b"iptables-r", b"ip6tables-r", b"xtables-l")


class Listener(Protocol):
    def lock_released(self, programs: Sequence[Process]) -> None:
        """All programs are done with the lock. `programs` used it, as far as it is known."""


class LockFeed:
    """Watches the lock file. `root` is the root directory of all files."""

    def __init__(self, listeners: Sequence[Listener], log: Callable[[LogEntry], None], root: Path = Path("/")) -> None:
        self._listeners = listeners
        self._log = log
        self._root = root
        self._proc = str(root / "proc")
        self._path = xtables_lock(root)
        self._events = LockEvents(self._path)
        self._watch = LockWatch(self._events, self._on_uses)
        self._state = LockState()
        self._likely: dict[int, Process] = {}  # by pid: the programs that may have used the lock since it was free
        self._certain: dict[int, Process] = {}  # the same for those that /proc/locks names
        self._last: frozenset[int] = frozenset()  # the pids of the programs that were reported last
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._watch.start()
        self._complain()

    def refresh(self) -> None:
        """Follow the directory of the lock file, should it have been made again."""
        self._events.refresh()
        self._complain()

    def stop(self) -> None:
        self._watch.stop()
        self._cancel()

    def _complain(self) -> None:
        if self._events.failure:
            what = f"cannot watch {self._path}: {self._events.failure}"
            message = f"{what}; changes by iptables-legacy are noticed by polling alone"
            self._log(notice(message, logging.WARNING, once=True))

    def _on_uses(self, uses: tuple[Use, ...]) -> None:
        for use in uses:
            self._state.note(use)
        if Use.OPENED in uses or not self._likely:
            recent = recent_processes(TOOLS, MAX_STARTED, self._proc)
            self._likely.update((one.pid, one) for one in recent if one.pid not in self._last)
        if self._state.free:
            self._release()
        elif self._timer is None and not (self._likely and self._state.known):
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Read /proc/locks: identify the process that holds the lock, or report that no process does."""
        self._cancel()
        users = flock_users(self._path, self._root / "proc/locks")
        known = (read_process(pid, self._proc) for pid in (*users.waiting, *users.holding))
        self._certain.update((one.pid, one) for one in known if one is not None)
        if not users.waiting and not users.holding:
            self._state.found_free()
            self._release()

    def _release(self) -> None:
        """Report the programs that used the lock. One that goes on has probably not: then it would hold the lock."""
        self._cancel()
        ended = {pid: one for pid, one in self._likely.items() if not is_running(pid, self._proc)}
        programs = {**ended, **self._certain}
        self._last, self._likely, self._certain = frozenset(programs), {}, {}
        for listener in self._listeners:
            listener.lock_released(tuple(programs.values()))

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
