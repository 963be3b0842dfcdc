"""What was measured, against what is to be reached: rows for a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS

from .record import Record, Sample
from .scale import SIZES

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
FLANNEL = {"iptables-nft": "flannel nft", "iptables-legacy": "flannel legacy"}  # whose way is compared with ours
HEADERS = ("figure", "backend", "foreign rules", "measured", "flannel iptables mode", "to reach", "reached")
_CONTENT = {"nft": (2e-3, 20e-3), "iptables-nft": (20e-3, 60e-3)}
_TABLE = {"nft": (20e-3, 50e-3), "iptables-nft": (20e-3, 60e-3)}
LEGACY_SECONDS = 0.06  # beside one write of the table
_MOST = max(SIZES)


@dataclass(frozen=True, **SLOTS)
class Row:
    """`reached` is None where nothing is to be reached."""

    figure: str
    backend: str
    foreign: Optional[int]
    measured: str
    flannel: str
    target: str
    reached: Optional[bool]

    def cells(self) -> tuple[str, ...]:
        foreign = "" if self.foreign is None else f"{self.foreign:,}"
        reached = {True: "yes", False: "NO", None: ""}[self.reached]
        return (self.figure, self.backend, foreign, self.measured, self.flannel, self.target, reached)


def rows(record: Record) -> Iterator[Row]:
    """None for what was not measured."""
    for part in (_repairs, _idle, _busy, _verify, _start, _restart, _memory, _lease):
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


def seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.0f} ms" if value >= 0.1 else f"{value * 1e3:.{1 if value >= 0.01 else 2}f} ms"


def _spread(sample: Sample) -> str:
    if len(sample.values) == 1:
        return seconds(sample.median)
    name = "p99" if len(sample.values) >= 100 else "max"
    return f"median {seconds(sample.median)}, {name} {seconds(sample.p99)} (n={len(sample.values)})"


def _each(record: Record, figure: str) -> Iterator[tuple[Sample, Optional[Sample]]]:
    """Of each backend at each number of foreign rules, with flannel's."""
    for backend in BACKENDS:
        for sample in record.of(figure, backend):
            yield sample, record.get(figure, FLANNEL.get(backend, ""), sample.foreign)


def _repairs(record: Record) -> Iterator[Row]:
    for figure, title, targets in (
        ("content", "rule or chain content removed to back, by a process that goes on", _CONTENT),
        ("content-exit", "the same, by a program that exits", _CONTENT),
        ("reflex", "beside it, a bare program that answers the event with rules it knows, and reads nothing", {}),
        ("table", "table, jump or ruleset removed to back", _TABLE),
        ("ruleset", "ruleset flushed with the foreign rules in it, to back", {}),
        ("duplicate", "duplicate rule in our chain to repaired", _CONTENT),
    ):
        for sample, flannel in _each(record, figure):
            reached, wanted = _within(record, sample, targets)
            theirs = _spread(flannel) if flannel else _never(record, figure, sample)
            yield Row(title, sample.subject, sample.foreign, _spread(sample), theirs, wanted, reached)


def _within(record: Record, sample: Sample, targets: dict[str, tuple[float, float]]) -> tuple[Optional[bool], str]:
    if sample.subject in targets:
        median, p99 = targets[sample.subject]
        wanted = f"median <= {seconds(median)}, p99 <= {seconds(p99)}"
        return sample.median <= median and sample.p99 <= p99, wanted
    write = record.get("table-write", sample.subject, sample.foreign)
    if write is None or not targets:
        return None, ""
    limit = LEGACY_SECONDS + write.median
    return (
        sample.p99 <= limit,
        f"all <= {seconds(limit)} ({LEGACY_SECONDS * 1000:.0f} ms + table write of {seconds(write.median)})",
    )


def _never(record: Record, figure: str, sample: Sample) -> str:
    subject = FLANNEL.get(sample.subject, "flannel nftables")
    never = record.get(f"{figure}-never", subject)
    if never is None or sample.foreign:
        return "-"
    mode = "nftables mode: " if subject == "flannel nftables" else ""
    return f"{mode}never ({never.median:g} s watched)"


