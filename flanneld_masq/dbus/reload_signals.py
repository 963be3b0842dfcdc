"""Follows D-Bus signals that announce a flushed ruleset: those of firewalld, and of systemd for units that load one.

The kernel reports changes of nf_tables itself, and who made them. It reports nothing about the legacy tables.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from flanneld_masq.dbus.connection import BUS, BUS_PATH, Connection
from flanneld_masq.dbus.object_server import PROPERTIES, Message
from flanneld_masq.errors import BusError

UNITS = tuple(
    f"{name}.service"
    for name in ("nftables", "iptables", "ip6tables", "netfilter-persistent", "ufw", "firewalld", "docker")
)
FIREWALLD, FIREWALLD_PATH = "org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1"
SYSTEMD, SYSTEMD_PATH = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER = f"{SYSTEMD}.Manager"
_FOLLOWED = {  # signals, and the name of their sender
    (BUS, "NameOwnerChanged"): BUS,
    (FIREWALLD, "Reloaded"): FIREWALLD,
    (_MANAGER, "JobRemoved"): SYSTEMD,
}
_ARGUMENTS = {"NameOwnerChanged": "sss", "JobRemoved": "uoss"}  # the signatures of those whose arguments are read
ANSWER_SECONDS = 120.0  # firewalld answers nobody while it loads its rules, which may be very many


class ReloadSignals:
    """Follows them on one connection, and calls `heard` with the reason to check the ruleset."""

    def __init__(self, connection: Connection, heard: Callable[[str], None]) -> None:
        self._connection = connection
        self._heard = heard
        self._owners: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe to the signals. Raises BusError."""
        follow = self._connection.follow
        for name in (FIREWALLD, SYSTEMD):
            await follow(sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=name)
        await follow(sender=FIREWALLD, path=FIREWALLD_PATH, interface=FIREWALLD, member="Reloaded")
        for unit in UNITS:
            await follow(sender=SYSTEMD, path=SYSTEMD_PATH, interface=_MANAGER, member="JobRemoved", arg2=unit)
        for name in (FIREWALLD, SYSTEMD):
            owner = await self._connection.owner(name)
            self._owners.setdefault(name, owner)  # a signal that came meanwhile knows better
        self._spawn(self._subscribe())

    def wants(self, signal: Message) -> bool:
        """Return True for a followed signal, by its header alone. Refuse one from a sender that does not own the name,
        because any process can address a signal to this connection, and one with arguments of other types."""
        if signal.signature != _ARGUMENTS.get(signal.member, signal.signature):
            return False
        name = _FOLLOWED.get((signal.interface, signal.member))
        return bool(signal.sender) and signal.sender == (BUS if name == BUS else self._owners.get(name or ""))

    def signal(self, signal: Message) -> None:
        """Act on a signal that `wants` accepted."""
        if signal.member == "NameOwnerChanged":
            self._owner_changed(*signal.body)
        elif signal.member == "Reloaded":
            self._spawn(self._once_it_answers("firewalld reloaded"))
        else:
            _, _, unit, result = signal.body
            self._heard(f"{unit} {result}")

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _owner_changed(self, name: str, old: str, new: str) -> None:
        self._owners[name] = new
        if name == SYSTEMD and new:
            self._spawn(self._subscribe())
        elif name == FIREWALLD and new:
            self._spawn(self._once_it_answers("firewalld started"))
        elif name == FIREWALLD and old:
            self._heard("firewalld stopped")

    async def _once_it_answers(self, reason: str) -> None:
        """Report `reason` once firewalld answers, or once it is clear that it does not."""
        with contextlib.suppress(BusError):
            await self._connection.call(
                FIREWALLD, FIREWALLD_PATH, PROPERTIES, "Get", FIREWALLD, "state", seconds=ANSWER_SECONDS
            )
        self._heard(reason)

    async def _subscribe(self) -> None:
        """Subscribe to the signals of systemd, which sends none without. If it refuses, none come."""
        with contextlib.suppress(BusError):
            await self._connection.call(SYSTEMD, SYSTEMD_PATH, _MANAGER, "Subscribe")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
