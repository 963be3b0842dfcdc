"""Table of the measured values beside their targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from .kube_churn import churn_rows
from .record import Record, Sample
from .report_gaps import gap_rows
from .report_idle import idle_rows
from .row import BACKENDS, HEADERS, MOST, Row, each, flannel_never, seconds, spread
from .site import UNPROTECTED

_CONTENT = {
    "nft": (2e-3, 20e-3),
    UNPROTECTED: (2e-3, 20e-3),
    "iptables-nft": (20e-3, 60e-3),
    "iptables-legacy": (15e-3, 60e-3),
}
_TABLE = {"nft": (20e-3, 50e-3), UNPROTECTED: (20e-3, 50e-3), "iptables-nft": (20e-3, 60e-3)}
_LEGACY_EXTRA = 0.06  # seconds, beside one write of the table
_NAMED = {"iptables-legacy": 0.9}
_NAMED_ELSE = 0.99
_WHOLE_FLANNELD = "40.5 to 43.2 MB (the whole flanneld, measured once)"
_FLANNEL_RESYNC = "0 to 5 s, mean 2.5 s by its resync; here "


def rows(record: Record) -> Iterator[Row]:
    """None for what was not measured."""
    for part in (_repairs, _named, gap_rows, idle_rows, _busy, churn_rows, _verify, _start, _restart, _memory, _lease):
        yield from part(record)


def text(found: list[Row]) -> str:
    """For a terminal."""
    lines = [HEADERS, *(row.cells() for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown(found: list[Row]) -> str:
    lines = [HEADERS, ("---",) * len(HEADERS), *(row.cells() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _repairs(record: Record) -> Iterator[Row]:
    for figure, title, targets in (
        ("content", "rule or chain content removed to back, by a process that goes on", _CONTENT),
        ("content-exit", "the same, by a program that exits", _CONTENT),
        ("reflex", "beside it, a bare program that answers the event with rules it knows, and reads nothing", {}),
        ("table", "table, jump or ruleset removed to back", _TABLE),
        ("ruleset", "ruleset flushed with the foreign rules in it, to back", {}),
        ("duplicate", "duplicate rule in our chain to repaired", _CONTENT),
    ):
        for sample, flannel in each(record, figure):
            reached, wanted = _within(record, sample, targets)
            theirs = flannel_never(record, figure, sample)
            if flannel:
                theirs = f"{_FLANNEL_RESYNC}{spread(flannel)}"
            yield Row(title, sample.subject, sample.foreign, _gone(sample), theirs, wanted, reached)


def _gone(sample: Sample) -> str:
    """Return the time for which rules were gone; damages that the kernel refused or that had no effect took none."""
    without_effect = sample.values.count(0.0)
    if without_effect == len(sample.values):
        return f"never removed (n={without_effect})"
    return spread(sample)


def _within(record: Record, sample: Sample, targets: dict[str, tuple[float, float]]) -> tuple[Optional[bool], str]:
    if sample.subject not in targets:
        return None, ""
    median, p99 = targets[sample.subject]
    write = record.get("table-write", sample.subject, sample.foreign)
    if write is None or not sample.foreign:
        wanted = f"median <= {seconds(median)}, p99 <= {seconds(p99)}"
        return sample.median <= median and sample.p99 <= p99, wanted
    limit = write.median + _LEGACY_EXTRA
    return sample.median <= limit, f"median <= {seconds(limit)} (table write of {seconds(write.median)} + 60 ms)"


def _named(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "named"):
        number, named = len(sample.values), sum(sample.values)
        share = _NAMED.get(sample.subject, _NAMED_ELSE)
        shown = f"{named:.0f} of {number}"
        title = "program that removed rules named, after its exit"
        yield Row(title, sample.subject, sample.foreign, shown, "never", f">= {share:.0%}", named >= share * number)


def _busy(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "busy-cpu"):
        key = (sample.subject, sample.foreign)
        found = [record.get(f"busy-{name}", *key) for name in ("hits", "back", "alone", "rate")]
        hits, back, alone, rate = (part.median if part else 0 for part in found)
        repaired = f"{back:.0f} of {hits:.0f} hits on our chain repaired or refused"
        processes = ", no process" if alone else ", a process started"
        measured = f"{sample.median:.1f} % of a core at {rate:.0f} commits/s; {repaired}{processes}"
        reached = sample.median <= 5 and back == hits and bool(alone)
        target = "<= 5 %, all repaired, no process"
        title = "CPU at 100 foreign nft transactions a second"
        yield Row(title, sample.subject, sample.foreign, measured, "-", target, reached)


def _verify(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "verify"):
        none = record.get("verify", sample.subject, 0)
        ratio = sample.median / none.median if none else 1.0
        limited = sample.foreign == MOST and sample.subject != "iptables-legacy"
        shown = seconds(sample.median) + (f", {ratio:.2f} times that at none" if sample.foreign else "")
        target, reached = ("<= 1.5 times that at none", ratio <= 1.5) if limited else ("", None)
        yield Row("full verify", sample.subject, sample.foreign, shown, "-", target, reached)


def _start(record: Record) -> Iterator[Row]:
    for sample, flannel in each(record, "start"):
        limit = 0.8 if (sample.subject, sample.foreign) == ("iptables-legacy", MOST) else 0.15
        shown = spread(flannel) if flannel else "-"
        title = "start of the process to rules in the kernel"
        row = (title, sample.subject, sample.foreign, spread(sample), shown)
        yield Row(*row, f"median <= {seconds(limit)}", sample.median <= limit)
    for sample, _ in each(record, "start-tables"):
        title = "the same, at so many foreign tables and no foreign rules"
        reached = sample.median <= 0.15
        yield Row(title, sample.subject, sample.foreign, spread(sample), "-", "median <= 150 ms", reached)


def _restart(record: Record) -> Iterator[Row]:
    for sample, flannel in each(record, "restart"):
        writes = record.get("restart-writes", sample.subject, sample.foreign)
        written = sum(writes.values) if writes else 0.0
        worst = max(sample.values)
        measured = f"{seconds(worst) if worst else '0'}, {written:.0f} writes (n={len(sample.values)})"
        shown = spread(flannel) if flannel else "-"
        reached = worst == 0 and written == 0
        yield Row("rules missing during a restart", sample.subject, sample.foreign, measured, shown, "0", reached)


def _memory(record: Record) -> Iterator[Row]:
    for figure, title in (("memory", "resident memory"), ("memory-tables", "the same, at 5,000 foreign tables")):
        for backend in BACKENDS:
            values = [value for sample in record.of(figure, backend) for value in sample.values]
            if values:
                shown = f"at most {max(values):.1f} MB"
                yield Row(title, backend, None, shown, _WHOLE_FLANNELD, "<= 28 MB", max(values) <= 28)


def _lease(record: Record) -> Iterator[Row]:
    title = "subnet.env renamed to rules in the kernel"
    for sample, _ in each(record, "lease"):
        write = record.get("table-write", sample.subject, sample.foreign)
        limit = 0.05 + (write.median if write and sample.foreign else 0.0)
        target = f"all <= {seconds(limit)}" + (" (50 ms + table write)" if limit > 0.05 else "")
        yield Row(title, sample.subject, sample.foreign, spread(sample), "-", target, sample.p99 <= limit)
