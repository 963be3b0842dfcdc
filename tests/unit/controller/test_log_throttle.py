"""Failures in the log: each once, few at once, and the end of each that was logged. Repairs: few for each author."""

from __future__ import annotations

from flanneld_masq.controller.log_throttle import (
    DRIFT_BURST,
    FAILURE_BURST,
    MAX_AUTHORS,
    REFILL_PER_SECOND,
    DriftThrottle,
    LogThrottle,
)


def test_a_failure_that_lasts_is_told_once() -> None:
    found = LogThrottle()
    assert found.line("the kernel said no", 0.0) == "the kernel said no"
    assert [found.line("the kernel said no", float(now)) for now in range(1, 10_000, 60)] == [None] * 167
    assert found.over()
    assert not found.over()


def test_numbers_make_no_new_failure_but_words_do() -> None:
    found = LogThrottle()
    assert found.line("held for 10.1 s by pid 8426", 0.0)
    assert found.line("held for 9.8 s by pid 8427", 0.1) is None
    assert found.line("the kernel said no", 0.2)


def test_it_is_told_again_when_it_comes_back() -> None:
    found = LogThrottle()
    assert found.line("no", 0.0)
    assert found.over()
    assert found.line("no", 1.0)


def test_failures_that_come_and_go_are_not_told_for_ever() -> None:
    """Twice a second for an hour."""
    found = LogThrottle()
    said = []
    for half_second in range(7200):
        said.append(found.line("no", half_second / 2))
        assert found.over() == (said[-1] is not None), "the end is logged exactly if the failure was"
    lines = [line for line in said if line is not None]
    assert len(lines) <= FAILURE_BURST + 3600 * REFILL_PER_SECOND
    assert lines[:5] == ["no"] * 5
    assert lines[6] == "no (failures before this one that were not logged: 119)"


def test_one_that_was_left_out_and_stays_is_told_later() -> None:
    found = LogThrottle()
    for _ in range(5):
        assert found.line("no", 0.0)
        found.over()
    assert found.line("no", 1.0) is None
    assert found.line("no", 61.0) == "no (failures before this one that were not logged: 1)"
    assert found.over()


def test_drift_each_second_is_logged_once_a_minute() -> None:
    """For a day."""
    throttle = DriftThrottle()
    lines = [throttle.line("repaired", "evil", float(second)) for second in range(86_400)]
    logged = [line for line in lines if line is not None]
    assert logged[: int(DRIFT_BURST)] == ["repaired"] * int(DRIFT_BURST)
    assert logged[-1] == "repaired (repairs of changes by evil before this one that were not logged: 59)"
    assert len(logged) <= DRIFT_BURST + 86_400 * REFILL_PER_SECOND


def test_each_author_has_lines_of_its_own() -> None:
    throttle = DriftThrottle()
    assert [throttle.line("repaired", "evil", 0.0) for _ in range(100)].count(None) == 100 - DRIFT_BURST
    assert throttle.line("repaired", "", 0.0) == "repaired"
    assert throttle.line("repaired", "", 3600.0) == "repaired"


def test_a_busy_author_is_not_forgotten() -> None:
    throttle = DriftThrottle()
    for number in range(10 * MAX_AUTHORS):
        throttle.line("repaired", "evil", 0.0)
        throttle.line("repaired", f"program {number}", 0.0)
    assert throttle.line("repaired", "evil", 0.0) is None


def test_authors_are_forgotten_when_there_are_too_many() -> None:
    throttle = DriftThrottle()
    assert all(throttle.line("repaired", f"program {number}", 0.0) for number in range(10 * MAX_AUTHORS))
    assert len(throttle._buckets) == MAX_AUTHORS
