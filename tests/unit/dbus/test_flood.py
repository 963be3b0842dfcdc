"""Attacks of an unprivileged program on a real bus: the event loop goes on, other programs get answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.dbus import bus as bus_module
from flanneld_masq.dbus import call_queue, connection
from flanneld_masq.dbus.connection import MAX_BODY
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import PROPERTIES
from flanneld_masq.dbus.wire import SIGNAL, Frame
from flanneld_masq.errors import BusError

from ... import attacker
from ...common import amount, patience
from .scene import DEADLINE, Scene, call, in_thread, play, soon

SECONDS = amount(0.3, quick=0.07)
ATTACKS = (*attacker.KINDS, *attacker.CROWDS)[:: amount(1, quick=4)]
STEP_SECONDS = 0.002
MAX_WORK_SECONDS = 0.1  # of the processor, on the bus's messages: repairs, signals and timers wait no longer for them
MAX_GAP_SECONDS = patience(1)  # by the clock, so also what other programs take of a busy machine
MAX_GROWTH = 4 << 20
PING = ("org.freedesktop.DBus.Peer", "Ping")


@contextlib.contextmanager
def attacked(scene: Scene, kind: str, seconds: float = SECONDS) -> Iterator[subprocess.Popen[str]]:
    path = scene.bus.address.partition("=")[2]
    argv = (sys.executable, "-I", "-S", attacker.__file__, path, NAME, kind, str(seconds))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        yield process


@dataclass(frozen=True)
class Gap:
    """Between two steps of a task: how late the second one is, and how long the event loop worked meanwhile."""

    late: float
    work: float


async def pulse(gaps: list[Gap], done: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while not done.is_set():
        began, worked = loop.time(), time.thread_time()
        await asyncio.sleep(STEP_SECONDS)
        gaps.append(Gap(loop.time() - began - STEP_SECONDS, time.thread_time() - worked))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """The messages that the library parsed."""
    frames: list[Frame] = []
    parse = bus_module.parse

    def noting(frame: Frame) -> Any:
        frames.append(frame)
        return parse(frame)

    monkeypatch.setattr(bus_module, "parse", noting)
    monkeypatch.setattr(connection, "parse", noting)
    return frames


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """Keep the garbage collector from the thousands of tests in this process, which the daemon has not."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_delays_nothing_and_others_get_answers(scene: Scene, kind: str, parsed: list[Frame]) -> None:
    async def story(scene: Scene) -> tuple[list[Gap], int, int]:
        _, client = await scene.present()
        await call(client, "GetStatus")
        done, gaps, answers, before = asyncio.Event(), list[Gap](), 0, resident()
        beating = asyncio.ensure_future(pulse(gaps, done))
        with attacked(scene, kind) as attack:
            while attack.poll() is None:
                assert len((await client.call(NAME, PATH, PROPERTIES, "GetAll", MANAGER.name))[0]) > 5
                answers += 1
        grown = resident() - before
        done.set()
        await beating
        return gaps, answers, grown

    gaps, answers, grown = play(scene, story)
    assert answers > 0
    assert max(gap.work for gap in gaps) < MAX_WORK_SECONDS
    assert max(gap.late for gap in gaps) < MAX_GAP_SECONDS
    assert grown < MAX_GROWTH
    assert max(frame.size for frame in parsed) <= MAX_BODY
    foreign = {frame.fields.member for frame in parsed if frame.kind == SIGNAL and frame.fields is not None}
    assert foreign <= {"NameAcquired", "NameOwnerChanged"}
    assert scene.manager.reasons == []
    assert [said for said in scene.said if "exceeds the limit" not in said] == []


def test_the_process_that_floods_is_named_once(scene: Scene) -> None:
    async def story(scene: Scene) -> int:
        await scene.present()
        with attacked(scene, "silent-pings", seconds=DEADLINE) as attack:  # who has left the bus has no pid
            await soon(lambda: scene.said)
            attack.terminate()
            await in_thread(attack.wait)
        return attack.pid

    pid = play(scene, story)
    (said,) = scene.said
    assert said.startswith(f"D-Bus: pid {pid} of user {os.geteuid()} exceeds the limit: 32 calls at a time")


def test_a_call_that_is_too_large_gets_an_error(scene: Scene) -> None:
    async def story(scene: Scene) -> list[str]:
        _, client = await scene.present()
        names = []
        for size in (MAX_BODY - 100, MAX_BODY):
            with pytest.raises(BusError) as raised:
                await client.call(NAME, PATH, PROPERTIES, "GetAll", "x" * size)
            names.append(raised.value.name.rpartition(".")[2])
        return names

    assert play(scene, story) == ["UnknownInterface", "LimitsExceeded"]


def test_an_answer_that_is_too_large_fails_the_call_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        await scene.present()
        client = await connection.connect(limit=600)
        try:
            assert await client.call(NAME, PATH, *PING) == ()
            with pytest.raises(BusError, match="larger than any that is accepted"):
                await call(client, "GetStatus")
            assert await client.call(NAME, PATH, *PING) == ()
        finally:
            client.close()

    play(scene, story)


def test_calls_in_excess_are_dropped_and_later_ones_answered(scene: Scene) -> None:
    async def story(scene: Scene) -> int:
        _, client = await scene.present()
        calls = [asyncio.ensure_future(client.call(NAME, PATH, *PING)) for _ in range(3 * call_queue.MAX_OF_ONE)]
        answered, dropped = await asyncio.wait(calls, timeout=patience(0.3))
        for pending in dropped:
            pending.cancel()
        assert await client.call(NAME, PATH, *PING) == ()
        return len(answered)

    assert call_queue.MAX_OF_ONE <= play(scene, story) < 3 * call_queue.MAX_OF_ONE


def test_a_bus_that_is_slow_loses_nothing(scene: Scene) -> None:
    """The library by itself would end the connection as soon as the bus does not read at once."""

    async def story(scene: Scene) -> list[Any]:
        client = await scene.connect()
        scene.bus.freeze()
        asking = [asyncio.ensure_future(client.ask_bus("NameHasOwner", "a." + "b" * 200)) for _ in range(900)]
        await asyncio.sleep(0.1)
        scene.bus.thaw()
        return list(await asyncio.gather(*asking))

    assert play(scene, story) == [(False,)] * 900
