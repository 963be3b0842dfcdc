"""Growth counts after the first minute of a run; a restart hides none."""

from __future__ import annotations

import pytest

from ...chaos.growth import MAX_MEGABYTES, SLACK, Sample, growth

FLAT = Sample(0, 7, 28.0, 18, 8)


def samples(*values: tuple[float, int, float, int, int]) -> list[Sample]:
    return [Sample(*each) for each in values]


def test_a_flat_run_is_fine() -> None:
    assert not list(growth([Sample(seconds, 7, 28.0, 18, 8) for seconds in range(0, 600, 10)]))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ((28.0 + SLACK["megabytes"] + 0.1, 18, 8), "megabytes"),
        ((28.0, 25, 8), "descriptors"),
        ((28.0, 18, 11), "threads"),
    ],
)
def test_growth_after_the_first_minute_is_named(values: tuple[float, int, int], what: str) -> None:
    found = list(growth([FLAT, *samples((61, 7, 28.0, 18, 8), (600, 7, *values))]))
    assert len(found) == 2, "of the run, and of the process"
    assert all(what in line for line in found)


def test_what_the_first_minute_loads_is_no_growth() -> None:
    assert not list(growth(samples((0, 7, 20.0, 5, 1), (61, 7, 28.0, 18, 8), (600, 7, 28.0, 18, 8))))


def test_a_restart_hides_no_growth_of_the_process_before() -> None:
    before = samples((0, 7, 28.0, 18, 8), (70, 7, 28.0, 18, 8), (400, 7, 28.0, 90, 8))
    (found,) = growth([*before, *samples((410, 8, 28.0, 18, 8))])
    assert "process 7: descriptors grew from 18 to 90 in 330 s" in found


def test_a_short_run_is_judged_by_the_peak_alone() -> None:
    assert not list(growth(samples((1, 7, 20.0, 5, 1), (40, 7, 39.0, 50, 20))))
    assert "more than" in next(growth(samples((1, 7, MAX_MEGABYTES + 1, 5, 1))))


def test_no_samples_no_growth() -> None:
    assert not list(growth([]))
