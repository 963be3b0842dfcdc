"""`flanneld-masq monitor`: the lines, and the program on a real bus."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional

import pytest

from flanneld_masq.cli import bus_events
from flanneld_masq.controller.status import GroupStatus, State
from flanneld_masq.dbus import connection
from flanneld_masq.dbus.manager1 import MANAGER, PATH, STATE_CHANGED
from flanneld_masq.dbus.object_server import PROPERTIES, Message
from flanneld_masq.dbus.publisher import BusPublisher
from flanneld_masq.model import BackendName, Family, Group

from ...bus import Bus
from ..dbus.scene import DEADLINE, DRIFT, STATUS, FakeManager, changed, forge

NOW = datetime(2026, 7, 8, 9, 10, 11, 12345, timezone(timedelta(hours=2)))
REPAIRED = ("ipv4", "nft", "ruleset changed", 2345, "nft", 77, "ipv4: drift repaired, by nft (pid 77)")
BACKENDS = [{"family": "ipv4", "group": "masquerade", "backend": "nft", "rules": 5, "why": "it is usable"}]
LEASE = [{"path": "/run/s.env", "family": "ipv6", "subnet": "fd00::/64", "networks": ("fd00::/56",)}]


def of(member: str, *body: Any, interface: str = MANAGER.name) -> list[dict[str, Any]]:
    signature = "".join(
        MANAGER.signals.get(member, {"interface": "s", "changed": "a{sv}", "invalidated": "as"}).values()
    )
    return list(bus_events.events(Message(signature, body, ":1.1", PATH, interface, member)))


class TestEvents:
    def test_a_repair(self) -> None:
        (event,) = of("Repaired", *REPAIRED)
        assert event == {"event": "repaired", **dict(zip(MANAGER.signals["Repaired"], REPAIRED))}

    def test_a_state(self) -> None:
        (event,) = of(STATE_CHANGED, "ipv4", "synced", "degraded", "no nft")
        assert event == {"event": "state", "family": "ipv4", "old": "synced", "new": "degraded", "error": "no nft"}

    def test_properties_of_which_no_other_signal_tells(self) -> None:
        rows = {"Lease": tuple(tuple(row.values()) for row in LEASE), "State": "degraded", "Repairs": 3}
        events = of("PropertiesChanged", MANAGER.name, rows, (), interface=PROPERTIES)
        assert events == [{"event": "lease", "lease": LEASE}]

    def test_what_it_does_not_know(self) -> None:
        assert of("Exploded", 1) == []

    @pytest.mark.parametrize(
        "rows", [{"Lease": 5}, {"Lease": ((1,),)}, {"Backends": (("ipv4", "forward", "nft", "7", ""),)}]
    )
    def test_a_signal_of_another_release_is_refused(self, rows: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"Lease|Backends"):
            of("PropertiesChanged", MANAGER.name, rows, (), interface=PROPERTIES)
        with pytest.raises(ValueError, match="signature"):
            list(bus_events.events(Message("s", ("ipv4",), ":1.1", PATH, MANAGER.name, STATE_CHANGED)))


class TestLines:
    @pytest.mark.parametrize(
        ("event", "line"),
        [
            ({"event": "repaired", "message": "ipv4: drift repaired"}, "ipv4: drift repaired"),
            (
                {"event": "state", "family": "ipv4", "old": "synced", "new": "degraded", "error": "no nft"},
                "ipv4: synced -> degraded: no nft",
            ),
            (
                {"event": "state", "family": "", "old": "degraded", "new": "synced", "error": ""},
                "flanneld-masq: degraded -> synced",
            ),
            (
                {"event": "running", "version": "1.2", "state": "waiting", "last_error": "waiting for /x"},
                "flanneld-masq 1.2 runs: waiting: waiting for /x",
            ),
            ({"event": "not-running"}, "flanneld-masq does not run, or is not on the bus"),
            ({"event": "lease", "lease": LEASE}, "/run/s.env: ipv6 fd00::/64"),
            ({"event": "lease", "lease": []}, "no lease"),
            ({"event": "backends", "backends": BACKENDS}, "ipv4 masquerade: 5 rules in nft"),
            ({"event": "backends", "backends": []}, "no backend"),
        ],
    )
    def test_each_event(self, event: dict[str, Any], line: str) -> None:
        assert bus_events.text_line(NOW, event, colour=False) == f"09:10:11.012 {line}"

    def test_colour(self) -> None:
        event = {"event": "repaired", "message": "text"}
        assert bus_events.text_line(NOW, event, colour=True) == "09:10:11.012 \033[33mtext\033[0m"

    def test_no_character_of_an_event_commands_the_terminal(self) -> None:
        event = {"event": "repaired", "message": "by \033[2J\n\x9b2Jnft"}
        assert bus_events.text_line(NOW, event, colour=False) == r"09:10:11.012 by \x1b[2J; \x9b2Jnft"

    def test_json(self) -> None:
        event = json.loads(bus_events.json_line(NOW, {"event": "not-running"}))
        assert event == {"time": "2026-07-08T09:10:11.012+02:00", "event": "not-running"}


# ---- the program


class Watcher:
    """`flanneld-masq monitor`, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)).decode()

    async def event(self) -> dict[str, Any]:
        event = json.loads(await self.line())
        assert abs(datetime.fromisoformat(event.pop("time")) - datetime.now().astimezone()) < timedelta(minutes=1)
        return dict(event)

    async def end(self) -> tuple[Optional[int], str]:
        """Its exit status, and what it complained of."""
        assert self.process.stderr is not None
        said = await asyncio.wait_for(self.process.stderr.read(), DEADLINE)
        await asyncio.wait_for(self.process.wait(), DEADLINE)
        return self.process.returncode, said.decode()


