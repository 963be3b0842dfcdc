"""Polls the legacy tables, which have no events: cheap system calls on a grid of time that both families share."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable

from flanneld_masq.errors import MasqError

POLL_GRID_SECONDS = 0.5
POLL_TOLERANCE = 0.1  # of the grid: a poll that came a little early is that of its turn
REPAIR_PAUSE = 3.0  # times the work of a pass: repairs may take a quarter of the CPU, however many are needed
FRUITLESS_PAUSE = 150.0  # the same if a poll had caused the pass and nothing was wrong: under 1 % of the CPU
MAX_PAUSE_SECONDS = 20.0  # 80,000 rules take 0.13 s of CPU time


class LegacyPoller:
    """Calls `poll` until it returns True or raises MasqError, then calls `moved` and ends.

    The pass that follows meets the same error and reports it. Never polls while a pass runs: a pass calls `stop`, and
    `start` at its end.
    """

    def __init__(self, poll: Callable[[], bool], moved: Callable[[], None]) -> None:
        self._poll = poll
        self._moved = moved
        self._timer: asyncio.TimerHandle | None = None

    def start(self, every: float, pause: float = 0.0) -> None:
        """Poll each `every` seconds, after a pause of so many seconds."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(next_turn(loop.time(), pause, every), self._turn, every)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def polling(self) -> bool:
        return self._timer is not None

    def _turn(self, every: float) -> None:
        try:
            moved = self._poll()
        except MasqError:
            moved = True
        if moved:
            self._moved()
        else:
            self.start(every)


def pause_after(worked: float, *, fruitless: bool) -> float:
    """Return the seconds without a poll after a pass that took `worked` seconds of CPU time.

    `fruitless` is True if a poll had caused the pass, and nothing was wrong.
    """
    return min(worked * FRUITLESS_PAUSE, MAX_PAUSE_SECONDS) if fruitless else worked * REPAIR_PAUSE


def next_turn(now: float, pause: float, every: float) -> float:
    """Return the time of the next poll: at least `pause` seconds after `now`, and then within `every` seconds.

    Turns lie on a grid that both families share, so that they wake the process together. A poll that is late for a turn
    does not skip the next one.
    """
    grid = min(every, POLL_GRID_SECONDS)
    return math.floor((now + pause + every) / grid + POLL_TOLERANCE) * grid


def cpu_seconds() -> float:
    """Return the CPU time of this thread and of all tools that have ended. Waiting for a lock is no work."""
    used = os.times()
    return time.thread_time() + used.children_user + used.children_system
