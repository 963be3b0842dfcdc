"""Signals of firewalld and systemd on a real bus: which of them begin a pass, and when."""

from __future__ import annotations

from typing import Any

import pytest

from flanneld_masq.dbus import reload_signals
from flanneld_masq.dbus.connection import BUS, BUS_PATH, Connection
from flanneld_masq.dbus.manager1 import NAME
from flanneld_masq.dbus.object_server import Interface, Message, Object
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH, SYSTEMD, SYSTEMD_PATH, UNITS

from .scene import DEADLINE, Scene, firewalld_of, forge, play, soon


def test_a_start_of_firewalld_counts_once_it_answers(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        await scene.present()
        _, answers = await firewalld_of(scene)
        await soon(lambda: answers.calls)
        assert scene.manager.reasons == []
        answers.ready.set()
        await soon(lambda: scene.manager.reasons)
        asked = answers.calls[0]
        assert (asked.path, asked.member, asked.body) == (FIREWALLD_PATH, "Get", (FIREWALLD, "state"))

    play(scene, story)
    assert scene.manager.reasons == ["firewalld started"]


def test_a_reload_of_firewalld_counts_once_it_answers(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        firewalld, answers = await firewalld_of(scene)
        await scene.present()
        assert answers.calls == [], "one that ran before the daemon is not asked"
        firewalld.emit(FIREWALLD_PATH, FIREWALLD, "Reloaded", "")
        await soon(lambda: answers.calls)
        assert scene.manager.reasons == []
        answers.ready.set()
        await soon(lambda: scene.manager.reasons)

    play(scene, story)
    assert scene.manager.reasons == ["firewalld reloaded"]


def test_an_end_of_firewalld_counts_at_once(scene: Scene) -> None:
    async def story(scene: Scene) -> None:
        await scene.present()
        firewalld, answers = await firewalld_of(scene)
        await soon(lambda: answers.calls)
        firewalld.close()
        await soon(lambda: len(scene.manager.reasons) == 2)

    play(scene, story)
    assert sorted(scene.manager.reasons) == ["firewalld started", "firewalld stopped"]


def test_a_firewalld_that_never_answers_counts_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_signals, "ANSWER_SECONDS", 0.05)

    async def story(scene: Scene) -> None:
        await scene.present()
        await firewalld_of(scene)
        await soon(lambda: scene.manager.reasons)

    play(scene, story)
    assert scene.manager.reasons == ["firewalld started"]


class Systemd:
    """The object of systemd's manager, as far as the daemon uses it."""

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
    systemd = Systemd(await scene.connect())
    await systemd.connection.own(SYSTEMD)
    return systemd


@pytest.mark.parametrize("unit", UNITS)
def test_a_job_of_a_unit_that_loads_rulesets_counts(scene: Scene, unit: str) -> None:
    async def story(scene: Scene) -> None:
        systemd = await systemd_of(scene)
        await scene.present()
        await soon(lambda: systemd.subscribed)
        systemd.job_removed("cron.service")
        systemd.job_removed(unit)
        systemd.job_removed(unit, "failed")
        await soon(lambda: len(scene.manager.reasons) == 2)

    play(scene, story)
    assert scene.manager.reasons == [f"{unit} done", f"{unit} failed"]


def test_the_bus_sends_no_job_of_other_units(scene: Scene) -> None:
    async def story(scene: Scene) -> list[Any]:
        client = await scene.connect()
        systemd = await systemd_of(scene)
        heard: list[Message] = []
        listener = reload_signals.ReloadSignals(client, lambda _: None)
        client.listen(heard.append, lambda _: True)
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
        await soon(lambda: scene.manager.reasons)

    play(scene, story)
    assert scene.manager.reasons == ["nftables.service done"]


def test_a_signal_with_other_arguments_is_ignored(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def story(scene: Scene) -> None:
        systemd = await systemd_of(scene)
        await scene.present()
        await soon(lambda: systemd.subscribed)
        systemd.connection.emit(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "JobRemoved", "sss", "1", "/job", "ufw.service")
        systemd.job_removed("docker.service")
        await soon(lambda: scene.manager.reasons)

    play(scene, story)
    assert scene.manager.reasons == ["docker.service done"]
    assert "internal error" not in caplog.text


def test_a_signal_of_an_impostor_is_ignored(scene: Scene) -> None:
    """Any program may address a signal to the daemon, whatever the daemon follows."""

    async def story(scene: Scene) -> None:
        systemd = await systemd_of(scene)
        _, impostor = await scene.present()
        owner = await impostor.owner(NAME)
        job = ("uoss", (1, "/job", "ufw.service", "done"))
        for signal in (
            Message(path=FIREWALLD_PATH, interface=FIREWALLD, member="Reloaded"),
            Message(*job, path=SYSTEMD_PATH, interface=f"{SYSTEMD}.Manager", member="JobRemoved"),
            Message("sss", (FIREWALLD, ":1.0", ""), path=BUS_PATH, interface=BUS, member="NameOwnerChanged"),
        ):
            await forge(impostor, owner, signal)
        await impostor.sent(DEADLINE)
        systemd.job_removed("docker.service")
        await soon(lambda: scene.manager.reasons)

    play(scene, story)
    assert scene.manager.reasons == ["docker.service done"]
