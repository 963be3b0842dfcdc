"""The D-Bus service on a real dbus-daemon, with a plain object in the daemon's place."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, TypeVar

import pytest

from flanneld_masq import errors
from flanneld_masq.dbus import client, connection, manager1, reload_signals
from flanneld_masq.dbus.connection import Connection
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES, Interface, Message, Object, Variant
from flanneld_masq.dbus.publisher import BACK, BusPublisher
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH, SYSTEMD, SYSTEMD_PATH, UNITS
from flanneld_masq.errors import BusError, ConfigError, KernelError, MasqError
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, Plan
from flanneld_masq.reconcile.values import Repair
from flanneld_masq.service.journal import LOGGER

from ...bus import POLICY, Bus
from ...common import is_root, unable

DEADLINE = 10.0
ALL_SECONDS = 30.0
_Result = TypeVar("_Result")

STATUS: dict[str, Any] = {
    "version": "1.2.3",
    "pid": os.getpid(),
    "state": "synced",
    "leases": [
        {
            "path": "/run/flannel/subnet.env",
            "mtu": 1450,
            "ipmasq": False,
            "ipv4": {"networks": ["10.244.0.0/16"], "subnet": "10.244.1.0/24"},
            "ipv6": {"networks": ["fd00::/56", "fd01::/56"], "subnet": "fd00:0:0:1::/64"},
        }
    ],
    "troubles": [],
    "plugin_failures": [],
    "families": {
        "ipv4": {
            "state": "synced",
            "last_error": "",
            "groups": {
                "masquerade": {"backend": "nft", "why": "it is usable", "rules": 5},
                "forward": {"backend": "iptables-nft", "why": "FORWARD drops there", "rules": 2},
            },
            "repairs": 3,
            "last_repair": None,
        },
        "ipv6": {"state": "synced", "last_error": "", "groups": {}, "repairs": 4, "last_repair": None},
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


class Plain:
    """In the daemon's place."""

    def __init__(self) -> None:
        self.now = STATUS
        self.reasons: list[str] = []
        self.reloads = 0
        self.problem: Optional[Exception] = None

    def status(self) -> dict[str, Any]:
        return self.now

    async def reconcile(self) -> Iterable[Repair]:
        if self.problem is not None:
            raise self.problem
        return REPAIRS

    def reload(self) -> None:
        if self.problem is not None:
            raise self.problem
        self.reloads += 1

    def heard(self, reason: str) -> None:
        self.reasons.append(reason)


class Scene:
    """A daemon's presence on a bus, and others there with it."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.plain = Plain()
        self.said: list[str] = []
        self.publisher: Optional[BusPublisher] = None
        self.connections: list[Connection] = []

    def begin(self) -> BusPublisher:
        self.publisher = BusPublisher(self.plain, self.said.append)
        return self.publisher

    async def connect(self) -> Connection:
        self.connections.append(await connection.connect())
        return self.connections[-1]

    async def present(self) -> tuple[BusPublisher, Connection]:
        """The presence, with its name, and somebody else's connection."""
        publisher = self.begin()
        client = await self.connect()
        await soon(lambda: client.owner(NAME))
        return publisher, client

    async def hears(self, client: Connection) -> list[Message]:
        """What the daemon says from now on."""
        heard: list[Message] = []
        client.listen(heard.append)
        await client.follow(sender=NAME, path=PATH)
        return heard

    async def end(self) -> None:
        if self.publisher is not None:
            await self.publisher.close()
        for each in self.connections:
            each.close()


async def soon(condition: Callable[[], Any]) -> Any:
    """Ask until the answer, which may have to be waited for, is true; then return it."""
    deadline = asyncio.get_running_loop().time() + DEADLINE
    while True:
        answer = condition()
        answer = await answer if isinstance(answer, Awaitable) else answer
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < deadline, f"not so within {DEADLINE} s"
        await asyncio.sleep(0.005)


