"""A real bus for the tests of D-Bus: the daemon on it, and other programs there."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Optional, TypeVar

from flanneld_masq.controller.status import FamilyStatus, GroupStatus, State, Status
from flanneld_masq.dbus import connection
from flanneld_masq.dbus.connection import Connection
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import Message, Variant
from flanneld_masq.dbus.publisher import BusPublisher
from flanneld_masq.dbus.reload_signals import FIREWALLD
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, FamilyLease, Group, Lease, Plan
from flanneld_masq.reconcile.values import Repair

from ...bus import Bus
from ...common import patience

DEADLINE = patience(10.0)
ALL_SECONDS = patience(30.0)
_Result = TypeVar("_Result")

STATUS = Status(
    State.SYNCED,
    version="1.2.3",
    pid=os.getpid(),
    config="/etc/flanneld-masq/config.toml",
    leases=(
        Lease(
            "/run/flannel/subnet.env",
            FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.0")),
            FamilyLease(
                (ip_network("fd00::/56"), ip_network("fd01::/56")),
                ip_network("fd00:0:0:1::/64"),
                ip_address("fd00:0:0:1::"),
            ),
            mtu=1450,
            ipmasq=False,
        ),
    ),
    families={
        Family.IPV4: FamilyStatus(
            State.SYNCED,
            groups={
                Group.MASQUERADE: GroupStatus(BackendName("nft"), "it is usable", 5),
                Group.FORWARD: GroupStatus(BackendName("iptables-nft"), "FORWARD drops there", 2),
            },
            repairs=3,
            healed_flows=2,
        ),
        Family.IPV6: FamilyStatus(State.SYNCED, repairs=4),
    },
)
DOCUMENT: dict[str, Any] = {  # the same in JSON
    "version": "1.2.3",
    "pid": os.getpid(),
    "config": "/etc/flanneld-masq/config.toml",
    "config_loaded": None,
    "reload_refused": False,
    "state": "synced",
    "leases": [
        {
            "path": "/run/flannel/subnet.env",
            "mtu": 1450,
            "ipmasq": False,
            "ipv4": {"networks": ["10.244.0.0/16"], "subnet": "10.244.1.0/24"},
            "ipv6": {
                "networks": ["fd00::/56", "fd01::/56"],
                "subnet": "fd00:0:0:1::/64",
            },
        }
    ],
    "troubles": [],
    "plugin_failures": [],
    "families": {
        "ipv4": {
            "in_subnet_file": True,
            "state": "synced",
            "last_error": "",
            "groups": {
                "masquerade": {"backend": "nft", "why": "it is usable", "rules": 5},
                "forward": {"backend": "iptables-nft", "why": "FORWARD drops there", "rules": 2},
            },
            "repairs": 3,
            "healed_flows": 2,
            "last_repair": None,
            "last_write": None,
            "verified": None,
            "flannel_rules": [],
            "cni_masquerade": [],
        },
        "ipv6": {
            "in_subnet_file": True,
            "state": "synced",
            "last_error": "",
            "groups": {},
            "repairs": 4,
            "healed_flows": 0,
            "last_repair": None,
            "last_write": None,
            "verified": None,
            "flannel_rules": [],
            "cni_masquerade": [],
        },
    },
}
CHANGES = (
    Change(ChangeKind.MISSING, "ip nat POSTROUTING", wanted="a jump"),
    Change(ChangeKind.CHANGED, "ip nat", "wanted", "found"),
)
REPAIRS = (Repair(Plan(Family.IPV4, BackendName("nft"), CHANGES), 2345),)
DRIFT = Event(
    "drift-repaired",
    "ipv4: drift repaired, by nft (pid 77)",
    family="ipv4",
    backend="nft",
    reason="ruleset changed",
    duration_us=2345,
    culprit="nft",
    culprit_pid=77,
)


class FakeManager:
    """Stands in for the daemon: a fixed status, and a record of the calls."""

    def __init__(self) -> None:
        self.now = STATUS
        self.reasons: list[str] = []
        self.reloads = 0
        self.problem: Optional[Exception] = None

    def status(self) -> Status:
        return self.now

    async def reconcile(self) -> Iterable[Repair]:
        if self.problem is not None:
            raise self.problem
        return REPAIRS

    def reload(self) -> None:
        if self.problem is not None:
            raise self.problem
        self.reloads += 1

    def on_external_hint(self, reason: str) -> None:
        self.reasons.append(reason)


class Scene:
    """The daemon's publisher on a bus, and the connections of other programs."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.manager = FakeManager()
        self.said: list[str] = []
        self.publisher: Optional[BusPublisher] = None
        self.connections: list[Connection] = []

    def begin(self) -> BusPublisher:
        self.publisher = BusPublisher(self.manager, self.said.append)
        return self.publisher

    async def connect(self) -> Connection:
        self.connections.append(await connection.connect())
        return self.connections[-1]

    async def present(self) -> tuple[BusPublisher, Connection]:
        """Return the publisher once it has its name, and the connection of another program."""
        publisher = self.begin()
        client = await self.connect()
        await soon(lambda: client.owner(NAME))
        return publisher, client

    async def hears(self, client: Connection) -> list[Message]:
        """Return the list to which each signal of the daemon is added from now on."""
        heard: list[Message] = []
        client.listen(heard.append, lambda _: True)
        await client.follow(sender=NAME, path=PATH)
        return heard

    async def end(self) -> None:
        if self.publisher is not None:
            await self.publisher.close()
        for connected in self.connections:
            connected.close()


