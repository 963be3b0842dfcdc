"""Asks the running daemon over D-Bus, for a command. Starts nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flanneld_masq import footprint
from flanneld_masq.controller.status import Status, from_json
from flanneld_masq.dbus import manager1
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import ERROR
from flanneld_masq.errors import BusError
from flanneld_masq.inputs.json_values import parse
from flanneld_masq.model import SLOTS
from flanneld_masq.reconcile.values import Repair

if TYPE_CHECKING:
    from flanneld_masq.dbus.connection import Connection

STATUS_SECONDS = 5.0
RECONCILE_SECONDS = 150.0  # the slowest tool has a minute
MAX_ANSWER = 16 << 20  # bytes; a status may list as many changes as another program made to the daemon's chains
_NOBODY = ("", f"{ERROR}ServiceUnknown", f"{ERROR}NameHasNoOwner")
_Result = TypeVar("_Result")


@dataclass(frozen=True, **SLOTS)
class Instance:
    """The daemon that is meant: None for what does not matter. Another one may be on the bus."""

    pid: int | None = None
    config: str | None = None

    def matches(self, status: Status) -> bool:
        return self.pid in (None, status.pid) and self.config in (None, status.config)


def status(instance: Instance) -> Status | None:
    """Return the status of that daemon; None if it cannot be asked, or if another one is on the bus."""
    with contextlib.suppress(BusError):
        return _ask(instance, _nothing_else)
    return None


def reconcile(instance: Instance) -> list[Repair] | None:
    """Have that daemon run a pass over all families; return what it changed. None as above.

    Raises BusError if it failed or refused.
    """
    try:
        return _ask(instance, _reconcile)
    except BusError as error:
        if error.name in _NOBODY:
            return None
        raise BusError("the daemon", error.reason, error.name) from error


def status_in(text: str) -> Status:
    """Read the answer of GetStatus. Raises ValueError for that of another release."""
    return from_json(parse(text.encode()))


async def _nothing_else(_: Connection, status: Status) -> Status:
    return status


async def _reconcile(connection: Connection, _: Status) -> list[Repair]:
    (changed,) = await _call(connection, "Reconcile", RECONCILE_SECONDS)
    return manager1.repairs(changed)


async def _call(connection: Connection, method: str, seconds: float) -> tuple[Any, ...]:
    answers = "".join(MANAGER.methods[method].values())
    return await connection.call(NAME, PATH, MANAGER.name, method, seconds=seconds, answers=answers)


def _ask(instance: Instance, question: Callable[[Connection, Status], Awaitable[_Result]]) -> _Result | None:
    """Ask that daemon; the question gets its status. Raises BusError."""
    footprint.load_asyncio()
    import asyncio

    try:
        from flanneld_masq.dbus.connection import connect
    except ImportError:
        return None

    async def ask() -> _Result | None:
        connection = await connect(MAX_ANSWER)
        try:
            (text,) = await _call(connection, "GetStatus", STATUS_SECONDS)
            status = status_in(text)
            return await question(connection, status) if instance.matches(status) else None
        except ValueError:  # of another release
            return None
        finally:
            connection.close()

    return asyncio.run(ask())