def play(scene: Scene, story: Callable[[Scene], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run it to its end, and see that nothing of it is left running."""

    async def whole() -> _Result:
        try:
            return await asyncio.wait_for(story(scene), ALL_SECONDS)
        finally:
            await scene.end()
            # a task that was cancelled is done one turn later
            await soon(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    return asyncio.run(whole())


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    found = Bus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
    yield found
    found.stop()


@pytest.fixture
def scene(bus: Bus) -> Scene:
    bus.start()
    return Scene(bus)


def call(client: Connection, member: str, *arguments: str) -> Awaitable[tuple[Any, ...]]:
    return client.call(NAME, PATH, MANAGER.name, member, *arguments)


async def in_thread(function: Callable[..., _Result], *arguments: Any) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


# ---- what is offered


def test_busctl_shows_each_member_with_its_type(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        done = await in_thread(scene.bus.ctl, "introspect", NAME, PATH, MANAGER.name)
        return str(done.stdout)

    shown = [line.split()[:4] for line in play(scene, story).splitlines()]
    for name, signature in MANAGER.properties.items():
        assert [f".{name}", "property", signature] in [row[:3] for row in shown]
    for name, answer in MANAGER.methods.items():
        assert [f".{name}", "method", "-", "".join(answer.values()) or "-"] in shown
    for name, arguments in MANAGER.signals.items():
        assert [f".{name}", "signal", "".join(arguments.values()), "-"] in shown
    assert len(shown) == 1 + len(MANAGER.properties) + len(MANAGER.methods) + len(MANAGER.signals)


def test_the_way_to_the_object_is_shown(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        return str((await in_thread(scene.bus.ctl, "tree", "--list", NAME)).stdout)

    assert play(scene, story).split() == ["/", "/io", "/io/github", PATH]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Version", 's "1.2.3"'),
        ("State", 's "synced"'),
        (
            "Backends",
            'a(sssus) 2 "ipv4" "masquerade" "nft" 5 "it is usable" '
            '"ipv4" "forward" "iptables-nft" 2 "FORWARD drops there"',
        ),
        (
            "Lease",
            'a(sssas) 2 "/run/flannel/subnet.env" "ipv4" "10.244.1.0/24" 1 "10.244.0.0/16" '
            '"/run/flannel/subnet.env" "ipv6" "fd00:0:0:1::/64" 2 "fd00::/56" "fd01::/56"',
        ),
        ("LastError", 's ""'),
        ("Repairs", "t 7"),
    ],
)
def test_each_property_can_be_read(scene: Scene, name: str, shown: str) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        return str((await in_thread(scene.bus.ctl, "get-property", NAME, PATH, MANAGER.name, name)).stdout)

    assert play(scene, story) == f"{shown}\n"


def test_all_properties_at_once(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await client.call(NAME, PATH, PROPERTIES, "GetAll", MANAGER.name)

    (found,) = play(scene, story)
    assert set(found) == set(MANAGER.properties)
    assert found["Lease"][0] == ("/run/flannel/subnet.env", "ipv4", "10.244.1.0/24", ("10.244.0.0/16",))


def test_get_status_is_the_status_whole(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "GetStatus")

    (text,) = play(scene, story)
    assert json.loads(text) == STATUS


def test_reconcile_says_what_was_changed(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "Reconcile")

    (answer,) = play(scene, story)
    assert manager1.repairs(answer) == list(REPAIRS)
    shown = (("missing", "ip nat POSTROUTING", "a jump", ""), ("changed", "ip nat", "wanted", "found"))
    assert answer == (("ipv4", "nft", 2345, shown),)


def test_reload(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await call(client, "Reload")

    assert play(scene, story) == ()
    assert scene.plain.reloads == 1


@pytest.mark.parametrize("member", ["Reconcile", "Reload"])
@pytest.mark.parametrize(
    ("problem", "name"),
    [
        (ConfigError("/etc/x", "log.level", "no"), "InvalidConfiguration"),
        (KernelError("asking", "no"), "KernelRefused"),
        (MasqError("no subnet file"), "Failed"),
    ],
)
def test_an_error_keeps_its_name_and_its_text(scene: Scene, member: str, problem: MasqError, name: str) -> None:
    async def story(scene: Scene) -> BusError:
        _, client = await scene.present()
        scene.plain.problem = problem
        with pytest.raises(BusError) as raised:
            await call(client, member)
        return raised.value

    error = play(scene, story)
    assert (error.name, error.reason) == (f"io.github.flanneld_masq.Error.{name}", str(problem))
    assert error.exit_code == problem.exit_code


def test_a_bug_is_an_answer_too_and_is_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        scene.plain.problem = ZeroDivisionError("oh")
        with pytest.raises(BusError, match=r"internal error: ZeroDivisionError\('oh'\)"):
            await call(client, "Reconcile")
        scene.plain.problem = None
        return await call(client, "Reconcile")

    assert play(scene, story)
    assert "internal error in Reconcile" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("path", "interface", "member", "arguments", "name"),
    [
        (PATH, MANAGER.name, "Explode", (), "UnknownMethod"),
        (PATH, "org.example.Other", "Reconcile", (), "UnknownMethod"),
        (PATH, MANAGER.name, "Reconcile", ("now",), "InvalidArgs"),
        ("/io/github/other", MANAGER.name, "Reconcile", (), "UnknownObject"),
        ("/other", "org.freedesktop.DBus.Introspectable", "Introspect", (), "UnknownObject"),
        (PATH, PROPERTIES, "Get", (MANAGER.name, "Colour"), "UnknownProperty"),
        (PATH, PROPERTIES, "Get", ("org.example.Other", "State"), "UnknownInterface"),
        (PATH, PROPERTIES, "GetAll", ("org.example.Other",), "UnknownInterface"),
        (PATH, PROPERTIES, "Get", (), "UnknownMethod"),
    ],
)
def test_what_is_not_there_is_refused_by_the_usual_name(
    scene: Scene, path: str, interface: str, member: str, arguments: tuple[str, ...], name: str
) -> None:
    async def story(scene: Scene) -> str:
        _, client = await scene.present()
        with pytest.raises(BusError) as raised:
            await client.call(NAME, path, interface, member, *arguments)
        return raised.value.name

    assert play(scene, story) == f"org.freedesktop.DBus.Error.{name}"
    assert scene.plain.reloads == 0


def test_who_offers_nothing_says_so(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        client, other = await scene.connect(), await scene.connect()
        await client.own("org.example.Nothing")
        with pytest.raises(BusError) as raised:
            await other.call("org.example.Nothing", PATH, PROPERTIES, "GetAll", MANAGER.name)
        return raised.value.name

    assert play(scene, story) == "org.freedesktop.DBus.Error.UnknownObject"


def test_no_property_can_be_written(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        await scene.present()
        done = await in_thread(scene.bus.ctl, "set-property", NAME, PATH, MANAGER.name, "State", "s", "waiting")
        return str(done.stderr)

    assert "State can only be read" in play(scene, story)


def test_ping(scene: Scene) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        return await client.call(NAME, PATH, "org.freedesktop.DBus.Peer", "Ping")

    assert play(scene, story) == ()


def test_a_text_that_the_bus_would_refuse_is_made_one_that_it_takes(scene: Scene) -> None:
    """For a text that is no UTF-8 or holds a NUL, the bus would close the connection."""
    odd = "a\0b \udcff c"

    async def story(scene: Scene) -> Any:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(dataclasses.replace(DRIFT, message=odd, culprit=odd))
        scene.plain.problem = MasqError(odd)
        with pytest.raises(BusError) as raised:
            await call(client, "Reconcile")
        await soon(lambda: heard)
        return heard[0].body, raised.value.reason

    body, reason = play(scene, story)
    assert body[-1] == body[4] == reason == "a b ? c"
    assert scene.said == []


# ---- what is told


def changed(status: dict[str, Any], family: str, **to: Any) -> dict[str, Any]:
    families = {**status["families"], family: {**status["families"][family], **to}}
    return {**status, "families": families}


def test_a_repair_is_told(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(Event("rules-applied", "not this"))
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    (signal,) = play(scene, story)
    assert (signal.path, signal.interface, signal.member) == (PATH, MANAGER.name, "Repaired")
    told = dict(zip(MANAGER.signals["Repaired"], signal.body))
    assert told == {
        "family": "ipv4",
        "backend": "nft",
        "reason": "ruleset changed",
        "duration_us": 2345,
        "culprit": "nft",
        "culprit_pid": 77,
        "message": "ipv4: drift repaired, by nft (pid 77)",
    }


def test_a_change_of_state_is_told_with_the_properties_that_changed(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        degraded = {**changed(STATUS, "ipv4", state="degraded", last_error="no nft"), "state": "degraded"}
        publisher.publish(degraded)
        publisher.publish(degraded)
        publisher.publish(changed(degraded, "ipv4", repairs=4, state="degraded"))
        await soon(lambda: len(heard) == 4)
        return heard

    family, whole, properties, more = play(scene, story)
    assert (family.member, family.body) == ("StateChanged", ("ipv4", "synced", "degraded", "no nft"))
    assert (whole.member, whole.body) == ("StateChanged", ("", "synced", "degraded", "ipv4: no nft"))
    assert properties.interface == PROPERTIES
    assert properties.body == (MANAGER.name, {"State": "degraded", "LastError": "ipv4: no nft"}, ())
    assert more.body == (MANAGER.name, {"Repairs": 8}, ())


def test_what_has_not_changed_is_not_told(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.publish(STATUS)
        publisher.publish(changed(STATUS, "ipv4", last_repair={"time": "now"}))  # no property tells of that
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    assert [signal.member for signal in play(scene, story)] == ["Repaired"]


def test_what_was_told_goes_out_before_it_leaves(scene: Scene) -> None:
    async def story(scene: Scene) -> list[str]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        await client.follow(sender=connection.BUS, member="NameOwnerChanged", arg0=NAME)
        publisher.publish({**STATUS, "state": "stopped"})
        await publisher.close()
        await soon(lambda: len(heard) == 3)
        return [signal.member for signal in heard]

    assert play(scene, story) == ["StateChanged", "PropertiesChanged", "NameOwnerChanged"]


def test_what_cannot_be_said_on_a_bus_is_logged_and_stops_nobody(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(dataclasses.replace(DRIFT, duration_us=-1))
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    assert len(play(scene, story)) == 1
    assert "signal Repaired cannot be sent" in caplog.text


# ---- a bus that comes and goes


def test_there_need_be_no_bus_and_one_that_comes_later_is_joined(bus: Bus) -> None:
    async def story(scene: Scene) -> None:
        publisher = scene.begin()
        await soon(lambda: scene.said)
        publisher.publish({**STATUS, "state": "degraded"})
        publisher.tell(DRIFT)
        scene.bus.start()
        client = await scene.connect()
        await soon(lambda: client.owner(NAME))
        await soon(lambda: len(scene.said) == 2)

    scene = Scene(bus)
    play(scene, story)
    missing, back = scene.said
    assert missing == (
        f"connecting to the system bus at {bus.address}: No such file or directory; no D-Bus service until there is one"
    )
    assert back == f"on the system bus as {NAME}"
    assert scene.plain.reasons == [BACK], "what happened meanwhile was not heard"


def test_a_bus_that_is_killed_and_started_anew_is_joined_again(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        publisher, _ = await scene.present()
        assert scene.plain.reasons == []
        for number in (1, 2):
            scene.bus.stop()
            await soon(lambda: len(scene.said) == 2 * number - 1)  # noqa: B023  it is asked within the turn
            publisher.tell(DRIFT)
            scene.bus.start()
            client = await scene.connect()
            await soon(lambda: client.owner(NAME))  # noqa: B023
            heard = await scene.hears(client)
            publisher.tell(DRIFT)
            await soon(lambda: heard)  # noqa: B023
            assert [signal.member for signal in heard] == ["Repaired"], "what nobody heard is not told later"

    play(scene, story)
    lost = "the system bus is lost: the bus closed the connection; no D-Bus service until it is back"
    assert scene.said == [lost, f"on the system bus as {NAME}"] * 2
    assert scene.plain.reasons == [BACK] * 2


@pytest.mark.parametrize("last", [b"AUTH", b"BEGIN"])
def test_a_bus_that_ends_while_it_says_hello_holds_up_nobody(bus: Bus, tmp_path: Path, last: bytes) -> None:
    """The library by itself would read at the end of the file for ever, without once letting others run."""
    tries = 0

    async def story(scene: Scene) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tries
            while last not in await reader.readuntil(b"\r\n"):
                writer.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
            tries += 1
            writer.close()

        server = await asyncio.start_unix_server(hang_up, tmp_path / "bus")
        scene.begin()
        await soon(lambda: tries == 3)
        server.close()
        await server.wait_closed()

    scene = Scene(bus)
    play(scene, story)
    (said,) = scene.said
    assert "closed the connection" in said or "Connection reset" in said


def test_a_bus_with_no_room_for_us_is_no_bus(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to it would wait until it has, and all else with it."""
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(tmp_path / "bus"))
        full.listen(0)
        first.connect(str(tmp_path / "bus"))
        with pytest.raises(BusError, match="temporarily unavailable"):
            asyncio.run(connection.connect())


def test_a_bus_that_does_not_answer_is_given_up(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "bus"))
        silent.listen(1)
        with pytest.raises(BusError, match=r"no answer within 0\.05 s"):
            asyncio.run(connection.connect())


