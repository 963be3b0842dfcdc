"""Joins the system bus, and leaves it. It joins once no rule waits to be written, and imports D-Bus only then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.controller.status import Status
from flanneld_masq.hookspecs import Event

if TYPE_CHECKING:
    from flanneld_masq.dbus.publisher import BusPublisher, Manager


class BusService:
    """The daemon's place on the system bus, which may be missing."""

    def __init__(self, manager: Manager, log: Callable[[LogEntry], None]) -> None:
        self._manager = manager
        self._log = log
        self._publisher: BusPublisher | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._tried = False

    def join(self, *, enabled: bool) -> None:
        """Connect if the settings ask for it (`enabled`) and no connection exists yet."""
        if self._publisher is not None or not enabled:
            return
        try:
            from flanneld_masq.dbus.publisher import BusPublisher
        except ImportError as error:
            message = f"{error}: no D-Bus service until python3-dbus-next is installed; all else works the same"
            self._log(notice(message, once=True))
        else:
            self._publisher = BusPublisher(self._manager, lambda message: self._log(notice(message)))

    def leave(self) -> None:
        if self._publisher is not None:
            self._leaving = asyncio.ensure_future(self._publisher.close())
            self._publisher = None

    async def left(self) -> None:
        """Wait until the last message has gone out."""
        if self._leaving is not None:
            await self._leaving

    def publish(self, status: Status, *, settled: bool, enabled: bool) -> None:
        """Publish the status. The first one that is settled joins the bus: no rule waits any more."""
        if self._publisher is not None:
            self._publisher.publish(status)
        elif settled and not self._tried:
            self._tried = True
            asyncio.get_running_loop().call_soon(lambda: self.join(enabled=enabled))

    def tell(self, event: Event) -> None:
        if self._publisher is not None:
            self._publisher.tell(event)
