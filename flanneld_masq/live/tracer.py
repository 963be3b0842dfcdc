"""Traces the packets of flows: sets the kernel up, listens, and puts all back."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.kernel.flow_match import Flow
from flanneld_masq.kernel.trace_events import LegacyStep, TraceSocket
from flanneld_masq.live.counters import Counters, Growth, legacy_tables
from flanneld_masq.live.journey import Assembler, Journey
from flanneld_masq.live.judgement import Traced, judge
from flanneld_masq.live.legacy_log import LegacyLog
from flanneld_masq.live.own_table import trace_table
from flanneld_masq.live.rule_texts import RuleTexts
from flanneld_masq.model import SLOTS
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner

_QUIET = 0.2  # seconds; the kernel reports all steps of a packet at once, unless a program holds it in a queue
_TURN = 0.25  # seconds
Clock = Callable[[], float]


@dataclass(frozen=True, **SLOTS)
class Trace:
    """The packets of the flows that were seen. `blind` lists what the method cannot show. `grown` are rules of legacy
    iptables that counted packets meanwhile, of these flows or others."""

    flows: tuple[Flow, ...]
    packets: tuple[Traced, ...] = ()
    grown: tuple[Growth, ...] = ()
    blind: tuple[str, ...] = ()


class Tracer:
    """Traces flows of one family, from its making to its `close`. Raises MasqError, for example without root."""

    def __init__(
        self,
        flows: tuple[Flow, ...],
        limit: int,
        *,
        run: ProcessRunner,
        root: Path = Path("/"),
        clock: Clock = time.monotonic,
    ) -> None:
        self._flows = flows
        self._family = flows[0].family
        self._run = run
        self._clock = clock
        self._blind: list[str] = []
        self._before: Counters | None = None
        with ExitStack() as undo:
            self._socket = TraceSocket()
            undo.callback(self._socket.close)
            self._tables = legacy_tables(self._family, root)
            if self._tables:
                self._watch_legacy(undo, root)
            self._socket.listen()
            table = undo.enter_context(closing(trace_table(flows)))
            self._assembler = Assembler(table.name, limit)
            self._undo = undo.pop_all()

    def collect(self, seconds: float) -> None:
        """Listen until enough packets were seen or so many seconds are over, then a moment for their last steps."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0 and not self._assembler.full:
            self._wait(min(left, _TURN))
        until = self._clock() + _QUIET
        while self._wait(_QUIET) and self._clock() < until:
            pass

    def finish(self) -> Trace:
        """Stop, and return what was seen."""
        grown = self._grown()
        self.close()
        journeys = self._assembler.journeys
        texts = RuleTexts(self._run, self._family)
        packets = tuple(judge(journey, texts, device_name) for journey in journeys)
        if self._before is None and _unreported(journeys, self._tables):
            self._blind.append(
                "the kernel reported nothing of the tables of legacy iptables: it may be built without TRACE"
            )
        return Trace(self._flows, packets, grown, tuple(self._blind + texts.troubles))

    def close(self) -> None:
        """Remove everything from the kernel."""
        self._undo.close()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch_legacy(self, undo: ExitStack, root: Path) -> None:
        """Have ip_tables report rules; where it cannot, read the counters."""
        try:
            undo.callback(LegacyLog(self._family, self._socket, root).close)
            return
        except MasqError as error:
            self._blind.append(
                f"legacy iptables reports no single packet here ({error}); the counters of its rules also count "
                "other flows, and show neither the order nor the packet"
            )
        try:
            self._before = Counters(self._run, self._family, self._tables)
        except MasqError as error:
            self._blind.append(f"counters of legacy iptables cannot be read: {error}")

    def _grown(self) -> tuple[Growth, ...]:
        if self._before is None:
            return ()
        with contextlib.suppress(MasqError):
            return self._before.growth(Counters(self._run, self._family, self._tables))
        return ()

    def _wait(self, seconds: float) -> bool:
        """Wait for steps and take them. Return True if some came."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
        steps, lost = self._socket.read()
        if lost and _LOST not in self._blind:
            self._blind.append(_LOST)
        self._assembler.feed(steps)
        return True


_LOST = "some of what the kernel reported was lost: too many packets came at once"


def _unreported(journeys: list[Journey], tables: tuple[str, ...]) -> bool:
    """Return True if tables of ip_tables said nothing of packets that passed. Not all packets meet the table nat."""
    reported = any(isinstance(step, LegacyStep) for journey in journeys for step in journey.steps)
    passed = any(journey.end is not None for journey in journeys)
    return passed and not reported and bool(set(tables) - {"nat"})


def device_name(index: int) -> str:
    """Return the name of a device of this network namespace; its index if it is gone."""
    try:
        return printable(socket.if_indextoname(index))
    except OSError:
        return f"device {index}"