def _idle(record: Record) -> Iterator[Row]:
    for sample, _ in _each(record, "idle-cpu"):
        traced = record.get("processes", sample.subject, sample.foreign)
        alone = record.get("idle-alone", sample.subject, sample.foreign)
        none = bool(alone and alone.median) and not (traced and traced.median)
        started = "0" if none else f"{traced.median:.0f} a minute" if traced and traced.median else "some"
        flannel = record.get("processes", FLANNEL.get(sample.subject, ""), sample.foreign)
        shown = f"{flannel.median:.0f} a minute" if flannel else "-"
        title = "processes started while nothing changes"
        yield Row(title, sample.subject, sample.foreign, started, shown, "0", none)
    for sample, flannel in _each(record, "idle-cpu"):
        limit: Optional[float] = 0.01
        if sample.subject == "iptables-legacy":
            limit = {0: 0.03, _MOST: 0.3}.get(sample.foreign)
        yield Row(
            "CPU while nothing changes",
            sample.subject,
            sample.foreign,
            f"{sample.median:.4f} s/min",
            f"{flannel.median:.2f} s/min" if flannel else "-",
            f"<= {limit:g} s/min" if limit else "",
            sample.median <= limit if limit else None,
        )


def _busy(record: Record) -> Iterator[Row]:
    for sample, _ in _each(record, "busy-cpu"):
        found = {name: record.get(f"busy-{name}", sample.subject) for name in ("hits", "back", "alone", "rate")}
        hits, back, alone, rate = (each.median if each else 0 for each in found.values())
        repaired = f"{back:.0f} of {hits:.0f} hits on our chain repaired"
        processes = ", no process" if alone else ", a process started"
        measured = f"{sample.median:.1f} % of a core at {rate:.0f} commits/s; {repaired}{processes}"
        reached = sample.median <= 5 and back == hits and bool(alone)
        target = "<= 5 %, all repaired, no process"
        yield Row("CPU at 100 foreign nft transactions a second", sample.subject, 0, measured, "-", target, reached)


def _verify(record: Record) -> Iterator[Row]:
    for sample, _ in _each(record, "verify"):
        none = record.get("verify", sample.subject, 0)
        ratio = sample.median / none.median if none else 1.0
        limited = sample.foreign == _MOST and sample.subject != "iptables-legacy"
        shown = seconds(sample.median) + (f", {ratio:.2f} times that at none" if sample.foreign else "")
        target, reached = ("<= 1.5 times that at none", ratio <= 1.5) if limited else ("", None)
        yield Row("full verify", sample.subject, sample.foreign, shown, "-", target, reached)


def _start(record: Record) -> Iterator[Row]:
    for sample, flannel in _each(record, "start"):
        limit = 1.0 if (sample.subject, sample.foreign) == ("iptables-legacy", _MOST) else 0.3
        shown = _spread(flannel) if flannel else "-"
        title = "start of the process to rules in the kernel"
        row = (title, sample.subject, sample.foreign, _spread(sample), shown)
        yield Row(*row, f"median <= {seconds(limit)}", sample.median <= limit)


def _restart(record: Record) -> Iterator[Row]:
    for sample, flannel in _each(record, "restart"):
        writes = record.get("restart-writes", sample.subject, sample.foreign)
        written = sum(writes.values) if writes else 0.0
        worst = max(sample.values)
        measured = f"{seconds(worst) if worst else '0'}, {written:.0f} writes (n={len(sample.values)})"
        shown = _spread(flannel) if flannel else "-"
        reached = worst == 0 and written == 0
        yield Row("rules missing during a restart", sample.subject, sample.foreign, measured, shown, "0", reached)


def _memory(record: Record) -> Iterator[Row]:
    for backend in BACKENDS:
        values = [value for sample in record.of("memory", backend) for value in sample.values]
        if values:
            shown = f"at most {max(values):.1f} MB"
            yield Row("resident memory", backend, None, shown, "-", "<= 28 MB", max(values) <= 28)


def _lease(record: Record) -> Iterator[Row]:
    title = "subnet.env renamed to rules in the kernel"
    for sample, _ in _each(record, "lease"):
        reached = sample.p99 <= 0.05
        yield Row(title, sample.subject, sample.foreign, _spread(sample), "-", "all <= 50 ms", reached)