@asynccontextmanager
async def watching(*options: str) -> AsyncIterator[Watcher]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flanneld_masq", "monitor", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Watcher(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    bus = Bus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    bus.start()
    yield bus
    bus.stop()


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 3 * DEADLINE))


def test_it_follows_a_daemon_that_comes_and_goes(bus: Bus) -> None:
    async def story() -> None:
        async with watching("--json") as watcher:
            assert await watcher.event() == {"event": "not-running"}
            publisher = BusPublisher(FakeManager(), print)
            running = await watcher.event()
            assert running.pop("backends")[0]["backend"] == "nft"
            assert running.pop("lease")[0]["subnet"] == "10.244.1.0/24"
            assert running == {"event": "running", "version": "1.2.3", "state": "synced", "last_error": ""}
            publisher.tell(DRIFT)
            repaired = await watcher.event()
            assert (repaired["event"], repaired["culprit"], repaired["culprit_pid"]) == ("repaired", "nft", 77)
            groups = {Group.FORWARD: GroupStatus(BackendName("nft"), "", 1)}
            publisher.publish(changed(STATUS, Family.IPV6, state=State.DEGRADED, last_error="oh", groups=groups))
            state, backends = await watcher.event(), await watcher.event()
            assert state == {"event": "state", "family": "ipv6", "old": "synced", "new": "degraded", "error": "oh"}
            group = {"family": "ipv6", "group": "forward", "backend": "nft", "why": "", "rules": 1}
            assert backends["backends"][2] == group
            await publisher.close()
            assert await watcher.event() == {"event": "not-running"}

    play(story)


def test_text_to_a_pipe_is_without_colour(bus: Bus) -> None:
    async def story() -> None:
        publisher = BusPublisher(FakeManager(), print)
        async with watching() as watcher:
            while "1.2.3 runs: synced" not in await watcher.line():
                continue  # it may have been quicker than the daemon on the bus
            publisher.tell(DRIFT)
            line = await watcher.line()
            assert line[13:] == "ipv4: drift repaired, by nft (pid 77)\n"
            assert datetime.strptime(line[:12], "%H:%M:%S.%f")
        await publisher.close()

    play(story)


def test_an_impostor_is_not_shown(bus: Bus) -> None:
    """Any program may address a signal to the monitor."""
    forged = Message("ssss", ("", "a", "b", ""), path=PATH, interface=MANAGER.name, member=STATE_CHANGED)

    async def story() -> None:
        publisher = BusPublisher(FakeManager(), print)
        impostor = await connection.connect()
        async with watching("--json") as watcher:
            while (await watcher.event())["event"] != "running":
                continue  # it may have been quicker than the daemon on the bus
            for name in (await impostor.ask_bus("ListNames"))[0]:
                if await impostor.ask_bus("GetConnectionUnixProcessID", name) == (watcher.process.pid,):
                    await forge(impostor, name, forged)
            await impostor.sent(DEADLINE)
            publisher.tell(DRIFT)
            assert (await watcher.event())["event"] == "repaired"
        impostor.close()
        await publisher.close()

    play(story)


@pytest.fixture
def ctrl_c_counts() -> Iterator[None]:
    """Also where the tests run in the background of a script, whose shell has all that it starts ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_counts")
def test_ctrl_c(bus: Bus) -> None:
    async def story() -> None:
        async with watching() as watcher:
            await watcher.line()
            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.end() == (130, "")

    play(story)


def test_a_bus_that_goes_away_ends_it(bus: Bus) -> None:
    async def story() -> None:
        async with watching() as watcher:
            await watcher.line()
            bus.stop()
            assert await watcher.end() == (1, "flanneld-masq: the system bus: the bus closed the connection\n")

    play(story)


def test_no_bus(bus: Bus) -> None:
    bus.stop()

    async def story() -> None:
        async with watching() as watcher:
            status, said = await watcher.end()
            assert status == 1
            assert said == (
                f"flanneld-masq: connecting to the system bus at {bus.address}: No such file or directory\n"
            )

    play(story)


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dbus_next.py").write_text("raise ImportError(\"No module named 'dbus_next'\")\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    async def story() -> None:
        async with watching() as watcher:
            assert await watcher.end() == (
                1,
                "flanneld-masq: No module named 'dbus_next', which speaks D-Bus; install python3-dbus-next\n",
            )

    play(story)


def test_a_reader_that_goes_away_ends_it(bus: Bus) -> None:
    async def story() -> None:
        publisher = BusPublisher(FakeManager(), print)
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "flanneld_masq", "monitor"), stdout=write, stderr=subprocess.PIPE
        )
        os.close(write)
        with os.fdopen(read) as lines:
            await asyncio.get_running_loop().run_in_executor(None, lines.readline)
        try:
            while process.returncode is None:
                publisher.tell(DRIFT)
                await asyncio.sleep(0.005)
        finally:
            _, said = await process.communicate()
        assert (process.returncode, said) == (1, b"")
        await publisher.close()

    play(story)
