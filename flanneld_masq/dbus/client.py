"""The running daemon, asked over D-Bus by a command. Nothing is started for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flanneld_masq.dbus import manager1
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import ERROR
from flanneld_masq.errors import BusError
from flanneld_masq.reconcile.values import Repair

if TYPE_CHECKING:
    from flanneld_masq.dbus.connection import Connection

STATUS_SECONDS = 5.0
RECONCILE_SECONDS = 150.0  # the slowest tool has a minute
_NOBODY = ("", f"{ERROR}ServiceUnknown", f"{ERROR}NameHasNoOwner")
_Result = TypeVar("_Result")


def status(meant: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the daemon says of itself that is meant: its status has all these values. None where it cannot be asked,
    or another one is on the bus."""
    with contextlib.suppress(BusError):
        return _ask(meant, _nothing_else)
    return None


def reconcile(meant: Mapping[str, Any]) -> list[Repair] | None:
    """Have it look at all families now; what it changed. None as above. Raises BusError if it failed or refused."""
    try:
        return _ask(meant, _reconcile)
    except BusError as error:
        if error.name in _NOBODY:
            return None
        raise BusError("the daemon", error.reason, error.name) from error


async def _nothing_else(_: Connection, found: dict[str, Any]) -> dict[str, Any]:
    return found


async def _reconcile(connection: Connection, _: dict[str, Any]) -> list[Repair]:
    (changed,) = await connection.call(NAME, PATH, MANAGER.name, "Reconcile", seconds=RECONCILE_SECONDS)
    return manager1.repairs(changed)


def _ask(
    meant: Mapping[str, Any], question: Callable[[Connection, dict[str, Any]], Awaitable[_Result]]
) -> _Result | None:
    """Ask the daemon that is meant, whose status the question gets. Raises BusError."""
    try:
        from flanneld_masq.dbus.connection import connect
    except ImportError:
        return None

    async def ask() -> _Result | None:
        connection = await connect()
        try:
            (text,) = await connection.call(NAME, PATH, MANAGER.name, "GetStatus", seconds=STATUS_SECONDS)
            found = json.loads(text)
            return await question(connection, found) if meant.items() <= found.items() else None
        finally:
            connection.close()

    return asyncio.run(ask())
