"""Heals connections of one family in the background, after the passes that call for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.step_watch import Publisher
from flanneld_masq.controller.worker import Worker
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family
from flanneld_masq.reconcile.healing import Search
from flanneld_masq.reconcile.values import DesiredState

PAUSE_SECONDS = 0.1  # ahead of each search: one follows several repairs in a row, and takes no CPU time from them
_LOGGER = logging.getLogger("flanneld_masq")


class Healer:
    """Searches for connections with the wrong source address, in its own thread: the kernel takes 10 to 30 ms to read
    its table, and a repair must not wait for that. All methods are called from the event loop's thread.

    The caller sets `due` if such connections may have begun since the last search: at the start, after a write, and
    after a change of lease or settings. `search` makes a search, `pause` are the seconds ahead of each.
    """

    def __init__(
        self,
        report: FamilyReport,
        publisher: Publisher,
        search: Callable[[Family, DesiredState], Search] = Search,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self.due = False
        self._report = report
        self._publisher = publisher
        self._search = search
        self._pause = pause
        self._worker = Worker(f"{report.family} flows")
        self._wanted: DesiredState | None = None  # of the next search
        self._task: asyncio.Task[None] | None = None

    def begin(self, desired: DesiredState) -> None:
        """Begin a search soon if one is due; the kernel holds the wanted rules by now. A search that still goes on ends
        first, for it may have passed what the new one is for."""
        if not self.due:
            return
        self.due, self._wanted = False, desired
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Wait for the end of the last step."""
        if self._task is not None:
            self._task.cancel()
        self._worker.close()

    async def _run(self) -> None:
        while self._wanted is not None:
            await asyncio.sleep(self._pause)
            desired, self._wanted = self._wanted, None
            entries = tuple(await self._heal(desired)) if desired.settings.conntrack_heal else ()
            if entries:
                self._publisher.emit(entries)
                self._publisher.publish()

    async def _heal(self, desired: DesiredState) -> Iterable[LogEntry]:
        """Return what is to be logged."""
        search = self._search(self._report.family, desired)
        try:
            while await self._worker.call(search.step):
                if self._wanted is not None:
                    search.close()
                    break
        except MasqError as error:
            return self._report.not_healed(error)
        except Exception as error:  # the top of the task: a bug must not stop the healing, nor be hidden
            _LOGGER.exception("%s: internal error", self._report.family)
            return self._report.not_healed(MasqError(f"internal error: {error!r}"))
        return self._report.healed(search.healed)
