"""Decides when the forward group leaves a backend in which nothing drops pods any more.

A firewall that reloads accepts everything for a moment: ufw for 0.7 s of its two. A group that left at once would move
there and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEAVE_SECONDS = 0.55  # without a commit; longer than a turn of the poll of legacy tables
MAX_STAY_SECONDS = 5.0
_LOOK_SECONDS = 0.1  # between two looks


class Departure:
    """Calls `leave` once no program has committed for LEAVE_SECONDS, after MAX_STAY_SECONDS at the latest. `commits`
    counts those of all programs."""

    def __init__(self, commits: Callable[[], int], leave: Callable[[], None]) -> None:
        self.due = False
        self._commits = commits
        self._leave = leave
        self._timer: asyncio.TimerHandle | None = None
        self._began = self._moved = 0.0
        self._seen = 0

    def wait(self) -> None:
        """A pass found that the group may leave. Each pass is a sign of change, for legacy tables have no commits."""
        loop = asyncio.get_running_loop()
        self._moved, self._seen = loop.time(), self._commits()
        if self._timer is None:
            self._began = self._moved
            self._timer = loop.call_later(_LOOK_SECONDS, self._look)

    def stop(self) -> None:
        """The group stays, or has left."""
        self.due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now, before, self._seen = loop.time(), self._seen, self._commits()
        if self._seen != before:
            self._moved = now
        if now < min(self._moved + LEAVE_SECONDS, self._began + MAX_STAY_SECONDS):
            self._timer = loop.call_later(_LOOK_SECONDS, self._look)
        else:
            self._timer, self.due = None, True
            self._leave()
