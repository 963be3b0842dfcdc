"""When the legacy tables are polled."""

from __future__ import annotations

import pytest

from flanneld_masq.controller.legacy_poller import MAX_PAUSE_SECONDS, next_turn, pause_after


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
        (100.01, 0, 0.05, 100.05),
    ],
)
def test_a_late_poll_does_not_skip_the_next_turn(now: float, pause: float, every: float, turn: float) -> None:
    assert next_turn(now, pause, every) == pytest.approx(turn)
    assert now + pause <= turn <= now + pause + 1.1 * every


def test_passes_that_find_nothing_take_under_one_percent() -> None:
    assert pause_after(0.06, fruitless=True) > 99 * 0.06
    assert pause_after(1.0, fruitless=True) == MAX_PAUSE_SECONDS
    assert pause_after(0.1, fruitless=False) == pytest.approx(0.3)
