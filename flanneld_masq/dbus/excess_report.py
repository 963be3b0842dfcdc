"""Logs which process sends more than the daemon answers: once a minute at most, whatever comes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from flanneld_masq.dbus.call_queue import MAX_OF_ONE
from flanneld_masq.dbus.connection import MAX_BODY, Connection
from flanneld_masq.errors import BusError

REPORT_SECONDS = 60.0


class ExcessReport:
    """Asks the bus for the process and the user of a sender, and gives one line to `say`."""

    def __init__(self, connection: Connection, say: Callable[[str], None]) -> None:
        self._connection = connection
        self._say = say
        self._next = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def add(self, sender: str) -> None:
        """Report the sender, unless one was reported within the last minute."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next:
            self._next = loop.time() + REPORT_SECONDS
            self._asking = asyncio.ensure_future(self._report(sender))

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _report(self, sender: str) -> None:
        try:
            (pid,) = await self._connection.ask_bus("GetConnectionUnixProcessID", sender)
            (user,) = await self._connection.ask_bus("GetConnectionUnixUser", sender)
            who = f"pid {pid} of user {user}"
        except BusError:
            who = "a process that has left the bus"
        self._say(
            f"D-Bus: {who} exceeds the limit: {MAX_OF_ONE} calls at a time, {MAX_BODY} bytes each; the daemon drops "
            "the excess"
        )
