"""Rows for the new flows that leave with the pod's address while rules are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from .record import Record, Sample
from .row import FLANNEL, SUBJECTS, Row, flannel_never, seconds
from .traffic_program import PER_SECOND

_GAP = "gap "
_LATE_SECONDS = 0.1  # of a sender on a busy machine: then the figure is too low


def gap_rows(record: Record) -> Iterator[Row]:
    """Two rows for each damage and backend: the flows of the gap, and those of them that are wrong a second later."""
    figures = dict.fromkeys(sample.figure for sample in record.samples.values() if sample.figure.startswith(_GAP))
    for figure in figures:
        name = figure[len(_GAP) :]
        for sample in (found for subject in SUBJECTS for found in record.of(figure, subject)):
            flannel = FLANNEL.get(sample.subject, "")
            theirs = record.get(figure, flannel, sample.foreign)
            shown = _flows(record, theirs, name) if theirs else flannel_never(record, "content-exit", sample)
            never_damaged = sample.subject == "nft"
            yield Row(
                f"new flows, of {PER_SECOND:,} a second, that leave with the pod's address during: {name}",
                sample.subject,
                sample.foreign,
                _flows(record, sample, name),
                shown,
                "0" if never_damaged else "",
                max(sample.values) == 0 if never_damaged else None,
            )
            yield Row(
                f"of these flows, still wrong 1 s after the repair of: {name}",
                sample.subject,
                sample.foreign,
                _stuck(record, sample, name),
                _stuck(record, theirs, name) if theirs else "-",
                "0",
                not _count(record, "stuck", sample, name),
            )


def _flows(record: Record, sample: Sample, name: str) -> str:
    times = len(sample.values)
    mean = f"{sum(sample.values) / times:.0f}"
    shown = mean if times == 1 else f"{mean} each time, at most {max(sample.values):.0f} (n={times})"
    lost = _count(record, "lost", sample, name)
    if lost:
        shown += f"; {lost:.0f} were dropped"
    late = _count(record, "late", sample, name)
    return f"{shown}; the sender stalled for {seconds(late)}" if late > _LATE_SECONDS else shown


def _stuck(record: Record, sample: Sample, name: str) -> str:
    return f"{_count(record, 'stuck', sample, name):.0f} of {sum(sample.values):.0f}"


def _count(record: Record, kind: str, sample: Sample, name: str) -> float:
    found: Optional[Sample] = record.get(f"gap-{kind} {name}", sample.subject, sample.foreign)
    return sum(found.values) if found else 0.0
