"""When a trace ends; tests/kernel/test_trace.py traces real packets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flanneld_masq.kernel.trace_events import Header, NftStep, StepKind
from flanneld_masq.live.journey import Assembler
from flanneld_masq.live.tracer import Tracer

TABLE = "flanneld-masq-trace-1"
HEADER = Header(ip_address("10.244.1.5"), ip_address("192.0.2.7"), 17, 4000, 53, iif=3)
BUSY, QUIET = 0.05, 3600.0  # seconds between two packets


class Flowing(Tracer):
    """A trace without a kernel: a packet begins every so many seconds of a clock that only waiting moves."""

    def __init__(self, every: float, limit: int = 2) -> None:
        self.now, self.every, self.next = 0.0, every, every
        self._clock = lambda: self.now
        self._assembler = Assembler(TABLE, limit)

    def _wait(self, seconds: float) -> bool:
        came = self.next <= self.now + seconds
        self.now = self.next if came else self.now + seconds
        if came:
            self.next += self.every
            self._assembler.feed((NftStep(2, TABLE, "prerouting", StepKind.RULE, 1, 5, "continue", header=HEADER),))
        return came


@pytest.mark.parametrize(
    ("every", "limit", "most"),
    [(BUSY, 2, 0.4), (BUSY, 1000, 10.3), (QUIET, 2, 10.3)],
    ids=["enough packets", "too few packets", "no packet"],
)
def test_a_trace_ends_at_its_limit(every: float, limit: int, most: float) -> None:
    tracer = Flowing(every, limit)
    tracer.collect(10.0)
    assert tracer.now < most
