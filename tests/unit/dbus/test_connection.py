"""A connection to a real bus, and to buses that hang, end, or refuse."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import socket
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.dbus import client, connection
from flanneld_masq.dbus.bus import MAX_UNSENT
from flanneld_masq.dbus.client import Instance
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES, Message
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH
from flanneld_masq.errors import BusError, MasqError

from ...bus import Bus
from .scene import DRIFT, Scene, call, firewalld_of, play, soon


@pytest.mark.parametrize("last", [b"AUTH", b"BEGIN"])
def test_a_bus_that_ends_while_it_says_hello_blocks_nothing(bus: Bus, tmp_path: Path, last: bytes) -> None:
    """The library by itself would read at the end of the file for ever and never yield to the event loop."""
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


def test_a_bus_without_room_for_another_connection_is_no_bus(bus: Bus, tmp_path: Path) -> None:
    """Connecting to it would block the event loop until it has."""
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
def test_an_address_that_cannot_be_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(BusError, match="connecting to the system bus"):
        asyncio.run(connection.connect())


def test_the_first_address_that_answers_is_taken(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path=/nonexistent/bus;{scene.bus.address}")

    async def story(scene: Scene) -> None:
        await scene.present()

    play(scene, story)


def test_a_bus_that_does_not_read_costs_bounded_memory(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        publisher, _ = await scene.present()
        scene.bus.freeze()
        try:
            for _ in range(10 * MAX_UNSENT):
                publisher.tell(DRIFT)
                await asyncio.sleep(0)
            await soon(lambda: scene.said)
        finally:
            scene.bus.thaw()
        await soon(lambda: len(scene.said) == 2)

    play(scene, story)
    assert "the bus does not read" in scene.said[0]
    assert scene.said[1] == f"on the system bus as {NAME}"


def test_a_connection_without_an_object_refuses_calls(scene: Scene) -> None:
    async def story(scene: Scene) -> str:
        client, other = await scene.connect(), await scene.connect()
        await client.own("org.example.Nothing")
        with pytest.raises(BusError) as raised:
            await other.call("org.example.Nothing", PATH, PROPERTIES, "GetAll", MANAGER.name)
        return raised.value.name

    assert play(scene, story) == "org.freedesktop.DBus.Error.UnknownObject"


def test_a_bug_is_answered_by_an_error_and_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> Any:
        _, client = await scene.present()
        scene.manager.problem = ZeroDivisionError("oh")
        with pytest.raises(BusError, match=r"internal error: ZeroDivisionError\('oh'\)"):
            await call(client, "Reconcile")
        scene.manager.problem = None
        return await call(client, "Reconcile")

    assert play(scene, story)
    assert "internal error in Reconcile" in caplog.text
    assert "Traceback" in caplog.text


def test_a_text_that_the_bus_would_refuse_is_made_acceptable(scene: Scene) -> None:
    """For a text that is no UTF-8 or holds a NUL, the bus would close the connection."""
    odd = "a\0b \udcff c"

    async def story(scene: Scene) -> Any:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(dataclasses.replace(DRIFT, message=odd, culprit=odd))
        scene.manager.problem = MasqError(odd)
        with pytest.raises(BusError) as raised:
            await call(client, "Reconcile")
        await soon(lambda: heard)
        return heard[0].body, raised.value.reason

    body, reason = play(scene, story)
    assert body[-1] == body[4] == reason == r"a\x00b \udcff c"
    assert scene.said == []


def test_a_signal_that_cannot_be_sent_is_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> list[Message]:
        publisher, client = await scene.present()
        heard = await scene.hears(client)
        publisher.tell(dataclasses.replace(DRIFT, duration_us=-1))
        publisher.tell(DRIFT)
        await soon(lambda: heard)
        return heard

    assert len(play(scene, story)) == 1
    assert "signal Repaired cannot be sent" in caplog.text


def test_a_call_starts_no_service(bus: Bus, tmp_path: Path) -> None:
    """A bus may know how to start the service that is called: firewalld, for example."""
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
    assert client.status(Instance()) is None
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


def test_a_pending_call_fails_when_the_bus_ends(scene: Scene) -> None:
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
        gc.collect()  # now asyncio reports exceptions that nothing retrieved

    play(scene, story)
