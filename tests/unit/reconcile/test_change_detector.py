"""Fingerprints and polls: they tell the daemon that a pass would find nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.model import Family

from .bench import DESIRED, ONE, OURS, STALE, THREE, TWO, V4, Bench, desired_state


class TestFingerprint:
    def test_outcome_has_generation_and_fingerprint(self, bench: Bench) -> None:
        for _ in range(2):
            outcome = bench.outcome(DESIRED)
            assert outcome.generation == bench.kernel.generation
            assert len(outcome.fingerprint) == 3
            assert outcome.fingerprint == bench.reconciler.detector.fingerprint()

    @pytest.mark.parametrize("chain", [OURS, "one forward", "postrouting", "forward"])
    def test_fingerprint_differs_after_each_kind_of_damage(self, chain: str, bench: Bench) -> None:
        seen = bench.outcome(DESIRED).fingerprint
        bench.kernel.append(V4, "elsewhere", "rule")
        assert bench.reconciler.detector.fingerprint() == seen
        bench.kernel.flush(V4, chain)
        assert bench.reconciler.detector.fingerprint() != seen

    @pytest.mark.parametrize("place", ["two masquerade", "three forward"])
    def test_fingerprint_shows_rules_of_ours_elsewhere(self, place: str, bench: Bench) -> None:
        seen = bench.outcome(DESIRED).fingerprint
        bench.kernel.append(V4, place, "stale", STALE)
        assert bench.reconciler.detector.fingerprint() != seen

    def test_pass_without_the_last_event_has_no_fingerprint(self, bench: Bench) -> None:
        bench.outcome()
        bench.kernel.append(V4, "elsewhere", "rule")
        outcome = bench.reconciler.reconcile(DESIRED, bench.kernel.generation - 1)
        assert (outcome.generation, outcome.fingerprint) == (bench.kernel.generation - 1, ())

    def test_disturbed_pass_has_no_fingerprint(self, bench: Bench) -> None:
        bench.kernel.interfere = lambda: bench.kernel.append(V4, "elsewhere", "rule")
        assert bench.outcome(DESIRED).fingerprint == ()

    def test_read_again_stops_at_the_first_difference(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        detector = bench.reconciler.detector
        bench.reconcile(desired_state("two"))
        before = detector.fingerprint()
        assert detector.fingerprint_again(before) == before
        bench.kernel.flush(V4, "two masquerade")
        monkeypatch.setattr(bench.reconciler._backends[ONE], "fingerprint", lambda groups: b"another")
        after = detector.fingerprint_again(before)
        assert after[1] != before[1]
        assert (after[0], after[2]) == (before[0], before[2]), "the backend in use comes first"
        assert detector.fingerprint_again(after)[0] == b"another"

    def test_backend_not_in_use_may_be_unreadable(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(groups: object) -> NoReturn:
            raise KernelError("reading", "no")

        bench.reconcile()
        monkeypatch.setattr(bench.reconciler._backends[TWO], "fingerprint", refuse)
        assert bench.reconciler.detector.fingerprint()[1] is None
        monkeypatch.setattr(bench.reconciler._backends[ONE], "fingerprint", refuse)
        with pytest.raises(KernelError):
            bench.reconciler.detector.fingerprint()
        assert bench.reconciler.detector.fingerprint_at(bench.kernel.generation) == ()

    def test_fingerprint_of_a_past_generation_is_empty(self, bench: Bench) -> None:
        bench.reconcile()
        detector = bench.reconciler.detector
        assert detector.fingerprint_at(bench.kernel.generation) == detector.fingerprint()
        assert detector.fingerprint_at(bench.kernel.generation - 1) == ()
        assert detector.fingerprint_at(None) == ()


class TestGeneration:
    def test_first_backend_that_counts_gives_the_generation(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> NoReturn:
            raise KernelError("reading", "no")

        bench.reconcile()
        monkeypatch.setattr(bench.reconciler._backends[ONE], "generation", refuse)
        monkeypatch.setattr(bench.reconciler._backends[TWO], "generation", lambda: None)
        assert bench.reconciler.detector.generation() == bench.kernel.generation
        monkeypatch.setattr(bench.reconciler._backends[THREE], "generation", refuse)
        assert bench.reconciler.detector.generation() is None

    def test_commits_of_every_reconciler_are_own(self, bench: Bench) -> None:
        bench.reconcile()
        detector = bench.of(Family.IPV6).detector
        assert detector.made(bench.kernel.generation)
        bench.kernel.append(V4, "elsewhere", "rule")
        assert not detector.made(bench.kernel.generation)


class TestPoll:
    def test_backend_without_generation_is_polled(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=False)
        outcome = bench.outcome(DESIRED)
        assert (outcome.generation, outcome.fingerprint) == (None, ())
        assert bench.reconciler.detector.polls()
        assert not bench.reconciler.detector.poll()
        bench.kernel.flush(V4, OURS)
        assert bench.reconciler.detector.poll()

    @pytest.mark.parametrize("answer", [False, True, None])
    def test_backend_not_in_use_is_polled_too(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: bool | None
    ) -> None:
        bench.reconcile()
        monkeypatch.setattr(bench.reconciler._backends[TWO], "poll", lambda: answer)
        assert bench.reconciler.detector.polls() is (answer is not None)
        assert bench.reconciler.detector.poll() is bool(answer)

    def test_error_of_a_backend_not_in_use_is_no_change(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> NoReturn:
            raise KernelError("reading", "no")

        bench.reconcile()
        monkeypatch.setattr(bench.reconciler._backends[TWO], "poll", refuse)
        assert not bench.reconciler.detector.polls()
        assert not bench.reconciler.detector.poll()
        monkeypatch.setattr(bench.reconciler._backends[ONE], "poll", refuse)
        with pytest.raises(KernelError):
            bench.reconciler.detector.poll()

    def test_backend_with_generation_is_not_polled(self, bench: Bench) -> None:
        bench.reconcile()
        assert not bench.reconciler.detector.polls()
        bench.kernel.flush(V4, OURS)
        assert not bench.reconciler.detector.poll()
