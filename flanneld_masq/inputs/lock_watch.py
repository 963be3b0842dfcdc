"""Reports to the daemon's event loop what programs do with a lock file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flanneld_masq.inputs.lock_events import LockEvents, Use

MAX_READS_PER_SECOND = 200  # of whatever many events each; the next one waits for the next second


class LockWatch:
    """Calls `used` in the running event loop for what programs did with a file."""

    def __init__(self, events: LockEvents, used: Callable[[tuple[Use, ...]], None]) -> None:
        self._events = events
        self._used = used
        self._second = 0  # of the event loop's clock, in which `_reads` are counted
        self._reads = 0

    def start(self) -> None:
        if self._events.descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._events.descriptor, self._on_readable)

    def stop(self) -> None:
        if self._events.descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._events.descriptor)
            self._events.close()

    def _on_readable(self) -> None:
        self._count()
        uses = self._events.read()
        if uses:
            self._used(uses)

    def _count(self) -> None:
        """Stop reading until the next second if that was enough for this one: any user who may read the file can open
        it, without end."""
        loop = asyncio.get_running_loop()
        second = int(loop.time())
        self._reads = self._reads + 1 if second == self._second else 1
        self._second = second
        if self._reads >= MAX_READS_PER_SECOND:
            loop.remove_reader(self._events.descriptor)
            loop.call_at(second + 1, self.start)
