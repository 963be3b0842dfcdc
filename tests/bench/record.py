"""Measured values: samples by figure, subject and number of foreign rules."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from flanneld_masq.model import SLOTS


@dataclass(frozen=True, **SLOTS)
class Sample:
    """All values of one figure. `subject` is that of a site, or "flannel " and the flavour of its iptables. `foreign`
    is a number of rules, of tables in figures that end in "-tables", of services in figures that begin with "kube-"."""

    figure: str
    subject: str
    foreign: int
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The nearest rank: of fewer than 100 values the largest."""
        return sorted(self.values)[math.ceil(len(self.values) * 0.99) - 1]

    def as_json(self) -> dict[str, Any]:
        summary = {"n": len(self.values), "median": self.median, "p99": self.p99, "max": max(self.values)}
        named = {"figure": self.figure, "subject": self.subject, "foreign_rules": self.foreign, "unit": self.unit}
        return {**named, **summary, "values": list(self.values)}


@dataclass
class Record:
    """Grows as the bench goes on. `notes` say which parts of it failed, and why."""

    samples: dict[tuple[str, str, int], Sample] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, figure: str, subject: str, foreign: int, unit: str, values: Sequence[float]) -> None:
        """More values of a figure join those that are there."""
        key = (figure, subject, foreign)
        before = self.samples[key].values if key in self.samples else ()
        self.samples[key] = Sample(figure, subject, foreign, unit, (*before, *values))

    def get(self, figure: str, subject: str, foreign: int = 0) -> Optional[Sample]:
        return self.samples.get((figure, subject, foreign))

    def of(self, figure: str, subject: str) -> Iterator[Sample]:
        """By number of foreign rules."""
        found = (sample for sample in self.samples.values() if (sample.figure, sample.subject) == (figure, subject))
        return iter(sorted(found, key=lambda sample: sample.foreign))
