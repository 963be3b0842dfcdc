"""Rows for a node on which nothing changes: processes, CPU, wake-ups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from .record import Record, Sample
from .row import FLANNEL, MOST, Row, each

WAKEUPS_PER_MINUTE = 13  # of the legacy backend; the others have a resync a minute and nothing else
TIMER_RATIO = 1.5
_FAMILIES = 2  # of a dual-stack node


def idle_rows(record: Record) -> Iterator[Row]:
    for part in (_processes, _cpu, _wakeups, _beside):
        yield from part(record)


def _processes(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "idle-cpu"):
        traced = record.get("processes", sample.subject, sample.foreign)
        alone = record.get("idle-alone", sample.subject, sample.foreign)
        none = bool(alone and alone.median) and not (traced and traced.median)
        started = "0" if none else f"{traced.median:.0f} a minute" if traced and traced.median else "some"
        flannel = record.get("processes", FLANNEL.get(sample.subject, ""), sample.foreign)
        shown = "-"
        if flannel:
            both = flannel.median * _FAMILIES
            shown = f"{flannel.median:.0f} a minute for a family, {both:.0f} on a dual-stack node"
        title = "processes started while nothing changes"
        yield Row(title, sample.subject, sample.foreign, started, shown, "0", none)


def _cpu(record: Record) -> Iterator[Row]:
    for sample, flannel in each(record, "idle-cpu"):
        limit = 0.1 if (sample.subject, sample.foreign) == ("iptables-legacy", MOST) else 0.01
        shown = f"{flannel.median:.2f} s/min" if flannel else "-"
        yield _cpu_row("CPU while nothing changes", sample, shown, limit)


def _beside(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "beside-cpu"):
        limit = 0.01
        if sample.subject == "iptables-legacy":
            limit = 0.1 if sample.foreign == MOST else 0.03
        yield _cpu_row("CPU while flannel asks for its rules 240 times a minute", sample, "-", limit)
    for sample, _ in each(record, "beside-turns"):
        yield Row("wake-ups while flannel asks", sample.subject, sample.foreign, _number(record, "beside", sample))


def _cpu_row(title: str, sample: Sample, flannel: str, limit: float) -> Row:
    shown, target = f"{sample.median:.4f} s/min", f"<= {limit:g} s/min"
    return Row(title, sample.subject, sample.foreign, shown, flannel, target, sample.median <= limit)


def _wakeups(record: Record) -> Iterator[Row]:
    for sample, _ in each(record, "idle-turns"):
        row = ("wake-ups while nothing changes", sample.subject, sample.foreign, _number(record, "idle", sample), "-")
        if sample.subject == "iptables-legacy":
            yield Row(*row, f"<= {WAKEUPS_PER_MINUTE} of the event loop", sample.median <= WAKEUPS_PER_MINUTE)
        else:
            yield Row(*row)
    for sample, _ in each(record, "idle-cpu"):
        ratio = _ratio(record, sample)
        if ratio is not None:
            title = "CPU of a wake-up beside that of an empty asyncio timer that wakes up as often"
            row = (title, sample.subject, sample.foreign, _cost(record, sample, ratio), "-")
            if sample.subject == "iptables-legacy":
                yield Row(*row, f"<= {TIMER_RATIO:g} times", ratio <= TIMER_RATIO)
            else:
                yield Row(*row)


def _number(record: Record, figure: str, turns: Sample) -> str:
    wakeups = record.get(f"{figure}-wakeups", turns.subject, turns.foreign)
    shown = f"{turns.median:.0f} a minute of the event loop"
    return f"{shown}, {wakeups.median:.0f} of all threads" if wakeups else shown


def _ratio(record: Record, sample: Sample) -> Optional[float]:
    ours, timers = (_per_wakeup(record, figure, sample) for figure in ("idle", "timer"))
    return ours / timers if ours is not None and timers else None


def _cost(record: Record, sample: Sample, ratio: float) -> str:
    ours, timers = (_per_wakeup(record, figure, sample) or 0.0 for figure in ("idle", "timer"))
    return f"{ratio:.1f} times: {ours * 1e3:.2f} ms beside {timers * 1e3:.2f} ms"


def _per_wakeup(record: Record, figure: str, sample: Sample) -> Optional[float]:
    """Return CPU seconds; None if nothing woke up."""
    cpu = record.get(f"{figure}-cpu", sample.subject, sample.foreign)
    wakeups = record.get(f"{figure}-wakeups", sample.subject, sample.foreign)
    return cpu.median / wakeups.median if cpu and wakeups and wakeups.median else None
