"""`monitor`: what the daemon says on D-Bus, live, a line for each event."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from flanneld_masq.dbus import client, manager1
from flanneld_masq.dbus.connection import BUS, BUS_PATH, Connection, connect
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH, REPAIRED, STATE_CHANGED
from flanneld_masq.dbus.object_server import PROPERTIES, Message
from flanneld_masq.errors import BusError
from flanneld_masq.printable import one_line

Found = dict[str, Any]
_RED, _GREEN, _YELLOW, _PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"
_COLOURS = {"synced": _GREEN, "degraded": _RED, "contended": _RED}
_EVENTS = {REPAIRED: "repaired", STATE_CHANGED: "state"}
_GREETING = {"Version": "version", "State": "state", "LastError": "last_error"}
_TOLD = ("Backends", "Lease")  # changes of the other properties come with a signal of their own


def follow(show: Callable[[str], None], *, as_json: bool, colour: bool) -> None:
    """Show each event as a line, for ever. Raises BusError when the bus cannot be reached, or goes away."""

    def take(found: Found) -> None:
        now = datetime.now().astimezone()
        show(json_line(now, found) if as_json else text_line(now, found, colour=colour))

    asyncio.run(_follow(take))


def json_line(now: datetime, found: Mapping[str, Any]) -> str:
    return json.dumps({"time": now.isoformat(timespec="milliseconds"), **found})


def text_line(now: datetime, found: Mapping[str, Any], *, colour: bool) -> str:
    """Local time and the event, whatever characters are in it."""
    text, start = _text(found)
    line = one_line(text)
    return f"{now:%H:%M:%S}.{now.microsecond // 1000:03} " + (f"{start}{line}{_PLAIN}" if colour and start else line)


def events(signal: Message) -> Iterator[Found]:
    """Yield the news in a signal of the daemon. Names are those of the signals' arguments and of status.json. Raise
    ValueError for a signal of another release."""
    if signal.interface == MANAGER.name and signal.member in _EVENTS:
        arguments = MANAGER.signals[signal.member]
        if signal.signature != "".join(arguments.values()):
            raise ValueError(f"{signal.member} has the signature {signal.signature!r}")
        yield {"event": _EVENTS[signal.member], **dict(zip(arguments, signal.body))}
    elif (signal.interface, signal.member, signal.signature) == (PROPERTIES, "PropertiesChanged", "sa{sv}as"):
        for name, value in manager1.named(signal.body[1]).items():
            if name in _TOLD:
                yield {"event": name.lower(), name.lower(): value}


def greeting(values: Mapping[str, Any]) -> Found:
    """Return the news that the daemon runs, from all its properties. Raise ValueError for one of another release."""
    known = manager1.named(values)
    if not known.keys() >= _GREETING.keys():
        raise ValueError("a property is missing")
    return {
        "event": "running",
        **{key: known[name] for name, key in _GREETING.items()},
        **{name.lower(): rows for name, rows in known.items() if name in _TOLD},
    }


def _text(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return the line to print, and its colour."""
    if found["event"] == "repaired":
        return found["message"], _YELLOW
    if found["event"] == "state":
        error = f": {found['error']}" if found["error"] else ""
        changed = f"{found['family'] or 'flanneld-masq'}: {found['old']} -> {found['new']}{error}"
        return changed, _COLOURS.get(found["new"], "")
    if found["event"] == "running":
        error = f": {found['last_error']}" if found["last_error"] else ""
        running = f"flanneld-masq {found['version']} runs: {found['state']}{error}"
        return running, _COLOURS.get(found["state"], "")
    if found["event"] == "not-running":
        return "flanneld-masq does not run, or is not on the bus", _YELLOW
    if found["event"] == "lease":
        rows = [f"{row['path']}: {row['family']} {row['subnet']}" for row in found["lease"]]
        return "; ".join(rows) or "no lease", ""
    rows = [f"{row['family']} {row['group']}: {row['rules']} rules in {row['backend']}" for row in found["backends"]]
    return "; ".join(rows) or "no backend", ""


async def _follow(take: Callable[[Found], None]) -> None:
    connection = await connect(client.MAX_ANSWER)
    heard: asyncio.Queue[Found | BusError] = asyncio.Queue()
    ears = _Ears(connection, heard)
    watching = asyncio.ensure_future(ears.watch())
    try:
        await ears.start()
        while True:
            found = await heard.get()
            if isinstance(found, BusError):
                raise found
            take(found)
    finally:
        watching.cancel()
        connection.close()


class _Ears:
    """Turns signals of the owner of the daemon's bus name into events."""

    def __init__(self, connection: Connection, heard: asyncio.Queue[Found | BusError]) -> None:
        self._connection = connection
        self._heard = heard
        self._owner: str | None = None  # not known yet
        self._greeting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._connection.listen(self._signal, lambda signal: signal.sender in (BUS, self._owner))
        await self._connection.follow(sender=NAME, path=PATH)
        await self._connection.follow(sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=NAME)
        owner = await self._connection.owner(NAME)
        if self._owner is None:
            self._owned_by(owner)

    async def watch(self) -> None:
        self._heard.put_nowait(BusError("the system bus", await self._connection.lost()))

    def _signal(self, signal: Message) -> None:
        if signal.sender == BUS and signal.member == "NameOwnerChanged" and signal.body[0] == NAME:
            self._owned_by(signal.body[2])
        elif self._owner and signal.sender == self._owner:
            with contextlib.suppress(ValueError):  # of another release
                for found in events(signal):
                    self._heard.put_nowait(found)

    def _owned_by(self, owner: str) -> None:
        self._owner = owner
        if owner:
            self._greeting = asyncio.ensure_future(self._greet())
        else:
            self._heard.put_nowait({"event": "not-running"})

    async def _greet(self) -> None:
        """Say what it is, unless it is of another release; if it is gone already, another signal tells."""
        try:
            (values,) = await self._connection.call(NAME, PATH, PROPERTIES, "GetAll", MANAGER.name, answers="a{sv}")
            self._heard.put_nowait(greeting(values))
        except (BusError, ValueError):
            return
