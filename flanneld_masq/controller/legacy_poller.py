"""Asks the kernel if the legacy tables changed: after each use of their lock, and at an interval.

The kernel sends no events for these tables. The interval finds changes by programs that take no lock. A question takes
one or two system calls and starts no process.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Container, Iterable

from flanneld_masq.controller.attribution import LockSuspects
from flanneld_masq.errors import MasqError
from flanneld_masq.inputs.processes import Process

POLL_TOLERANCE = 0.1  # of the interval: a poll that came a little early is that of its turn
REPAIR_PAUSE = 3.0  # times the work of a pass: repairs may take a quarter of the CPU, however many are needed
FRUITLESS_PAUSE = 150.0  # the same if a poll had caused the pass and nothing was wrong: under 1 % of the CPU
FREE_PAUSE_SECONDS = 3.0  # pauses may wait until so much is owed, so that a few passes follow each other at once
MAX_PAUSE_SECONDS = 20.0  # 80,000 rules take 0.13 s of CPU time


class LegacyPoller:
    """Calls `poll` until it returns True or raises MasqError, then calls `moved` and ends.

    The pass that follows meets the same error and reports it. Never polls while a pass runs: a pass calls `stop`, and
    `start` at its end. `own` has the pids of the programs that this process runs.
    """

    def __init__(self, poll: Callable[[], bool], moved: Callable[[], None], own: Container[int] = ()) -> None:
        self.suspects = LockSuspects(own)
        self._poll = poll
        self._moved = moved
        self._pauses = Pauses()
        self._every: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ready: float | None = None  # no poll comes before that time; None while none comes at all
        self._released = False  # the lock, since the last poll

    def start(self, every: float | None, worked: float, *, fruitless: bool) -> None:
        """A pass ended well, and took `worked` seconds of CPU time: poll each `every` seconds, or for None only if a
        program releases the lock. `fruitless` is True if a poll had caused the pass, and nothing was wrong."""
        self.suspects.pass_succeeded()
        now = asyncio.get_running_loop().time()
        pause = self._pauses.after(now, worked, fruitless=fruitless)
        self._ready = now + pause
        self._wait(every, pause)
        if self._released:
            self._poll_soon()

    def stop(self) -> None:
        """A pass begins, or the daemon ends."""
        self.suspects.pass_begins()
        self._end()

    def lock_released(self, programs: Iterable[Process]) -> None:
        """These are done with the lock: poll now, or as soon as the pass and the pause are over."""
        self.suspects.add(programs)
        self._released = True
        self._poll_soon()

    def _poll_soon(self) -> None:
        if self._ready is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._ready:
            self._cancel()
            self._timer = loop.call_at(self._ready, self._turn, self._every)
        elif not self._ask():
            self.suspects.acquit()  # a poll by the clock may find a program in the middle of a change

    def _turn(self, every: float | None) -> None:
        self._timer = None
        released = self._released
        if self._ask():
            return
        if released:
            self.suspects.acquit()
        self._wait(every)

    def _ask(self) -> bool:
        """Poll; return True if that was the last time, for a pass is needed."""
        self._released = False
        try:
            moved = self._poll()
        except MasqError:
            moved = True
        if moved:
            self._end()
            self._moved()
        return moved

    def _wait(self, every: float | None, pause: float = 0.0) -> None:
        self._every = every
        if every is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(next_turn(loop.time(), pause, every), self._turn, every)

    def _end(self) -> None:
        self._ready = None
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Pauses:
    """Says how long nothing is read after a pass, so that passes take a bounded share of the CPU. Pure.

    A few cheap passes may follow each other at once: only what is owed beyond FREE_PAUSE_SECONDS has to be waited for.
    """

    def __init__(self) -> None:
        self._paid_at = -math.inf  # when all pauses are over

    def after(self, now: float, worked: float, *, fruitless: bool) -> float:
        """Return the seconds without a poll after a pass that took `worked` seconds of CPU time and ended `now`."""
        owed = min(worked * (FRUITLESS_PAUSE if fruitless else REPAIR_PAUSE), MAX_PAUSE_SECONDS)
        self._paid_at = max(self._paid_at, now) + owed
        return max(0.0, self._paid_at - now - FREE_PAUSE_SECONDS)


def next_turn(now: float, pause: float, every: float) -> float:
    """Return the time of the next poll: at least `pause` seconds after `now`, and then within `every` seconds.

    Turns lie on a grid that both families share, so that they wake the process together. A poll that is late for a turn
    does not skip the next one.
    """
    return math.floor((now + pause + every) / every + POLL_TOLERANCE) * every


def cpu_seconds() -> float:
    """Return the CPU time of this thread and of all tools that have ended. Waiting for a lock is no work."""
    used = os.times()
    return time.thread_time() + used.children_user + used.children_system