@pytest.mark.parametrize("address", ["nonsense", "tcp:host=localhost,port=1", "unix:runtime=yes", "unix:path=/a+b", ""])
def test_an_address_that_is_none_of_ours(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(BusError, match="connecting to the system bus"):
        asyncio.run(connection.connect())


def test_the_first_address_that_answers_is_taken(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path=/nonexistent/bus;{scene.bus.address}")

    async def story(scene: Scene) -> None:
        await scene.present()

    play(scene, story)


def test_a_bus_that_does_not_read_costs_no_memory_without_end(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        publisher, _ = await scene.present()
        scene.bus.freeze()
        try:
            for _ in range(10 * connection.MAX_UNSENT):
                publisher.tell(DRIFT)
                await asyncio.sleep(0)
            await soon(lambda: scene.said)
        finally:
            scene.bus.thaw()
        await soon(lambda: len(scene.said) == 2)

    play(scene, story)
    assert "the bus does not read" in scene.said[0]
    assert scene.said[1] == f"on the system bus as {NAME}"


def test_it_leaves_in_time_though_the_bus_hangs(scene: Scene) -> None:
    async def story(scene: Scene) -> float:
        publisher, _ = await scene.present()
        loop = asyncio.get_running_loop()
        scene.bus.freeze()
        began = loop.time()
        await publisher.close()
        scene.bus.thaw()
        return loop.time() - began

    assert play(scene, story) < 0.5


# ---- the name


def test_a_name_that_another_has_is_said_once_and_ours_when_that_one_leaves(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        other, client = await scene.connect(), await scene.connect()
        assert await other.own(NAME)
        firewalld = await scene.connect()
        publisher = scene.begin()
        await soon(lambda: scene.said)
        publisher.tell(DRIFT)
        publisher.publish({**STATUS, "state": "degraded"})
        await firewalld.own(FIREWALLD)
        firewalld.close()
        await soon(lambda: "firewalld stopped" in scene.plain.reasons)
        before = await client.owner(NAME)
        other.close()
        await soon(lambda: len(scene.said) == 2)
        assert await client.owner(NAME) not in ("", before)

    play(scene, story)
    assert scene.said == [
        f"pid {os.getpid()} has the D-Bus name {NAME}; it is ours once that process leaves it",
        f"on the system bus as {NAME}",
    ]


def test_a_policy_that_forbids_the_name_is_said_once_and_may_change(bus: Bus) -> None:
    async def story(scene: Scene) -> None:
        scene.begin()
        await soon(lambda: scene.said)
        scene.bus.allow('<policy context="mandatory"><allow own="*"/><allow send_destination="*"/></policy>')
        await soon(lambda: len(scene.said) == 2)

    bus.allow("")
    bus.start()
    scene = Scene(bus)
    play(scene, story)
    assert NAME in scene.said[0] and "policies of D-Bus" in scene.said[0]
    assert scene.said[1] == f"on the system bus as {NAME}"


# ---- the policy file


@pytest.fixture
def strict_bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """With our policy, at a place that others than root can reach."""
    if not is_root():
        unable("to be several users, one has to be root")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        found = Bus(Path(directory), f"<include>{POLICY}</include>")
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
        found.start()
        yield found
        found.stop()


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (("introspect", NAME, PATH), True),
        (("get-property", NAME, PATH, MANAGER.name, "State"), True),
        (("call", NAME, PATH, PROPERTIES, "GetAll", "s", MANAGER.name), True),
        (("call", NAME, PATH, "org.freedesktop.DBus.Peer", "Ping"), True),
        (("call", NAME, PATH, MANAGER.name, "GetStatus"), True),
        (("call", NAME, PATH, MANAGER.name, "Reconcile"), False),
        (("call", NAME, PATH, MANAGER.name, "Reload"), False),
        (("set-property", NAME, PATH, MANAGER.name, "State", "s", "x"), False),
        (("call", NAME, PATH, MANAGER.name, "Explode"), False),
    ],
    ids=lambda value: " ".join(value[3:]) if isinstance(value, tuple) else "",
)
def test_others_may_read_and_root_may_call(strict_bus: Bus, arguments: tuple[str, ...], allowed: bool) -> None:
    nobody, by_root = 65534, "Explode" not in arguments and arguments[0] != "set-property"

    async def story(scene: Scene) -> list[bool]:
        await scene.present()
        done = [await in_thread(lambda user: strict_bus.ctl(*arguments, user=user), user) for user in (nobody, 0)]
        if not allowed:
            assert "Access denied" in done[0].stderr
        return [each.returncode == 0 for each in done]

    scene = Scene(strict_bus)
    assert play(scene, story) == [allowed, by_root]
    assert scene.plain.reloads == int("Reload" in arguments), "root's call alone came through"


def test_nobody_else_may_have_the_name(strict_bus: Bus) -> None:
    request = ("call", connection.BUS, connection.BUS_PATH, connection.BUS, "RequestName", "su", NAME, "0")
    assert strict_bus.ctl(*request).returncode == 0
    refused = strict_bus.ctl(*request, user=65534)
    assert refused.returncode != 0
    assert "Access denied" in refused.stderr


# ---- what others say


class Answers:
    """An object whose answers wait until `ready`."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.calls: list[Message] = []

    async def answer(self, call: Message) -> Message:
        self.calls.append(call)
        await self.ready.wait()
        return Message("v", (Variant("s", "RUNNING"),))


async def firewalld_of(scene: Scene) -> tuple[Connection, Answers]:
    connection, answers = await scene.connect(), Answers()
    connection.serve(answers)  # type: ignore[arg-type]  # it answers, and that is all that is asked of it
    await connection.own(FIREWALLD)
    return connection, answers


def test_a_start_of_firewalld_counts_once_it_answers(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        await scene.present()
        _, answers = await firewalld_of(scene)
        await soon(lambda: answers.calls)
        assert scene.plain.reasons == []
        answers.ready.set()
        await soon(lambda: scene.plain.reasons)
        asked = answers.calls[0]
        assert (asked.path, asked.member, asked.body) == (FIREWALLD_PATH, "Get", (FIREWALLD, "state"))

    play(scene, story)
    assert scene.plain.reasons == ["firewalld started"]


def test_a_reload_of_firewalld_counts_once_it_answers(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        firewalld, answers = await firewalld_of(scene)
        await scene.present()
        assert answers.calls == [], "one that was there before us is left alone"
        firewalld.emit(FIREWALLD_PATH, FIREWALLD, "Reloaded", "")
        await soon(lambda: answers.calls)
        assert scene.plain.reasons == []
        answers.ready.set()
        await soon(lambda: scene.plain.reasons)

    play(scene, story)
    assert scene.plain.reasons == ["firewalld reloaded"]


def test_a_firewalld_that_ends_counts_at_once_also_while_it_is_waited_for(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        await scene.present()
        firewalld, answers = await firewalld_of(scene)
        await soon(lambda: answers.calls)
        firewalld.close()
        await soon(lambda: len(scene.plain.reasons) == 2)

    play(scene, story)
    assert sorted(scene.plain.reasons) == ["firewalld started", "firewalld stopped"]


def test_a_firewalld_that_never_answers_counts_all_the_same(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_signals, "ANSWER_SECONDS", 0.05)

    async def story(scene: Scene) -> None:
        await scene.present()
        await firewalld_of(scene)
        await soon(lambda: scene.plain.reasons)

    play(scene, story)
    assert scene.plain.reasons == ["firewalld started"]


class Systemd:
    """What there is of it on the bus."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.subscribed = 0
        name = f"{SYSTEMD}.Manager"
        offered = Interface(name, {}, frozenset(), {"Subscribe": {}}, {})
        connection.serve(Object(SYSTEMD_PATH, offered, dict, {"Subscribe": self.subscribe}))

    async def subscribe(self) -> tuple[Any, ...]:
        self.subscribed += 1
        return ()

    def job_removed(self, unit: str, result: str = "done") -> None:
        job = f"{SYSTEMD_PATH}/job/1"
        self.connection.emit(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "JobRemoved", "uoss", 1, job, unit, result)


async def systemd_of(scene: Scene) -> Systemd:
    found = Systemd(await scene.connect())
    await found.connection.own(SYSTEMD)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_a_job_of_a_unit_that_loads_rulesets_counts(scene: Scene, unit: str) -> None:
    async def story(scene: Scene) -> None:
        systemd = await systemd_of(scene)
        await scene.present()
        await soon(lambda: systemd.subscribed)
        systemd.job_removed("cron.service")
        systemd.job_removed(unit)
        systemd.job_removed(unit, "failed")
        await soon(lambda: len(scene.plain.reasons) == 2)

    play(scene, story)
    assert scene.plain.reasons == [f"{unit} done", f"{unit} failed"]


def test_the_bus_sends_us_no_job_of_other_units(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Any]:
        client = await scene.connect()
        systemd = await systemd_of(scene)
        heard: list[Message] = []
        listener = reload_signals.ReloadSignals(client, lambda _: None)
        client.listen(heard.append)
        await listener.start()
        await soon(lambda: systemd.subscribed)
        heard.clear()
        for unit in ("cron.service", "nftables.socket", "ufw.service", "systemd-logind.service"):
            systemd.job_removed(unit)
        await systemd.connection.sent(DEADLINE)
        await client.sent(DEADLINE)
        return [signal.body[2] for signal in heard]

    assert play(scene, story) == ["ufw.service"]


def test_a_systemd_that_comes_back_is_subscribed_to_again(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        first = await systemd_of(scene)
        await scene.present()
        await soon(lambda: first.subscribed == 1)
        first.connection.close()
        second = await systemd_of(scene)
        await soon(lambda: second.subscribed == 1)
        second.job_removed("nftables.service")
        await soon(lambda: scene.plain.reasons)

    play(scene, story)
    assert scene.plain.reasons == ["nftables.service done"]


def test_an_impostor_is_not_heard(scene: Scene) -> None:
    """Anyone may send a signal to us alone, whatever we follow."""

    async def story(scene: Scene) -> None:
        systemd = await systemd_of(scene)
        _, impostor = await scene.present()
        owner = await impostor.owner(NAME)
        for path, interface, member, signature, body in (
            (FIREWALLD_PATH, FIREWALLD, "Reloaded", "", []),
            (SYSTEMD_PATH, f"{SYSTEMD}.Manager", "JobRemoved", "uoss", [1, "/job", "ufw.service", "done"]),
            (connection.BUS_PATH, connection.BUS, "NameOwnerChanged", "sss", [FIREWALLD, ":1.0", ""]),
        ):
            # the library's own message, for ours has no addressee
            packet = connection._Packet.new_signal(path, interface, member, signature, body)
            packet.destination = owner
            await impostor._bus.send(packet)
        await impostor.sent(DEADLINE)
        systemd.job_removed("docker.service")
        await soon(lambda: scene.plain.reasons)

    play(scene, story)
    assert scene.plain.reasons == ["docker.service done"]


# ---- who calls


MINE = {"pid": os.getpid()}


def test_a_command_asks_the_daemon_that_it_means(scene: Scene) -> None:
    meant = (MINE, {"pid": os.getppid()}, {**MINE, "version": STATUS["version"]}, {**MINE, "config": "/elsewhere"})

    async def story(scene: Scene) -> Any:
        await scene.present()
        return [await in_thread(ask, each) for ask in (client.status, client.reconcile) for each in meant]

    answers = play(scene, story)
    assert answers == [STATUS, None, STATUS, None, list(REPAIRS), None, list(REPAIRS), None]


def test_a_command_finds_no_daemon_and_starts_none(scene: Scene) -> None:
    assert client.status(MINE) is None
    assert client.reconcile(MINE) is None


def test_a_command_finds_no_bus(bus: Bus) -> None:
    assert client.status(MINE) is None
    assert client.reconcile(MINE) is None


def test_a_command_gets_the_error_that_the_daemon_met(scene: Scene) -> None:
    async def story(scene: Scene) -> BusError:
        await scene.present()
        scene.plain.problem = KernelError("asking", "no", 1)
        with pytest.raises(BusError) as raised:
            await in_thread(client.reconcile, MINE)
        return raised.value

    error = play(scene, story)
    assert str(error) == "the daemon: asking: no"
    assert error.name == f"{errors.DBUS_PREFIX}KernelRefused"


def test_nothing_is_started_by_a_call(bus: Bus, tmp_path: Path) -> None:
    """A bus may know how to start whom we call: firewalld, for one."""
    services = tmp_path / "services"
    services.mkdir()
    for name in (FIREWALLD, NAME):
        started = tmp_path / name
        text = f"[D-BUS Service]\nName={name}\nExec=/usr/bin/touch {started}\nUser=root\n"
        (services / f"{name}.service").write_text(text)
    bus.allow(
        f"<servicedir>{services}</servicedir>"
        '<policy context="mandatory"><allow own="*"/><allow send_destination="*"/></policy>'
    )
    bus.start()

    async def story(scene: Scene) -> None:
        client = await scene.connect()
        for name, path in ((NAME, PATH), (FIREWALLD, FIREWALLD_PATH)):
            with pytest.raises(BusError):
                await client.call(name, path, PROPERTIES, "GetAll", name)

    play(Scene(bus), story)
    assert client.status(MINE) is None
    assert not (tmp_path / FIREWALLD).exists() and not (tmp_path / NAME).exists()


def test_a_call_on_a_connection_that_is_gone_fails_at_once(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        client = await scene.connect()
        scene.bus.stop()
        assert "closed" in await client.lost()
        with pytest.raises(BusError, match="closed"):
            await client.ask_bus("GetId")
        client.emit(PATH, MANAGER.name, "Repaired", "s", "nobody hears")

    play(scene, story)


def test_who_waits_for_an_answer_when_the_bus_goes_is_told(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        _, answers = await firewalld_of(scene)
        client = await connection.connect()
        waiting = asyncio.ensure_future(client.call(FIREWALLD, FIREWALLD_PATH, PROPERTIES, "Get", FIREWALLD, "state"))
        await soon(lambda: answers.calls)
        scene.bus.stop()
        with pytest.raises(BusError, match="closed the connection"):
            await waiting
        client.close()
        del client, waiting
        gc.collect()  # now asyncio complains of what nobody asked for

    play(scene, story)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever the library or asyncio have to complain of, they complain of in the log."""
    propagates, LOGGER.propagate = LOGGER.propagate, True
    yield
    LOGGER.propagate = propagates
    found = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    expected = ("internal error in Reconcile", "signal Repaired cannot be sent")
    assert [message for message in found if not any(part in message for part in expected)] == []
