"""Writing against interference: which read-back is trusted, and what counts as drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq.errors import KernelError, RulesetError
from flanneld_masq.model import Family, Group, Position
from flanneld_masq.reconcile.values import FlushSeen
from flanneld_masq.reconcile.writer import REMEMBERED_COMMITS, WRITE_TRIES, OwnCommits, Writer
from flanneld_masq.ruleset.flush import FlushPolicy
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing.fake_backend import BASE_CHAINS

from .bench import DESIRED, DUAL, ONE, OURS, TWO, V4, Bench, after_observation, desired_state


class TestInterference:
    def sometimes(self, bench: Bench, times: int, change: Callable[[], None]) -> list[int]:
        """Make this change after each of the first writes; return a list with an entry for each."""
        done: list[int] = []

        def interfere() -> None:
            if len(done) < times:
                done.append(1)
                change()

        bench.kernel.interfere = interfere
        return done

    @pytest.mark.parametrize("times", range(1, WRITE_TRIES))
    def test_each_try_answers_the_change_before_it(self, times: int, bench: Bench) -> None:
        done = self.sometimes(bench, times, lambda: bench.kernel.flush(V4, OURS))
        assert bench.reconcile() == [ONE]
        assert len(done) == times
        rest = 1 if times < WRITE_TRIES - 1 else 0  # no event says that the read-back shows all of the last commit
        assert bench.calls("replace") == [ONE] * (times + 1 + rest)
        assert bench.in_sync()

    def test_interference_without_end_is_an_error(self, bench: Bench) -> None:
        self.sometimes(bench, 1000, lambda: bench.kernel.flush(V4, OURS))
        with pytest.raises(RulesetError) as caught:
            bench.outcome(DESIRED)
        assert bench.calls("replace") == [ONE] * WRITE_TRIES
        assert f"one wrote the rules {WRITE_TRIES} times" in str(caught.value)
        assert "object 2 should be rule " in str(caught.value)
        assert StateDirectory(bench.directory).verified_state(ONE, V4) is None, "the last read-back is not remembered"

    def test_rule_forged_during_the_write_is_not_remembered(self, bench: Bench) -> None:
        def forge() -> None:
            rules = bench.kernel.chain(V4, OURS) or ()
            bench.kernel.commit(V4, {OURS: (replace(rules[0], text="accept"), *rules[1:])})

        self.sometimes(bench, 1, forge)
        assert bench.reconcile() == [ONE]
        assert bench.in_sync()
        assert "accept" not in str(bench.kernel.chains(V4)[OURS])

    def test_commits_elsewhere_without_end_are_no_error(self, bench: Bench) -> None:
        self.sometimes(bench, 1000, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        outcome = bench.outcome(DESIRED)
        assert [repair.plan.backend for repair in outcome.repairs] == [ONE]
        assert bench.calls("replace") == [ONE] * WRITE_TRIES
        assert outcome.generation is not None and outcome.generation < bench.kernel.generation, (
            "so the event is not ignored"
        )
        bench.kernel.interfere = None
        assert bench.reconcile() == []

    def test_rule_inserted_before_a_first_jump_is_answered(self, bench: Bench) -> None:
        first = desired_state(position=Position.FIRST)
        self.sometimes(bench, 1, lambda: bench.kernel.prepend(V4, "postrouting", "docker's"))
        assert bench.reconcile(first) == [ONE]
        assert [rule.text for rule in bench.kernel.chain(V4, "postrouting") or ()] == [f"jump {OURS}", "docker's"]
        assert bench.in_sync(first)

    def test_obstacle_that_appears_during_the_write_is_an_error(self, bench: Bench) -> None:
        self.sometimes(bench, 1, lambda: bench.kernel.obstacles.update({V4: "the table is dormant"}))
        with pytest.raises(RulesetError, match="dormant"):
            bench.outcome(DESIRED)

    @pytest.mark.parametrize("known", [False, True])
    def test_foreign_commit_costs_a_second_write_only_at_first(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, known: bool
    ) -> None:
        if known:
            bench.reconcile()
            bench.kernel.flush(V4, OURS)
        after_observation(monkeypatch, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        bench.kernel.log.clear()
        outcome = bench.outcome(DESIRED)
        assert bench.calls("replace") == [ONE] * (1 if known else 2)
        assert bench.in_sync()
        if known:
            assert outcome.generation == bench.kernel.generation
            assert outcome.fingerprint, "so the next foreign commit costs a fingerprint and not a pass"

    @pytest.mark.parametrize("generation", [0, 0xFFFFFFFF - 2])
    def test_commit_of_the_other_family_costs_no_second_write(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, generation: int
    ) -> None:
        bench.kernel.generation = generation
        other = bench.of(Family.IPV6)
        after_observation(monkeypatch, lambda: other.reconcile(desired_state("auto", "auto", DUAL)))
        bench.outcome(DESIRED)
        written = [family for name, _, family in bench.kernel.log if name == "replace"]
        assert written == [Family.IPV6, V4]

    def test_tags_are_enough_without_a_generation(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=False)
        self.sometimes(bench, 1000, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        outcome = bench.outcome(DESIRED)
        assert bench.calls("replace") == [ONE]
        assert outcome.generation is None


class TestDrift:
    def test_lost_rules_are_drift_while_another_backend_fails(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(groups: object) -> NoReturn:
            raise KernelError("reading", "no")

        monkeypatch.setattr(bench.reconciler._backends[TWO], "observe", refuse)
        for drift in (False, True, True):
            bench.kernel.flush(V4, OURS)
            with pytest.raises(KernelError):
                bench.outcome(desired_state("one", "two"))
            assert [(repair.plan.backend, repair.drift) for repair in bench.reconciler.repairs] == [(ONE, drift)]

    def test_lost_rules_are_drift_and_moved_ones_are_not(self, bench: Bench) -> None:
        assert [repair.drift for repair in bench.outcome(DESIRED).repairs] == [False]
        bench.kernel.flush(V4, OURS)
        assert [repair.drift for repair in bench.outcome(DESIRED).repairs] == [True]
        bench.kernel.drops[TWO] = "docker drops"
        moved = bench.outcome(DESIRED).repairs
        assert {(repair.plan.backend, repair.drift) for repair in moved} == {(ONE, False), (TWO, False)}
        bench.kernel.drops.clear()
        bench.kernel.flush(V4, OURS)
        repairs = bench.outcome(DESIRED).repairs
        assert [repair.drift for repair in repairs if repair.plan.backend == ONE] == [True, False]


class TestObstacles:
    def test_obstacle_is_an_error_and_nothing_is_written(self, bench: Bench) -> None:
        bench.kernel.obstacles[V4] = "table is dormant; wake it"
        for attempt in (bench.reconciler.reconcile, bench.reconciler.plan):
            with pytest.raises(RulesetError, match="table is dormant; wake it"):
                attempt(DESIRED)
        assert bench.kernel.generation == 0

    def test_rules_are_removed_despite_an_obstacle(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.obstacles[V4] = "table is dormant; wake it"
        repairs, errors = bench.reconciler.remove_everything()
        assert [repair.plan.backend for repair in repairs] == [ONE]
        assert errors == ()
        assert bench.kernel.chains(V4) == {"postrouting": (), "forward": ()}


class TestVerifiedGeneration:
    @pytest.mark.parametrize(
        ("confirmed", "verified"),
        [
            ([(None, None)], None),
            ([(7, None)], 7),
            ([(7, None), (7, 8)], 8),
            ([(7, 8), (8, None)], 8),
            ([(7, 8), (9, None)], 8),
            ([(7, 8), (7, None)], 7),
            ([(0, None), (0xFFFFFFFF, None)], 0xFFFFFFFF),
        ],
    )
    def test_verified_generation_is_the_last_without_a_gap(
        self, confirmed: list[tuple[int | None, int | None]], verified: int | None, tmp_path: Path
    ) -> None:
        writer = Writer(V4, StateDirectory(tmp_path), OwnCommits(), lambda: 0.0)
        writer.heard = 9
        for generation, afterwards in confirmed:
            writer.confirm(generation, afterwards)
        assert writer.verified == verified

    @pytest.mark.parametrize(
        ("confirmed", "verified"),
        [
            ([(7, None)], 7),
            ([(8, None)], 7),
            ([(8, 9)], 9),
            ([(8, None), (8, 9)], 7),
            ([(8, 8)], 7),
            ([(0xFFFFFFFF, None)], 0xFFFFFFFF),
        ],
    )
    def test_generation_without_an_event_is_not_verified(
        self, confirmed: list[tuple[int | None, int | None]], verified: int | None, tmp_path: Path
    ) -> None:
        writer = Writer(V4, StateDirectory(tmp_path), OwnCommits(), lambda: 0.0)
        writer.heard = 7
        for generation, afterwards in confirmed:
            writer.confirm(generation, afterwards)
        assert writer.verified == verified

    def test_generation_of_this_process_needs_no_event(self, tmp_path: Path) -> None:
        commits = OwnCommits()
        writer = Writer(V4, StateDirectory(tmp_path), commits, lambda: 0.0)
        commits.note(7, 1)
        writer.confirm(8)
        assert writer.verified == 8

    def test_earlier_generation_of_two_backends_counts(self, bench: Bench) -> None:
        outcome = bench.outcome(desired_state("one", "two"))
        assert outcome.generation == bench.kernel.generation, "no other program has committed"
        assert outcome.fingerprint

        def once() -> None:
            bench.kernel.interfere = None
            bench.kernel.append(V4, "elsewhere", "rule")

        bench.kernel.flush(V4, OURS)
        bench.kernel.interfere = once
        outcome = bench.outcome(desired_state("one", "two"))
        assert outcome.generation is not None and outcome.generation < bench.kernel.generation
        assert outcome.fingerprint == (), "no backend may have seen the foreign commit"
        again = bench.outcome(desired_state("one", "two"))
        assert again.generation == bench.kernel.generation
        assert again.fingerprint


class TestOwnCommits:
    def test_noted_generations_are_contained(self) -> None:
        commits = OwnCommits()
        commits.note(0xFFFFFFFE, 3)
        assert all(generation in commits for generation in (0xFFFFFFFF, 0, 1))
        assert 0xFFFFFFFE not in commits and 2 not in commits

    def test_old_generations_are_forgotten(self) -> None:
        commits = OwnCommits()
        for generation in range(2 * REMEMBERED_COMMITS):
            commits.note(generation, 1)
        assert 1 not in commits
        assert REMEMBERED_COMMITS in commits

    def test_foreign_generation_between_own_ones_is_noticed(self) -> None:
        commits = OwnCommits()
        commits.note(0xFFFFFFFF, 1)
        commits.note(1, 1)
        assert commits.made_all(0xFFFFFFFF, 0) and commits.made_all(1, 2)
        assert not commits.made_all(0, 2)

    def test_without_a_generation_all_commits_count_as_own(self) -> None:
        assert OwnCommits().made_all(None, 7) and OwnCommits().made_all(7, None) and OwnCommits().made_all(7, 7)

    def test_write_of_another_family_is_waited_for_briefly(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flanneld_masq.reconcile.writer.COMMIT_WAIT_SECONDS", 0.01)
        with bench.commits.turn:
            assert bench.reconcile() == [ONE]
            assert bench.commits.turn.locked(), "what was not acquired is not released"
        bench.kernel.flush(V4, OURS)
        assert bench.reconcile() == [ONE]
        assert not bench.commits.turn.locked()


class TestFlush:
    """Another program flushes both base chains, and may be at it still."""

    FORWARD = "one forward"

    @pytest.fixture
    def flushed(self, bench: Bench) -> Bench:
        bench.reconcile()
        bench.kernel.commit(V4, dict.fromkeys((OURS, self.FORWARD, *BASE_CHAINS.values()), ()))
        bench.kernel.log.clear()
        return bench

    @pytest.mark.parametrize("policy", [FlushPolicy.REPORT, FlushPolicy.WAIT])
    def test_nothing_is_written_while_a_flush_is_reported(self, flushed: Bench, policy: FlushPolicy) -> None:
        with pytest.raises(FlushSeen) as caught:
            flushed.reconciler.reconcile(DESIRED, on_flush=policy)
        assert caught.value.flush.flushed == caught.value.flush.broken == set(Group)
        assert (caught.value.counted, flushed.calls("replace"), flushed.reconciler.repairs) == (True, [], [])

    def test_masquerade_is_repaired_while_forward_waits(self, flushed: Bench) -> None:
        with pytest.raises(FlushSeen):
            flushed.reconciler.reconcile(DESIRED, on_flush=FlushPolicy.FORWARD_WAITS)
        (first,) = flushed.reconciler.repairs
        assert flushed.kernel.chain(V4, OURS)
        assert not flushed.kernel.chain(V4, BASE_CHAINS[Group.FORWARD])
        (second,) = flushed.reconciler.reconcile(DESIRED).repairs
        assert first.drift
        assert second.drift
        assert {change.place for change in first.plan.changes} == {OURS, BASE_CHAINS[Group.MASQUERADE]}
        assert {change.place for change in second.plan.changes} == {self.FORWARD, BASE_CHAINS[Group.FORWARD]}
        assert flushed.in_sync()

    def test_every_drift_waits_while_a_flush_is_under_way(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.delete(V4, OURS)
        with pytest.raises(FlushSeen) as caught:
            bench.reconciler.reconcile(DESIRED, on_flush=FlushPolicy.WAIT)
        assert not caught.value.flush.flushed
        assert caught.value.flush.broken == {Group.MASQUERADE}
        assert [
            repair.drift for repair in bench.reconciler.reconcile(DESIRED, on_flush=FlushPolicy.REPORT).repairs
        ] == [True]

    def test_move_to_a_chain_that_drops_is_reported_first(self, bench: Bench) -> None:
        bench.reconcile()
        moved = desired_state(forward=TWO)
        with pytest.raises(FlushSeen):
            bench.reconciler.reconcile(moved, on_flush=FlushPolicy.REPORT)
        assert bench.in_sync(), "it is where it was"
        assert bench.reconciler.reconcile(moved).repairs
        assert bench.in_sync(moved)

    def test_rules_that_were_never_there_are_no_flush(self, bench: Bench) -> None:
        assert [repair.drift for repair in bench.reconciler.reconcile(DESIRED, on_flush=FlushPolicy.WAIT).repairs] == [
            False
        ]
