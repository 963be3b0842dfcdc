"""A row of the table, and the words that its cells are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS

from .record import Record, Sample
from .scale import SIZES
from .site import UNPROTECTED

SUBJECTS = ("nft", UNPROTECTED, "iptables-nft", "iptables-legacy")
BACKENDS = tuple(subject for subject in SUBJECTS if subject != UNPROTECTED)
FLANNEL = {"iptables-nft": "flannel nft", "iptables-legacy": "flannel legacy"}  # flannel's column beside each backend
HEADERS = ("figure", "backend", "foreign rules", "measured", "flannel iptables mode", "to reach", "reached")
MOST = max(SIZES)


@dataclass(frozen=True, **SLOTS)
class Row:
    """`foreign` is None where the figure is one for all numbers of foreign rules; `reached` where it has no target."""

    figure: str
    backend: str
    foreign: Optional[int]
    measured: str
    flannel: str = "-"
    target: str = ""
    reached: Optional[bool] = None

    def cells(self) -> tuple[str, ...]:
        foreign = "" if self.foreign is None else f"{self.foreign:,}"
        reached = {True: "yes", False: "NO", None: ""}[self.reached]
        return (self.figure, self.backend, foreign, self.measured, self.flannel, self.target, reached)


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.0f} ms" if value >= 0.1 else f"{value * 1e3:.{1 if value >= 0.01 else 2}f} ms"


def spread(sample: Sample) -> str:
    if len(sample.values) == 1:
        return seconds(sample.median)
    name = "p99" if len(sample.values) >= 100 else "max"
    return f"median {seconds(sample.median)}, {name} {seconds(sample.p99)} (n={len(sample.values)})"


def each(record: Record, figure: str) -> Iterator[tuple[Sample, Optional[Sample]]]:
    """Yield the sample of each backend at each number of foreign rules, with flannel's."""
    for subject in SUBJECTS:
        for sample in record.of(figure, subject):
            yield sample, record.get(figure, FLANNEL.get(subject, ""), sample.foreign)


def flannel_never(record: Record, figure: str, sample: Sample) -> str:
    """Return for how long flannel was watched without a repair; `-` if it was not."""
    nftables = sample.subject in ("nft", UNPROTECTED)
    never = record.get(f"{figure}-never", "flannel nftables" if nftables else FLANNEL[sample.subject])
    if never is None or (sample.foreign and not nftables):
        return "-"
    return f"{'nftables mode: ' if nftables else ''}never ({never.median:g} s watched)"
