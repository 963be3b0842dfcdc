"""The limits of tests follow the speed of the machine."""

from __future__ import annotations

import pytest

from flanneld_masq.selftest.speed import Speed

from ..common import patience, set_patience


@pytest.mark.parametrize(("program", "seconds"), [(0.1, 6.0), (0.3, 6.0), (0.6, 12.0), (6.0, 120.0)])
def test_limits_grow_on_a_slow_machine(program: float, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATIENCE", "")
    monkeypatch.delenv("PATIENCE")
    set_patience(Speed(program, 0.001))
    assert patience(1) == seconds


def test_a_given_patience_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATIENCE", "2")
    set_patience(Speed(6.0, 0.001))
    assert patience(3) == 6.0
