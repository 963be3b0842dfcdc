"""When the next pass is due, with a clock that the test holds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.controller.backoff import LAST_DELAY, retry_delay
from flanneld_masq.controller.legacy_poller import next_turn
from flanneld_masq.controller.schedule import (
    EVENTS_LOST,
    GRID_SECONDS,
    MAX_HELD_BY_FAILURE,
    MAX_STEP_SECONDS,
    RESYNC,
    RULESET_CHANGED,
    TABLES_CHANGED,
    GapClock,
    Schedule,
    settle_seconds,
    until_turn,
)
from flanneld_masq.kernel.ruleset_events import Transaction

NOW = 1000.0
RESYNC_SECONDS = 60.0


def test_reasons_are_taken_once_in_their_order() -> None:
    schedule = Schedule()
    for reason in ("start", RESYNC, "start"):
        schedule.mark(reason)
    assert schedule.dirty
    assert schedule.take() == ("start", RESYNC)
    assert not schedule.dirty and schedule.take() == ()


@pytest.mark.parametrize("reason", [RULESET_CHANGED, EVENTS_LOST, TABLES_CHANGED, RESYNC])
def test_changes_by_other_programs_are_never_urgent(reason: str) -> None:
    schedule = Schedule()
    schedule.mark(reason)
    assert not schedule.urgent
    schedule.mark("firewalld reloaded", urgent=False)
    assert not schedule.urgent
    schedule.mark("subnet file changed")
    assert schedule.urgent
    schedule.take()
    assert not schedule.urgent


def test_a_pass_after_a_failure_is_a_retry_that_probes() -> None:
    schedule = Schedule()
    first = schedule.begin(())
    assert (first.because, first.reprobe) == ("resync", False)
    schedule.failed(NOW)
    schedule.end()
    again = schedule.begin((RESYNC, "reload"))
    assert (again.because, again.reprobe, again.asked, again.is_resync) == ("retry, reload", True, False, True)
    schedule.succeeded()
    assert schedule.begin((RESYNC,)).because == "resync"


def test_a_reload_asks_for_probes_once() -> None:
    schedule = Schedule()
    schedule.mark("reload", reprobe=True)
    assert schedule.reprobe_pending
    begun = schedule.begin(schedule.take())
    assert (begun.reprobe, begun.asked, schedule.reprobe_pending) == (True, True, False)
    schedule.mark("reload", reprobe=True)  # during the pass
    schedule.succeeded()
    assert schedule.reprobe_pending


def test_failures_are_retried_after_growing_delays() -> None:
    schedule = Schedule()
    delays = []
    for _ in range(12):
        schedule.failed(NOW)
        delays.append(schedule.next(NOW, RESYNC_SECONDS))
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (0.2, 60.0)
    schedule.succeeded()
    assert schedule.next(NOW, RESYNC_SECONDS) == RESYNC_SECONDS


def test_a_pass_that_waits_is_retried_soon() -> None:
    schedule = Schedule()
    for _ in range(5):
        schedule.failed(NOW, waits=True)
        assert schedule.next(NOW, RESYNC_SECONDS) == schedule.retry_delay == 0.2
    schedule.failed(NOW)
    assert schedule.next(NOW, RESYNC_SECONDS) > 0.2


def test_an_event_waits_a_bounded_time_after_a_failure() -> None:
    schedule = Schedule()
    assert schedule.held_until() < NOW
    for failures in range(1, 12):
        schedule.failed(NOW)
        assert schedule.held_until() == NOW + min(retry_delay(failures), MAX_HELD_BY_FAILURE)


def test_a_contention_holds_repairs_and_ends_in_quiet() -> None:
    schedule, now = Schedule(), NOW
    while not schedule.backoff.contended:
        schedule.backoff.repaired(now)
    assert schedule.held_until() > now
    assert schedule.next(now, RESYNC_SECONDS) < RESYNC_SECONDS, "the end of the contention is noticed"
    for _ in range(20):
        now = schedule.held_until()
        schedule.backoff.repaired(now)
    assert schedule.held_until() == now + LAST_DELAY
    assert schedule.backoff.in_order(now + LAST_DELAY)
    assert schedule.next(now, RESYNC_SECONDS) == until_turn(now, RESYNC_SECONDS)


@given(st.floats(0, 1e7), st.floats(1, 86_400))
def test_a_resync_falls_on_a_turn_that_polls_share(now: float, seconds: float) -> None:
    wait = until_turn(now, seconds)
    assert wait == pytest.approx(seconds, abs=GRID_SECONDS)
    assert wait <= seconds + 1e-6
    if seconds >= 2 * GRID_SECONDS:
        turn = now + wait
        assert turn == pytest.approx(round(turn / GRID_SECONDS) * GRID_SECONDS)
        assert math.isclose(turn, next_turn(turn - 1.0, 0.0, GRID_SECONDS), abs_tol=1e-6)


def test_a_loop_hangs_after_the_longest_step() -> None:
    schedule = Schedule()
    assert not schedule.hangs(NOW, 0.0), "nothing has begun yet"
    schedule.expect(NOW)
    assert not schedule.hangs(NOW + MAX_STEP_SECONDS, 0.0)
    assert schedule.hangs(NOW + MAX_STEP_SECONDS + 0.1, 0.0)
    assert not schedule.hangs(NOW + MAX_STEP_SECONDS + 0.1, NOW + 1.0), "a tool has moved"
    schedule.expect(NOW, RESYNC_SECONDS)
    assert not schedule.hangs(NOW + RESYNC_SECONDS + MAX_STEP_SECONDS, 0.0)
    schedule.expect_hold(NOW)
    assert not schedule.hangs(NOW + LAST_DELAY + MAX_STEP_SECONDS, 0.0)


@pytest.mark.parametrize(
    ("names", "seconds"),
    [
        ((), 0.0),
        (("nft", "kube-proxy"), 0.0),
        (("nft", "iptables-restor"), 0.006),
        (("ip6tables-nft-r", "firewalld"), 0.03),
    ],
)
def test_a_row_of_commits_is_waited_for(names: tuple[str, ...], seconds: float) -> None:
    assert settle_seconds(Transaction(number, 1, name) for number, name in enumerate(names)) == seconds


class TestGapClock:
    """The time from the first notice of a change to the end of its repair."""

    def test_a_repair_counts_from_the_first_notice(self) -> None:
        gap = GapClock()
        for notice in (NOW, NOW + 1):
            gap.noticed(notice)
        gap.begin(NOW + 2)
        gap.drifted()
        assert gap.end(NOW + 3) == 3
        gap.begin(NOW + 4)
        assert gap.end(NOW + 5) == 0

    def test_a_notice_without_drift_counts_nothing(self) -> None:
        gap = GapClock()
        gap.noticed(NOW)
        gap.begin(NOW)
        assert gap.end(NOW + 1) == 0
        gap.noticed(NOW + 2)
        gap.dropped()
        gap.begin(NOW + 5)
        gap.drifted()
        assert gap.end(NOW + 6) == 1, "nothing announced that change, so it counts from the pass"

    def test_a_notice_during_a_pass_counts_for_the_next(self) -> None:
        gap = GapClock()
        gap.begin(NOW)
        gap.noticed(NOW + 1)
        assert gap.end(NOW + 2) == 0
        gap.begin(NOW + 3)
        gap.drifted()
        assert gap.end(NOW + 4) == 3

    def test_a_repair_after_failures_counts_from_before_them(self) -> None:
        gap = GapClock()
        gap.noticed(NOW)
        for attempt in (1, 2, 3):
            gap.begin(NOW + attempt)
        gap.drifted()
        assert gap.end(NOW + 4) == 4
