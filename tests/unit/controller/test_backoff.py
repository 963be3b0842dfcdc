"""Repairs are free while they are few; whoever goes on undoing them is met ever more slowly."""

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
    RepairBudget,
)

START = 1_000_000.0  # of a clock that did not begin with us


def spent(now: float = START) -> RepairBudget:
    """Contended for the first time."""
    budget = RepairBudget()
    while not budget.contended:
        budget.repaired(now)
    return budget


def fight(until: float, pause: float = 0.0) -> list[float]:
    """The moments of our repairs, against somebody who undoes each at once, or after a pause."""
    budget, now, moments = RepairBudget(), START, []
    while now < START + until:
        budget.repaired(now)
        moments.append(now)
        now = max(now + pause, budget.not_before)
    return moments


def test_a_few_repairs_are_not_held_back() -> None:
    budget = RepairBudget()
    for _ in range(int(BURST)):
        budget.repaired(START)
        assert not budget.contended
        assert budget.not_before <= START
        assert budget.due(START) is None


def test_one_more_than_the_budget_is_a_contention() -> None:
    budget = RepairBudget()
    for _ in range(int(BURST) + 1):
        budget.repaired(START)
    assert budget.contended
    assert budget.not_before == pytest.approx(START + FIRST_DELAY)


def test_as_many_a_second_as_the_refill_are_free_for_ever() -> None:
    budget = RepairBudget()
    for number in range(10_000):
        budget.repaired(START + number / REFILL_PER_SECOND)
    assert not budget.contended


def test_a_long_peace_saves_up_no_more_than_the_burst() -> None:
    budget = RepairBudget()
    budget.repaired(START)
    for _ in range(int(BURST)):
        budget.repaired(START + 1e6)
    assert not budget.contended
    budget.repaired(START + 1e6)
    assert budget.contended


def test_each_delay_is_twice_the_one_before_up_to_the_last() -> None:
    budget, now, delays = spent(), START, []
    for _ in range(12):
        delays.append(budget.not_before - now)
        now = budget.not_before
        budget.repaired(now)
    expected = [min(FIRST_DELAY * 2**number, LAST_DELAY) for number in range(12)]
    assert delays == pytest.approx(expected)
    assert delays[-1] == LAST_DELAY


def test_a_contention_ends_after_a_quiet_period_and_not_before() -> None:
    budget = spent()
    assert not budget.in_order(START)
    assert not budget.in_order(START + QUIET_SECONDS - 0.001)
    assert budget.contended
    assert budget.in_order(START + QUIET_SECONDS)
    assert not budget.contended
    assert not budget.in_order(START + QUIET_SECONDS + 1), "it ends once"


def test_nothing_ends_where_nothing_began() -> None:
    assert not RepairBudget().in_order(START)


def test_a_repair_in_between_begins_the_quiet_period_anew() -> None:
    budget = spent()
    budget.repaired(START + QUIET_SECONDS - 1)
    assert not budget.in_order(START + QUIET_SECONDS)
    assert budget.in_order(START + 2 * QUIET_SECONDS - 1)


def test_a_long_delay_is_waited_out_even_if_the_quiet_period_is_over() -> None:
    budget, now = spent(), START
    while budget.not_before - now < LAST_DELAY:
        now = budget.not_before
        budget.repaired(now)
    assert LAST_DELAY > QUIET_SECONDS
    assert not budget.in_order(now + QUIET_SECONDS)
    assert budget.due(now) == pytest.approx(LAST_DELAY)
    assert budget.in_order(now + LAST_DELAY)


def test_after_a_contention_all_is_as_in_the_beginning() -> None:
    budget = spent()
    budget.in_order(START + QUIET_SECONDS)
    fresh = RepairBudget()
    for number, each in itertools.product(range(int(BURST) + 1), (budget, fresh)):
        each.repaired(START + QUIET_SECONDS + number / 1000)
    assert budget == fresh


def test_it_says_when_it_is_worth_looking_again() -> None:
    budget = spent()
    assert budget.due(START) == pytest.approx(QUIET_SECONDS)
    assert budget.due(START + 4) == pytest.approx(QUIET_SECONDS - 4)
    assert budget.due(START + 1000) == 0.0
    budget.in_order(START + 1000)
    assert budget.due(START + 1000) is None


def test_a_fight_of_an_hour_is_a_bounded_number_of_writes() -> None:
    doublings = 9  # from 0.1 s to 30 s
    assert len(fight(3600.0)) <= BURST + 1 + doublings + 3600 / LAST_DELAY


@given(st.floats(0.0, 1.0))
def test_whatever_the_pace_of_who_undoes_us_the_writes_are_bounded(pause: float) -> None:
    moments = fight(120.0, pause)
    assert len(moments) <= BURST + 120 * REFILL_PER_SECOND + 1
    assert moments == sorted(moments)


@given(st.lists(st.tuples(st.floats(0.0, 60.0), st.booleans()), max_size=60))
def test_no_delay_is_longer_than_the_last_and_all_contentions_end(steps: list[tuple[float, bool]]) -> None:
    budget, now = RepairBudget(), START
    for pause, drift in steps:
        now = max(now + pause, budget.not_before)
        if drift:
            budget.repaired(now)
            assert budget.not_before <= now + LAST_DELAY
        else:
            ended = budget.contended
            assert budget.in_order(now) == (ended and not budget.contended)
    due = budget.due(now)
    assert (due is not None) == budget.contended
    if due is not None:
        assert budget.in_order(now + due + 1e-6)
