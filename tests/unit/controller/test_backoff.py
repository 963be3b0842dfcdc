"""A few repairs come without delay. If a program goes on undoing them, each delay is longer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.controller.backoff import (
    BURST,
    FIRST_DELAY,
    LAST_DELAY,
    QUIET_SECONDS,
    REFILL_PER_SECOND,
    RepairBackoff,
)

START = 1_000_000.0  # of a clock that did not begin with us


def spent(now: float = START) -> RepairBackoff:
    """Contended for the first time."""
    backoff = RepairBackoff()
    while not backoff.contended:
        backoff.repaired(now)
    return backoff


def fight(until: float, pause: float = 0.0) -> list[float]:
    """Return the moments of the repairs, in seconds, against a program that undoes each one `pause` seconds later."""
    backoff, now, moments = RepairBackoff(), START, []
    while now < START + until:
        backoff.repaired(now)
        moments.append(now)
        now = max(now + pause, backoff.not_before)
    return moments


def test_a_few_repairs_are_not_held_back() -> None:
    backoff = RepairBackoff()
    for _ in range(int(BURST)):
        backoff.repaired(START)
        assert not backoff.contended
        assert backoff.not_before <= START
        assert backoff.due(START) is None


def test_one_more_than_the_budget_is_a_contention() -> None:
    backoff = RepairBackoff()
    for _ in range(int(BURST) + 1):
        backoff.repaired(START)
    assert backoff.contended
    assert backoff.not_before == pytest.approx(START + FIRST_DELAY)


def test_as_many_a_second_as_the_refill_are_free_for_ever() -> None:
    backoff = RepairBackoff()
    for number in range(10_000):
        backoff.repaired(START + number / REFILL_PER_SECOND)
    assert not backoff.contended


def test_a_long_peace_saves_up_no_more_than_the_burst() -> None:
    backoff = RepairBackoff()
    backoff.repaired(START)
    for _ in range(int(BURST)):
        backoff.repaired(START + 1e6)
    assert not backoff.contended
    backoff.repaired(START + 1e6)
    assert backoff.contended


def test_each_delay_is_twice_the_one_before_up_to_the_last() -> None:
    backoff, now, delays = spent(), START, []
    for _ in range(12):
        delays.append(backoff.not_before - now)
        now = backoff.not_before
        backoff.repaired(now)
    expected = [min(FIRST_DELAY * 2**number, LAST_DELAY) for number in range(12)]
    assert delays == pytest.approx(expected)
    assert delays[-1] == LAST_DELAY


def test_a_contention_ends_after_a_quiet_period_and_not_before() -> None:
    backoff = spent()
    assert not backoff.in_order(START)
    assert not backoff.in_order(START + QUIET_SECONDS - 0.001)
    assert backoff.contended
    assert backoff.in_order(START + QUIET_SECONDS)
    assert not backoff.contended
    assert not backoff.in_order(START + QUIET_SECONDS + 1), "it ends once"


def test_nothing_ends_where_nothing_began() -> None:
    assert not RepairBackoff().in_order(START)


def test_a_repair_in_between_restarts_the_quiet_period() -> None:
    backoff = spent()
    backoff.repaired(START + QUIET_SECONDS - 1)
    assert not backoff.in_order(START + QUIET_SECONDS)
    assert backoff.in_order(START + 2 * QUIET_SECONDS - 1)


def test_a_long_delay_outlasts_the_quiet_period() -> None:
    backoff, now = spent(), START
    while backoff.not_before - now < LAST_DELAY:
        now = backoff.not_before
        backoff.repaired(now)
    assert LAST_DELAY > QUIET_SECONDS
    assert not backoff.in_order(now + QUIET_SECONDS)
    assert backoff.due(now) == pytest.approx(LAST_DELAY)
    assert backoff.in_order(now + LAST_DELAY)


def test_after_a_contention_all_is_as_in_the_beginning() -> None:
    backoff = spent()
    backoff.in_order(START + QUIET_SECONDS)
    fresh = RepairBackoff()
    for number, each in itertools.product(range(int(BURST) + 1), (backoff, fresh)):
        each.repaired(START + QUIET_SECONDS + number / 1000)
    assert backoff == fresh


def test_it_says_when_it_is_worth_looking_again() -> None:
    backoff = spent()
    assert backoff.due(START) == pytest.approx(QUIET_SECONDS)
    assert backoff.due(START + 4) == pytest.approx(QUIET_SECONDS - 4)
    assert backoff.due(START + 1000) == 0.0
    backoff.in_order(START + 1000)
    assert backoff.due(START + 1000) is None


def test_a_fight_of_an_hour_is_a_bounded_number_of_writes() -> None:
    doublings = 9  # from 0.1 s to 30 s
    assert len(fight(3600.0)) <= BURST + 1 + doublings + 3600 / LAST_DELAY


@given(st.floats(0.0, 1.0))
def test_writes_are_bounded_at_any_pace_of_the_other_program(pause: float) -> None:
    moments = fight(120.0, pause)
    assert len(moments) <= BURST + 120 * REFILL_PER_SECOND + 1
    assert moments == sorted(moments)


@given(st.lists(st.tuples(st.floats(0.0, 60.0), st.booleans()), max_size=60))
def test_delays_have_a_maximum_and_all_contentions_end(steps: list[tuple[float, bool]]) -> None:
    backoff, now = RepairBackoff(), START
    for pause, drift in steps:
        now = max(now + pause, backoff.not_before)
        if drift:
            backoff.repaired(now)
            assert backoff.not_before <= now + LAST_DELAY
        else:
            ended = backoff.contended
            assert backoff.in_order(now) == (ended and not backoff.contended)
    due = backoff.due(now)
    assert (due is not None) == backoff.contended
    if due is not None:
        assert backoff.in_order(now + due + 1e-6)
