"""Feeds the commits to nf_tables, as the kernel reports them, to the families."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from flanneld_masq.controller.attribution import MAX_HEARD
from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.errors import MasqError
from flanneld_masq.kernel.ruleset_events import RulesetEvents, Transaction
from flanneld_masq.model import Family

EVENT_PAUSE_SECONDS = 0.02


class RulesetFeed:
    """Queues each commit for each family. The event loop calls `deliver` when something is queued; `drain` never does.

    Without a socket the resync alone finds what other programs change. `subscribe` opens the socket.
    """

    def __init__(
        self,
        deliver: Callable[[], None],
        log: Callable[[LogEntry], None],
        subscribe: Callable[[], RulesetEvents] = RulesetEvents,
    ) -> None:
        self._deliver = deliver
        self._log = log
        self._subscribe = subscribe
        self._events: RulesetEvents | None = None
        self._queues: dict[Family, deque[Transaction]] = {family: deque(maxlen=MAX_HEARD) for family in Family}
        self._lost: set[Family] = set()
        self.heard: int | None = None  # the generation of the last commit that was reported

    def start(self) -> None:
        """Have the kernel report all commits from now on."""
        try:
            self._events = self._subscribe()
        except MasqError as error:
            self._log(notice(f"{error}; drift is found at the resync only", logging.WARNING))
            return
        self._resume()

    def stop(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

    def drain(self) -> None:
        """Queue what was committed until now; the families hear of it in the next turn. Raises KernelError."""
        if self._read():
            asyncio.get_running_loop().call_soon(self._deliver)

    def take(self, family: Family) -> tuple[tuple[Transaction, ...], bool]:
        """Return what is queued for a family, and whether events were lost."""
        transactions, lost = tuple(self._queues[family]), family in self._lost
        self._queues[family].clear()
        self._lost.discard(family)
        return transactions, lost

    def _read(self) -> bool:
        """Queue what the kernel reports. Return True if that is anything."""
        transactions, lost = self._events.read() if self._events is not None else ((), False)
        for queue in self._queues.values():
            queue.extend(transactions)
        if transactions:
            self.heard = transactions[-1].generation
        if lost:
            self._lost.update(Family)
        return bool(transactions) or lost

    def _on_readable(self) -> None:
        try:
            self._read()
        except MasqError as error:
            self._log(notice(f"{error}; the resync finds what was missed", logging.WARNING, once=True))
        self._deliver()
        # the events of the next moment are read together: on a busy host that bounds what reading costs
        asyncio.get_running_loop().call_soon(self._pause)  # behind the repair, which is on its way by then

    def _pause(self) -> None:
        if self._events is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._events.fileno())
            loop.call_later(EVENT_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events.fileno(), self._on_readable)
