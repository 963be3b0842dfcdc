"""The time limits of the self-test grow with the time that programs take to start."""

from __future__ import annotations

import itertools
import json

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.selftest.daemon import SelftestError, until
from flanneld_masq.selftest.speed import Limits, PatientRunner, Speed, measure


@pytest.mark.parametrize(
    ("program", "tool", "factor"),
    [
        (0.15, 0.005, 1.0),
        (0.05, 0.001, 1.0),
        (0.3, 0.005, 2.0),
        (0.15, 0.05, 10.0),
        (3.0, 0.1, 20.0),
        (0.16, 0.005, 1.1),
    ],
)
def test_the_slower_of_both_decides(program: float, tool: float, factor: float) -> None:
    assert Speed(program, tool).limits == Limits(factor)


@pytest.mark.parametrize("factor", [1.0, 2.5, 20.0])
def test_every_limit_grows(factor: float) -> None:
    limits, usual = Limits(factor), Limits()
    for name in ("wait", "packet", "repair", "stop"):
        assert getattr(limits, name) == getattr(usual, name) * factor
    assert (usual.wait, usual.packet, usual.repair, usual.stop) == (10, 10, 3, 1)


def test_the_slowest_try_counts() -> None:
    class Run(ProcessRunner):
        def __call__(self, argv: tuple[str, ...], **_: object) -> Completed:
            asked.append(argv)
            return Completed(argv, "", "")

    asked: list[tuple[str, ...]] = []
    moments = itertools.accumulate([0, 0.2, 0, 0.6, 0, 0.1, 0, 0.01, 0, 0.02, 0, 0.03])
    speed = measure(("python3", "-m", "x"), Run(), clock=lambda: next(moments))
    assert speed == Speed(pytest.approx(0.6), pytest.approx(0.03))  # type: ignore[arg-type]
    assert asked == [("python3", "-m", "x", "--version")] * 3 + [("ip", "-V")] * 3


def test_it_is_shown() -> None:
    speed = Speed(3.0, 0.0123)
    assert str(speed) == "this program starts in 3000 ms, a tool in 12 ms; time limits times 20"
    document = {"program_seconds": 3.0, "tool_seconds": 0.0123, "limits_factor": 20.0}
    assert json.loads(json.dumps(speed.document())) == document


def test_a_slow_machine_gives_its_tools_more_time() -> None:
    slow = ("sleep", "0.3")
    with pytest.raises(CommandError, match=r"no answer within 0\.1 s"):
        PatientRunner(1)(slow, timeout=0.1)
    assert PatientRunner(100)(slow, timeout=0.1).argv == slow


def test_a_wait_ends_at_its_limit() -> None:
    assert until(lambda: True, "this", deadline=0) < 1
    with pytest.raises(SelftestError, match=r"that: not within 0\.01 s"):
        until(lambda: False, "that", deadline=0.01)
