"""The model of a fleet: sums, peaks, batches, and the rate limit of the daemon."""

from __future__ import annotations

import pytest

from flanneld_masq.controller.log_throttle import DRIFT_BURST

from ...fleet.model import Cost, drift_lines, in_batches, jittered, load, scraped


def test_load_is_the_sum_and_the_busiest_second() -> None:
    found = load([0.0, 0.2, 0.9, 5.5], Cost(entries=2, size=100, cpu=0.5))
    assert found.total == Cost(8, 400, 2.0)
    assert (found.seconds, found.peak_entries) == (6.0, 6)


def test_batches_follow_each_other() -> None:
    assert in_batches(5, 2, 30.0) == [0.0, 0.0, 30.0, 30.0, 60.0]


def test_jitter_spreads_a_fleet_over_its_seconds() -> None:
    moments = jittered(5000, 10.0)
    assert len(moments) == 5000
    assert 0.0 <= min(moments) < 0.1
    assert 9.9 < max(moments) <= 10.0
    assert load(moments, Cost(entries=1)).peak_entries == pytest.approx(500, rel=0.15)


def test_costs_add_and_multiply() -> None:
    assert Cost(1, 2, 3) + Cost(4, 5, 6) == Cost(5, 7, 9)
    assert Cost(1, 2, 3).times(2.5) == Cost(2.5, 5, 7.5)


def test_rare_drift_is_logged_each_time() -> None:
    assert drift_lines(100, 60.0) == 100


def test_drift_each_second_is_logged_by_minute_after_the_burst() -> None:
    hour = drift_lines(3600, 1.0)
    assert DRIFT_BURST + 59 <= hour <= DRIFT_BURST + 61


def test_scrapes_are_bytes_a_second() -> None:
    assert scraped(5000, 3000, 15.0) == 1e6
