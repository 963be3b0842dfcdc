"""When the legacy tables are polled, and who is suspected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from flanneld_masq.controller import legacy_poller
from flanneld_masq.controller.attribution import LockSuspects
from flanneld_masq.controller.legacy_poller import (
    FREE_PAUSE_SECONDS,
    MAX_PAUSE_SECONDS,
    LegacyPoller,
    Pauses,
    next_turn,
)
from flanneld_masq.errors import KernelError
from flanneld_masq.inputs.processes import Process

from ...common import until

EVIL, FLANNEL, OURS = Process(42, b"evil\n", b"evil\0-F\0"), Process(43, b"iptables\n"), Process(44, b"iptables-rest\n")


class Tables:
    """Answers for the polls, with a count of polls and one of the changes that they reported."""

    def __init__(self) -> None:
        self.changed = False
        self.polls = 0
        self.moved = 0
        self.error: KernelError | None = None

    def poll(self) -> bool:
        self.polls += 1
        if self.error:
            raise self.error
        return self.changed

    def move(self) -> None:
        self.moved += 1


def play(scene: Callable[[Tables, LegacyPoller], Awaitable[None]]) -> None:
    async def run() -> None:
        tables = Tables()
        poller = LegacyPoller(tables.poll, tables.move, own=(OURS.pid,))
        await scene(tables, poller)
        poller.stop()

    asyncio.run(run())


def test_release_is_followed_by_one_poll_at_once() -> None:
    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.0, fruitless=False)
        poller.lock_released((FLANNEL,))
        assert (tables.polls, tables.moved) == (1, 0)
        assert poller.suspects.culprits() == ()
        tables.changed = True
        poller.lock_released((EVIL,))
        assert (tables.polls, tables.moved) == (2, 1)
        assert [found.name for found in poller.suspects.culprits()] == ["evil"]
        poller.lock_released(())
        assert (tables.polls, tables.moved) == (2, 1), "the pass that was asked for has not come yet"

    play(scene)


def test_release_during_a_pass_is_followed_by_a_poll_behind_it() -> None:
    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.0, fruitless=False)
        poller.stop()
        poller.lock_released((EVIL,))
        assert tables.polls == 0
        tables.changed = True
        poller.start(None, 0.0, fruitless=False)
        assert (tables.polls, tables.moved) == (1, 1)
        assert [found.name for found in poller.suspects.culprits()] == ["evil"]

    play(scene)


def test_our_own_tools_change_nothing_and_are_not_suspected() -> None:
    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.0, fruitless=False)
        poller.stop()
        poller.lock_released((OURS,))
        assert poller.suspects.culprits() == ()
        poller.start(None, 0.0, fruitless=False)
        assert (tables.polls, tables.moved) == (1, 0)

    play(scene)


def test_release_in_a_pause_is_followed_by_a_poll_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_poller, "FREE_PAUSE_SECONDS", 0.0)

    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.01, fruitless=False)
        poller.lock_released((EVIL,))
        poller.lock_released((FLANNEL,))
        assert tables.polls == 0
        tables.changed = True
        await until(lambda: tables.moved)
        assert tables.polls == 1
        assert [found.name for found in poller.suspects.culprits()] == ["evil", "iptables"]

    play(scene)


def test_poll_in_a_pause_that_finds_nothing_acquits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy_poller, "FREE_PAUSE_SECONDS", 0.0)

    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.01, fruitless=False)
        poller.lock_released((EVIL,))
        await until(lambda: tables.polls)
        assert poller.suspects.culprits() == ()

    play(scene)


def test_polls_go_on_by_the_clock() -> None:
    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(0.005, 0.0, fruitless=False)
        await until(lambda: tables.polls > 2)
        tables.changed = True
        await until(lambda: tables.moved)
        polls = tables.polls
        await asyncio.sleep(0.02)
        assert (tables.polls, tables.moved) == (polls, 1)

    play(scene)


def test_error_of_a_poll_is_for_the_pass_to_report() -> None:
    async def scene(tables: Tables, poller: LegacyPoller) -> None:
        poller.start(None, 0.0, fruitless=False)
        tables.error = KernelError("reading", "no")
        poller.lock_released(())
        assert tables.moved == 1

    play(scene)


def test_culprits_last_until_a_pass_succeeds() -> None:
    suspects = LockSuspects()
    suspects.add((EVIL,))
    suspects.pass_begins()
    suspects.acquit()
    suspects.add((FLANNEL, EVIL))
    assert [found.name for found in suspects.culprits()] == ["evil", "iptables"]
    suspects.pass_succeeded()
    assert [found.name for found in suspects.culprits()] == ["iptables", "evil"]
    suspects.acquit()
    assert suspects.culprits() == ()


def test_only_the_latest_culprits_are_named() -> None:
    suspects = LockSuspects()
    suspects.add(Process(pid, b"iptables\n") for pid in range(100, 1000))
    assert [found.pid for found in suspects.culprits()] == [997, 998, 999]


@pytest.mark.parametrize(
    ("now", "pause", "every", "turn"),
    [
        (100.0, 0, 0.5, 100.5),
        (99.9999, 0, 0.5, 100.5),
        (100.06, 0, 0.5, 100.5),
        (100.3, 0, 0.5, 100.5),
        (100.46, 0, 0.5, 101.0),
        (100.06, 1.8, 0.5, 102.0),
        (100.2, 0, 2.0, 102.0),
        (101.3, 0, 5.0, 105.0),
        (100.01, 0, 0.05, 100.05),
    ],
)
def test_a_late_poll_does_not_skip_the_next_turn(now: float, pause: float, every: float, turn: float) -> None:
    assert next_turn(now, pause, every) == pytest.approx(turn)
    assert now + pause <= turn <= now + pause + 1.1 * every


def test_passes_that_find_nothing_take_under_one_percent() -> None:
    pauses = Pauses()
    now = worked = 0.0
    for _ in range(1000):
        now += 0.002 + pauses.after(now, 0.002, fruitless=True)
        worked += 0.002
    assert worked / now < 0.01


def test_a_few_cheap_passes_follow_each_other_at_once() -> None:
    pauses = Pauses()
    waits = [pauses.after(100.0, 0.002, fruitless=True) for _ in range(12)]
    assert waits[:9] == [0.0] * 9
    assert waits[-1] == pytest.approx(0.6)
    assert pauses.after(200.0, 0.002, fruitless=True) == 0.0, "the pauses are over"


def test_an_expensive_pass_is_followed_by_a_pause() -> None:
    assert Pauses().after(0.0, 0.06, fruitless=True) == pytest.approx(9 - FREE_PAUSE_SECONDS)
    assert Pauses().after(0.0, 10.0, fruitless=True) == MAX_PAUSE_SECONDS - FREE_PAUSE_SECONDS
    assert Pauses().after(0.0, 2.0, fruitless=False) == pytest.approx(6.0 - FREE_PAUSE_SECONDS)