class Answers:
    """An object whose answers wait until `ready`."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.calls: list[Message] = []

    async def answer(self, call: Message) -> Message:
        self.calls.append(call)
        await self.ready.wait()
        return Message("v", (Variant("s", "RUNNING"),))


async def soon(condition: Callable[[], Any]) -> Any:
    """Ask until the answer, which may be awaitable, is true; then return it."""
    deadline = asyncio.get_running_loop().time() + DEADLINE
    while True:
        answer = condition()
        answer = await answer if isinstance(answer, Awaitable) else answer
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < deadline, f"not so within {DEADLINE} s"
        await asyncio.sleep(0.005)


def play(scene: Scene, story: Callable[[Scene], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run the story to its end, and check that no task of it is left."""

    async def whole() -> _Result:
        try:
            return await asyncio.wait_for(story(scene), ALL_SECONDS)
        finally:
            await scene.end()
            # a task that was cancelled is done one turn later
            await soon(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    return asyncio.run(whole())


def call(client: Connection, member: str, *arguments: str) -> Awaitable[tuple[Any, ...]]:
    return client.call(NAME, PATH, MANAGER.name, member, *arguments)


async def in_thread(function: Callable[..., _Result], *arguments: Any) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def forge(sender: Connection, destination: str, signal: Message) -> None:
    """Send a signal to one connection alone, as an impostor would; Connection.emit has no destination."""
    from dbus_next import Message as Packet  # at the top it would load GLib

    packet = Packet.new_signal(signal.path, signal.interface, signal.member, signal.signature, list(signal.body))
    packet.destination = destination
    await sender._bus.send(packet)


async def firewalld_of(scene: Scene) -> tuple[Connection, Answers]:
    """Return a connection that has the name of firewalld, and its answers."""
    connection, answers = await scene.connect(), Answers()
    connection.serve(answers)  # type: ignore[arg-type]  # it answers, and that is all that is asked of it
    await connection.own(FIREWALLD)
    return connection, answers


def changed(status: Status, family: Family, **to: Any) -> Status:
    """Return the status with another status of one family."""
    families = {**status.families, family: dataclasses.replace(status.families[family], **to)}
    return dataclasses.replace(status, families=families)
