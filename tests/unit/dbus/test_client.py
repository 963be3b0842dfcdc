"""A command asks the daemon over a real bus."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from flanneld_masq import errors
from flanneld_masq.controller.status import to_json
from flanneld_masq.dbus import client
from flanneld_masq.dbus.client import Instance
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import Object
from flanneld_masq.errors import BusError, KernelError

from ...bus import Bus
from .scene import REPAIRS, STATUS, Scene, in_thread, play

MINE = Instance(os.getpid())


def test_a_command_asks_only_the_daemon_that_is_meant(scene: Scene) -> None:
    asked_for = {
        Instance(): True,
        MINE: True,
        Instance(os.getppid()): False,
        Instance(config=STATUS.config): True,
        Instance(config="/elsewhere"): False,
        Instance(os.getpid(), STATUS.config): True,
        Instance(os.getpid(), "/elsewhere"): False,
    }

    async def story(scene: Scene) -> Any:
        await scene.present()
        statuses = [await in_thread(client.status, instance) for instance in asked_for]
        return statuses, [await in_thread(client.reconcile, instance) for instance in asked_for]

    statuses, repairs = play(scene, story)
    assert statuses == [STATUS if meant else None for meant in asked_for.values()]
    assert repairs == [list(REPAIRS) if meant else None for meant in asked_for.values()]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"state": "dancing"}', '{"state": "synced", "leases": {}}', "[" * 100_000]
)
def test_a_status_of_another_release_is_no_answer(text: str, scene: Scene) -> None:
    async def get_status() -> tuple[Any, ...]:
        return (text,)

    async def story(scene: Scene) -> Any:
        other = await scene.connect()
        other.serve(Object(PATH, MANAGER, dict, {"GetStatus": get_status}))
        await other.own(NAME)
        return await in_thread(client.status, Instance()), await in_thread(client.reconcile, Instance())

    assert play(scene, story) == (None, None)


@pytest.mark.parametrize(
    "body", [(), (5,), ("{}", "{}"), (json.dumps(to_json(STATUS)),)], ids=["nothing", "number", "two", "repairs"]
)
def test_an_answer_of_another_release_is_none(body: tuple[Any, ...], scene: Scene) -> None:
    """An answer of another type, and repairs of a family that this release does not know."""
    signature = {f"{number}": "u" if value == 5 else "s" for number, value in enumerate(body)}
    offered = dataclasses.replace(MANAGER, methods={**MANAGER.methods, "GetStatus": signature})

    async def get_status() -> tuple[Any, ...]:
        return body

    async def reconcile() -> tuple[Any, ...]:
        return ([("ipv5", "nft", 1500, [])],)

    async def story(scene: Scene) -> Any:
        other = await scene.connect()
        other.serve(Object(PATH, offered, dict, {"GetStatus": get_status, "Reconcile": reconcile}))
        await other.own(NAME)
        return await in_thread(client.reconcile, Instance())

    assert play(scene, story) is None


def test_a_command_finds_no_daemon_and_starts_none(scene: Scene) -> None:
    assert client.status(MINE) is None
    assert client.reconcile(MINE) is None


def test_a_command_finds_no_bus(bus: Bus) -> None:
    assert client.status(MINE) is None
    assert client.reconcile(MINE) is None


def test_a_command_gets_the_error_that_the_daemon_raised(scene: Scene) -> None:
    async def story(scene: Scene) -> BusError:
        await scene.present()
        scene.manager.problem = KernelError("asking", "no", 1)
        with pytest.raises(BusError) as raised:
            await in_thread(client.reconcile, MINE)
        return raised.value

    error = play(scene, story)
    assert str(error) == "the daemon: asking: no"
    assert error.name == f"{errors.DBUS_PREFIX}KernelRefused"
