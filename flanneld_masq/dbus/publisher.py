"""Publishes the daemon on the system bus, which may be missing, come later, or come and go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from flanneld_masq.controller.backoff import retry_delay
from flanneld_masq.controller.status import Status, to_json
from flanneld_masq.dbus import manager1
from flanneld_masq.dbus.connection import BUS, Connection, connect
from flanneld_masq.dbus.excess_report import ExcessReport
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import ERROR, PROPERTIES, Message, Object
from flanneld_masq.dbus.reload_signals import ReloadSignals
from flanneld_masq.errors import BusError
from flanneld_masq.hookspecs import Event
from flanneld_masq.reconcile.values import Repair

BACK = "system bus back"
_LOGGER = logging.getLogger("flanneld_masq")
_DENIED = f"{ERROR}AccessDenied"
_GOODBYE_SECONDS = 0.2
STABLE_SECONDS = 10.0  # a connection that lasted so long ends for another reason than the one before


class Manager(Protocol):
    """The daemon, as the bus sees it. All methods are called from the event loop's thread."""

    def status(self) -> Status:
        """Return the status of this moment."""

    async def reconcile(self) -> Iterable[Repair]:
        """Run a pass over all families now; return what was repaired. Raises MasqError."""

    def reload(self) -> None:
        """Read the configuration again. Raises ConfigError."""

    def on_external_hint(self, reason: str) -> None:
        """Run a pass soon: another program may have changed the ruleset."""


class BusPublisher:
    """Connects, takes the name, serves and listens until `close`. `say` gets what an administrator should know."""

    def __init__(self, owner: Manager, say: Callable[[str], None]) -> None:
        self._owner = owner
        self._say = say
        self._lacking: set[str] = set()  # what was said to be missing
        self._failures = 0
        self._status: Status = owner.status()
        self._connection: Connection | None = None  # while it has the daemon's name
        self._object = Object(
            PATH,
            MANAGER,
            values=lambda: manager1.properties(owner.status()),
            methods={"Reconcile": self._reconcile, "Reload": self._reload, "GetStatus": self._get_status},
        )
        self._task = asyncio.ensure_future(self._run())

    def publish(self, status: Status) -> None:
        """Emit what differs from the status before."""
        before, self._status = self._status, status
        if self._connection is None or status == before:
            return
        for arguments in manager1.state_changes(before, status):
            self._emit(manager1.STATE_CHANGED, arguments)
        old, new = manager1.properties(before), manager1.properties(status)
        changed = self._object.variants(new, [name for name in new if new[name] != old[name]])
        if changed:
            self._connection.emit(PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", MANAGER.name, changed, [])

    def tell(self, event: Event) -> None:
        if event.kind == "drift-repaired":
            self._emit(manager1.REPAIRED, manager1.repaired(event))

    async def close(self) -> None:
        """Leave when the last message has gone out."""
        if self._connection is not None:
            with contextlib.suppress(BusError):
                await self._connection.sent(_GOODBYE_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _reconcile(self) -> tuple[Any, ...]:
        return (manager1.changed(await self._owner.reconcile()),)

    async def _reload(self) -> tuple[Any, ...]:
        self._owner.reload()
        return ()

    async def _get_status(self) -> tuple[Any, ...]:
        return (json.dumps(to_json(self._owner.status())),)

    def _emit(self, signal: str, arguments: tuple[Any, ...]) -> None:
        if self._connection is not None:
            signature = "".join(MANAGER.signals[signal].values())
            self._connection.emit(PATH, MANAGER.name, signal, signature, *arguments)

    async def _run(self) -> None:
        try:
            while True:
                await self._once()
                self._failures += 1
                await asyncio.sleep(retry_delay(self._failures))
        except Exception:  # a bug here must not end what keeps the rules, nor be hidden
            _LOGGER.exception("D-Bus: internal error; no D-Bus service until a restart")

    async def _once(self) -> None:
        """Use one connection, from its beginning to its end."""
        try:
            connection = await connect()
        except BusError as error:
            self._lack("bus", f"{error}; no D-Bus service until the bus is available")
            return
        began = asyncio.get_running_loop().time()
        signals = ReloadSignals(connection, self._owner.on_external_hint)
        connection.serve(self._object)
        report = ExcessReport(connection, self._say)
        connection.on_excess = report.add
        connection.listen(
            lambda signal: self._signal(connection, signals, signal),
            lambda header: _name_acquired(header) or signals.wants(header),
        )
        settling = asyncio.ensure_future(self._settle(connection, signals))
        try:
            self._lack("bus", f"the system bus is lost: {await connection.lost()}; no D-Bus service until it is back")
        finally:
            self._connection = None
            settling.cancel()
            signals.stop()
            report.stop()
            connection.close()
        if asyncio.get_running_loop().time() - began > STABLE_SECONDS:
            self._failures = 0

    async def _settle(self, connection: Connection, signals: ReloadSignals) -> None:
        try:
            await signals.start()
            if self._failures:
                self._owner.on_external_hint(BACK)  # for what was said meanwhile was not heard
            await self._take_name(connection)
        except BusError as error:
            self._lack("bus", str(error))
            connection.close()

    async def _take_name(self, connection: Connection) -> None:
        """Ask for the name; a signal says when the daemon has it. A policy that forbids it may change, so try again."""
        for tries in itertools.count(1):
            try:
                if not await connection.own(NAME):
                    (pid,) = await connection.ask_bus("GetConnectionUnixProcessID", NAME)
                    self._lack(
                        "name",
                        f"pid {pid} has the D-Bus name {NAME}; the daemon takes it when that process releases it",
                    )
                return
            except BusError as error:
                if error.name != _DENIED:
                    raise
                self._lack("name", f"{error}; {NAME}.conf in the policies of D-Bus would allow it")
            await asyncio.sleep(retry_delay(tries))

    def _signal(self, connection: Connection, signals: ReloadSignals, signal: Message) -> None:
        if not _name_acquired(signal):
            signals.signal(signal)
        elif signal.body == (NAME,):
            self._connection = connection
            self._status = self._owner.status()
            if self._lacking:
                self._say(f"on the system bus as {NAME}")
            self._lacking.clear()

    def _lack(self, what: str, message: str) -> None:
        """Report it once, until nothing is missing any more."""
        if what not in self._lacking:
            self._lacking.add(what)
            self._say(message)


def _name_acquired(signal: Message) -> bool:
    return (signal.sender, signal.interface, signal.member) == (BUS, BUS, "NameAcquired")
