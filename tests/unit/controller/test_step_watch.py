"""Calls of a worker that end soon, late or never, and what the status says meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timezone

import pytest
from flanneld_masq_iptables import binaries

from flanneld_masq.controller import step_watch
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.step_watch import StepWatch
from flanneld_masq.errors import KernelError
from flanneld_masq.model import Family, Settings
from flanneld_masq.reconcile.values import DesiredState, Outcome

from ...common import until
from ...surroundings import Surroundings

TOOL = ("iptables-legacy-save", "-t", "nat")


class Stage:
    """A worker whose call ends when the test says so."""

    def __init__(self) -> None:
        self.report = FamilyReport(Family.IPV4)
        self.report.succeeded(DesiredState(Settings()), Outcome({}, (), {}), contended=False)
        self.around = Surroundings(self.report, None)
        self.watch = StepWatch(self.report, self.around, lambda: TOOL)
        self.end = threading.Event()

    def blocked(self) -> datetime:
        self.end.wait()
        return datetime.now(timezone.utc)


Scene = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Scene], None]]:
    monkeypatch.setattr(step_watch, "STUCK_SECONDS", 0.02)
    stage = Stage()
    yield lambda scene: asyncio.run(run(stage, scene))
    stage.end.set()
    stage.watch.close()


async def run(stage: Stage, scene: Scene) -> None:
    await scene(stage)


def test_a_tool_that_waits_for_the_lock_is_named_while_it_waits() -> None:
    """With equal limits the tool may be gone just when the entry that names it is made."""
    assert step_watch.STUCK_SECONDS <= binaries._WAIT_SECONDS - 1


def test_a_call_that_ends_soon_is_no_news(play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        monkeypatch.setattr(step_watch, "STUCK_SECONDS", 60.0)
        assert await stage.watch.call(lambda: 5) == 5
        assert (stage.around.events, stage.around.published) == ([], "")

    play(scene)


def test_one_that_does_not_is_degraded_until_it_ends(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        call = asyncio.ensure_future(stage.watch.call(stage.blocked))
        await until(lambda: stage.around.published == "degraded")
        assert "iptables-legacy-save -t nat" in stage.report.status().last_error
        first = stage.report.stuck
        stage.around.published = ""
        await until(lambda: stage.around.published == "degraded")  # again, with the time that has passed by then
        assert stage.around.kinds() == ["stuck"] and first
        stage.end.set()
        await call
        await until(lambda: stage.around.published == "synced")
        assert stage.around.kinds() == ["stuck", "notice"]
        assert stage.report.status().last_error == ""

    play(scene)


def test_its_error_is_raised_and_it_is_not_stuck_any_more(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        def fail() -> None:
            stage.end.wait()
            raise KernelError("reading", "no")

        call = asyncio.ensure_future(stage.watch.call(fail))
        await until(lambda: stage.report.stuck)
        stage.end.set()
        with pytest.raises(KernelError):
            await call
        assert not stage.report.stuck

    play(scene)


def test_a_stop_meanwhile_does_not_claim_that_it_ended(play: Callable[[Scene], None]) -> None:
    async def scene(stage: Stage) -> None:
        call = asyncio.ensure_future(stage.watch.call(stage.blocked))
        await until(lambda: stage.report.stuck)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert stage.around.kinds() == ["stuck"] and stage.report.stuck

    play(scene)
