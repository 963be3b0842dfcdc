"""Puts the steps that the kernel reports together into journeys, one for each packet. Pure."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.trace_events import Header, LegacyStep, NftStep, Step, StepKind
from flanneld_masq.model import Address, Family

START_CHAINS = frozenset(("prerouting", "output"))  # of the trace's own table: the first chains that a packet meets
END_CHAINS = frozenset(("input", "postrouting"))  # the last ones
_MAX_AT_ONCE = 8  # packets of the flow that are on their way
_MAX_STEPS = 4096  # of one packet
_IP_TABLES = frozenset((uapi.NFPROTO_INET, *(family.data.nfproto for family in Family)))


@dataclass(eq=False)
class Journey:
    """One packet: its `header` as it was first seen, its steps in order, the `latest` header that a step had, and its
    header at the `end` of its last hook; None if it never got there."""

    header: Header | None
    latest: Header | None
    steps: list[Step] = field(default_factory=list)
    end: Header | None = None
    local: bool = False  # it ended in a socket of this host, not on a device

    @property
    def dropped(self) -> bool:
        last = self.steps[-1] if self.steps else None
        return isinstance(last, NftStep) and last.verdict == "drop"


class Fate(enum.Enum):
    """The end of a packet. `LOST` means that no rule dropped it and that it did not leave netfilter either."""

    DELIVERED = "delivered"
    TRANSLATED = "translated"
    DROPPED = "dropped"
    QUEUED = "queued"
    LOST = "lost"


class Assembler:
    """Collects steps until `limit` packets have begun. The steps in `table` are marks: they begin and end a journey.

    The kernel makes the number of a packet from fields that it fills in on the way, so a packet may get another number,
    and later packets may get the same ones. Numbers that a packet did not begin with hold until the next one begins.
    """

    def __init__(self, table: str, limit: int) -> None:
        self.journeys: list[Journey] = []
        self._table = table
        self._limit = limit
        self._recent: deque[Journey] = deque(maxlen=_MAX_AT_ONCE)  # also of packets beyond the limit
        self._numbers: dict[int, Journey] = {}
        self._later_numbers: dict[int, Journey] = {}

    @property
    def full(self) -> bool:
        return len(self.journeys) >= self._limit

    def feed(self, steps: Iterable[Step]) -> None:
        """Take the next steps. Those of packets that did not begin here belong to another trace and are left out."""
        for step in steps:
            journey = None if self._begins(step) else self._find(step)
            if journey is None:
                continue
            if isinstance(step, NftStep) and step.table == self._table:
                _mark(journey, step)
            else:
                _add(journey, step)
            journey.latest = step.header or journey.latest

    def _begins(self, step: Step) -> bool:
        """Return True for the mark of a new packet, and take the packet."""
        if isinstance(step, LegacyStep) or step.table != self._table or step.chain not in START_CHAINS:
            return False
        if step.kind is StepKind.RULE and step.handle:
            journey = Journey(step.header, step.header)
            self._later_numbers.clear()
            self._numbers[step.packet] = journey
            self._recent.append(journey)
            if not self.full:
                self.journeys.append(journey)
        return True

    def _find(self, step: Step) -> Journey | None:
        """Return the journey that the step belongs to."""
        known = None
        if isinstance(step, NftStep):
            known = self._later_numbers.get(step.packet) or self._numbers.get(step.packet)
            if known is not None and known in self._recent and step.header is None:
                return known
        candidates = [known] if known is not None and known in self._recent else []
        candidates += reversed(self._recent)
        found = next((one for one in candidates if _continues(one, step.header)), None)
        if found is not None and isinstance(step, NftStep):
            self._later_numbers[step.packet] = found
        return found


def _mark(journey: Journey, step: NftStep) -> None:
    if step.chain in END_CHAINS:
        journey.end, journey.local = step.header or journey.latest, step.chain == "input"


def _add(journey: Journey, step: Step) -> None:
    if isinstance(step, NftStep) and step.kind is StepKind.RULE and not step.handle:
        return  # some kernels report the end of a chain like a rule, too
    if len(journey.steps) < _MAX_STEPS:
        journey.steps.append(step)
    if isinstance(step, LegacyStep) or step.nfproto in _IP_TABLES:  # it goes on, by way of `lo`
        journey.end, journey.local = None, False


def _continues(journey: Journey, header: Header | None) -> bool:
    """Return True if a packet with this header may be that of the journey, one of its addresses translated at most."""
    before = journey.latest
    if before is None or header is None or journey.dropped:
        return False
    return header.proto == before.proto and (header.src == before.src or header.dst == before.dst)


def translated_source(journey: Journey) -> Address | None:
    """Return the source address that the packet had at its end, if it is another than at its beginning."""
    before, after = journey.header, journey.end
    return after.src if before and after and before.src != after.src else None


def translated_destination(journey: Journey) -> Address | None:
    """Return the destination address at the end of the packet, if it is another than at its beginning."""
    before, after = journey.header, journey.end
    return after.dst if before and after and before.dst != after.dst else None
