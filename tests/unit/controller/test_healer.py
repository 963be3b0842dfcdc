"""When connections are searched for those with a wrong source address, and what the log says of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from flanneld_masq.controller import family_loop, flush_hold
from flanneld_masq.controller.healer import Healer
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.errors import KernelError
from flanneld_masq.hookspecs import Event
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import Family, Settings
from flanneld_masq.reconcile.healing import Healed, Search
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.testing import MemoryKernel

from ...common import until
from ...surroundings import Surroundings
from .test_family_loop import MEMORY, OURS, Play, Stage, at_rest, player

V4 = Family.IPV4
STATE = DesiredState(Settings())
NO = KernelError("reading the tracked connections", "no")


@dataclass
class Searches:
    """Makes searches that all have the same steps, and counts them."""

    steps: int = 1
    healed: Healed = field(default_factory=Healed)
    error: Exception | None = None
    begun: list[DesiredState] = field(default_factory=list)
    stepped: int = 0
    closed: int = 0

    def __call__(self, family: Family, state: DesiredState) -> Search:
        self.begun.append(state)
        return _Search(self)


class _Search(Search):
    def __init__(self, searches: Searches) -> None:
        self._all, self._left = searches, searches.steps

    @property
    def healed(self) -> Healed:
        return self._all.healed

    def step(self, seconds: float = 0.0) -> bool:
        if self._all.error is not None:
            raise self._all.error
        self._all.stepped += 1
        self._left -= 1
        return self._left > 0

    def close(self) -> None:
        self._all.closed += 1


@pytest.fixture
def searches() -> Searches:
    return Searches()


@pytest.fixture
def report() -> FamilyReport:
    return FamilyReport(V4)


class Scene:
    """A healer and what it says."""

    def __init__(self, report: FamilyReport, searches: Searches) -> None:
        self.report, self.searches = report, searches
        self.around = Surroundings(report, STATE)
        self._healer: Healer

    def _has_begun(self, number: int) -> bool:
        return len(self.searches.begun) >= number

    def heal(self, *states: DesiredState, due: bool = True) -> list[tuple[Event, int]]:
        """Have it heal for these states, each of which comes while the search for the one before goes on."""

        async def run() -> None:
            healer = Healer(self.report, self.around, self.searches, pause=0.0)
            for number, state in enumerate(states or (STATE,)):
                await until(partial(self._has_begun, number))
                healer.due = due
                healer.begin(state)
            if healer._task is not None:
                await healer._task
            healer.close()

        self.around.events.clear()
        asyncio.run(run())
        return self.around.events


@pytest.fixture
def scene(report: FamilyReport, searches: Searches) -> Scene:
    return Scene(report, searches)


def test_only_what_is_due_is_searched(scene: Scene, searches: Searches) -> None:
    scene.heal(due=False)
    assert searches.begun == []
    scene.heal()
    assert searches.begun == [STATE]


def test_all_steps_are_made(scene: Scene, searches: Searches) -> None:
    searches.steps = 4
    scene.heal()
    assert (searches.stepped, searches.closed) == (4, 0)


def test_a_search_that_is_due_again_begins_again(scene: Scene, searches: Searches) -> None:
    searches.steps, searches.healed = 1000, Healed(slipped=1)
    other = DesiredState(Settings(log_level="debug"))
    events = scene.heal(STATE, other)
    assert searches.begun == [STATE, other]
    assert 1000 < searches.stepped < 2000
    assert searches.closed == 1
    assert [event.kind for event, _ in events] == ["flows-healed", "flows-healed"], "what the first one did counts"
    assert scene.report.status().healed_flows == 2


def test_switched_off_nothing_is_searched(scene: Scene, searches: Searches) -> None:
    assert scene.heal(DesiredState(Settings(conntrack_heal=False))) == []
    assert searches.begun == []


def test_healed_connections_are_logged_and_counted(scene: Scene, searches: Searches) -> None:
    searches.healed = Healed(slipped=2, masqueraded=1, duration_us=1500)
    for _ in range(2):
        ((event, level),) = scene.heal()
    assert (event.kind, level, event.duration_us) == ("flows-healed", logging.INFO, 1500)
    assert event.message == (
        "ipv4: 3 flows healed in 1.5 ms: 2 had begun without masquerade, "
        "1 had begun with a masquerade that the rules exclude"
    )
    assert scene.report.status().healed_flows == 6


def test_without_such_connections_nothing_is_logged(scene: Scene) -> None:
    assert scene.heal() == []
    assert scene.report.status().healed_flows == 0


def test_a_failure_is_logged_once_until_one_succeeds(scene: Scene, searches: Searches) -> None:
    logged = []
    for error in (NO, NO, KernelError("deleting", "no"), None, NO, ValueError("a bug")):
        searches.error = error
        logged.append([(event.kind, level) for event, level in scene.heal()])
    warning = [("notice", logging.WARNING)]
    assert logged == [warning, [], warning, [], warning, warning]
    assert scene.report.status().last_error == "", "the rules are in place all the same"


def test_a_search_that_took_too_long_is_logged(scene: Scene, searches: Searches) -> None:
    searches.healed = Healed(slipped=5, duration_us=10_000_000, complete=False)
    (healed, _), (warning, level) = scene.heal()
    assert (healed.kind, level) == ("flows-healed", logging.WARNING)
    assert "the search ended after 10 s" in warning.message
    assert [event.kind for event, _ in scene.heal()] == ["flows-healed"]


# ---- in the loop


@pytest.fixture
def kernel() -> MemoryKernel:
    return MemoryKernel()


@pytest.fixture
def play(tmp_path: Path, kernel: MemoryKernel, searches: Searches, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(family_loop, "Healer", partial(Healer, search=searches, pause=0.0))
    return player(tmp_path, kernel, MEMORY)


def test_the_loop_heals_after_the_start_and_each_repair(play: Play, searches: Searches) -> None:
    searches.healed = Healed(slipped=1)

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        await until(lambda: "flows-healed" in stage.around.kinds())
        await stage.loop.look("nothing to do")
        assert len(searches.begun) == 1, "a pass that wrote nothing"
        stage.kernel.append(V4, OURS, "accept everything")
        stage.hear(Transaction(stage.kernel.generation, 1, "evil"))
        await until(lambda: stage.around.kinds().count("flows-healed") == 2)
        await stage.loop.look("nothing to do")
        assert [
            kind for kind in stage.around.kinds() if kind in ("rules-applied", "drift-repaired", "flows-healed")
        ] == [
            "rules-applied",
            "flows-healed",
            "drift-repaired",
            "flows-healed",
        ]
        assert ("flows-healed", "synced") in stage.around.said

    play(scene)


def test_the_loop_heals_after_a_change_that_writes_nothing(play: Play, searches: Searches) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        assert stage.around.desired is not None
        stage.around.desired = replace(stage.around.desired, settings=Settings(log_level="debug"))
        await stage.loop.look("reload")
        await until(lambda: searches.begun[1:] == [stage.around.desired])

    play(scene)


def test_the_loop_heals_only_once_a_pass_succeeds(play: Play, kernel: MemoryKernel, searches: Searches) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        kernel.fail("observe", KernelError("reading", "no"))
        kernel.append(V4, OURS, "accept everything")
        with pytest.raises(KernelError):
            await stage.loop.look("a failure")
        assert len(searches.begun) == 1
        await until(lambda: stage.state == "synced")
        await until(lambda: len(searches.begun) == 2)

    play(scene)


def test_the_loop_heals_while_the_forward_group_waits(
    play: Play, searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush_hold, "BY_COMMANDS", flush_hold.Patience(masquerade=0.0, forward=600.0, quiet=600.0))

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        await until(lambda: len(searches.begun) == 1)
        stage.kernel.commit(V4, {OURS: (), "postrouting": (), "memory forward": (), "forward": ()})
        stage.hear(Transaction(stage.kernel.generation, 1, "iptables"))
        await until(lambda: len(searches.begun) == 2)
        assert stage.kernel.chain(V4, OURS)
        assert not stage.kernel.chain(V4, "memory forward")

    play(scene)


def test_the_loop_repairs_while_a_search_goes_on(play: Play, searches: Searches) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        searches.steps = 1_000_000
        stage.kernel.append(V4, OURS, "accept everything")
        await stage.loop.look("drift")
        await until(lambda: len(searches.begun) == 2)
        stage.kernel.append(V4, OURS, "accept everything")
        searches.steps = 1
        await stage.loop.look("drift")
        await until(lambda: len(searches.begun) == 3)
        assert stage.repairs == 2

    play(scene)


def test_one_search_follows_several_repairs_in_a_row(report: FamilyReport, searches: Searches) -> None:
    async def run() -> None:
        healer = Healer(report, Surroundings(report, STATE), searches, pause=0.01)
        for _ in range(3):
            healer.due = True
            healer.begin(STATE)
        assert healer._task is not None
        await healer._task

    asyncio.run(run())
    assert searches.begun == [STATE]


def test_a_search_that_goes_on_does_not_hold_up_the_end(play: Play, searches: Searches) -> None:
    searches.steps = 1_000_000

    async def scene(stage: Stage) -> None:
        await until(lambda: searches.stepped > 10)

    play(scene)
    assert searches.stepped < searches.steps
