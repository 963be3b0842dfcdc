"""The two pictures: repair latency and idle CPU against the number of foreign rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from .record import Record
from .scale import SIZES
from .site import UNPROTECTED
from .svg import Chart, Point, Series

_LEAST = 1e-4  # a logarithmic axis has no 0
_SUBJECTS = {
    "nft": ("flanneld-masq, nft", "#0072b2", False),
    UNPROTECTED: ("flanneld-masq, nft, protect = false", "#56b4e9", False),
    "iptables-nft": ("flanneld-masq, iptables-nft", "#009e73", False),
    "iptables-legacy": ("flanneld-masq, iptables-legacy", "#8856a7", False),
    "flannel nft": ("flannel, iptables-nft", "#e69f00", True),
    "flannel legacy": ("flannel, iptables-legacy", "#d55e00", True),
}


def latency(record: Record) -> Optional[Chart]:
    notes = (
        "Another program flushes the chain and exits. The time until the rules are back.",
        "Mark: median. The line above it ends at the 99th percentile; of fewer than 100 values, at the largest.",
    )
    title = "Rules removed by a program that exits, to back"
    return _chart(record, "content-exit", title, notes, "time until repaired", _time, whiskers=True)


def idle(record: Record) -> Optional[Chart]:
    notes = (
        "Nothing changes for a minute with one resync in it. Child processes are counted.",
        f"{_LEAST:.4f} and less is drawn as {_LEAST:.4f}.",
    )
    return _chart(
        record, "idle-cpu", "CPU while nothing changes", notes, "CPU seconds a minute", _number, whiskers=False
    )


def _chart(
    record: Record, figure: str, title: str, notes: Sequence[str], unit: str, ticks: object, *, whiskers: bool
) -> Optional[Chart]:
    series = []
    for subject, look in _SUBJECTS.items():
        points = {
            SIZES.index(sample.foreign): Point(max(sample.median, _LEAST), sample.p99 if whiskers else None)
            for sample in record.of(figure, subject)
            if not whiskers or sample.p99 > 0  # rules that could not be removed have no latency
        }
        if points:
            series.append(Series(*look, points))
    if not series:
        return None
    places = [f"{size:,}" for size in SIZES]
    x_label = "foreign nat rules, as kube-proxy writes them"
    return Chart(title, notes, x_label, f"{unit} (logarithmic)", places, series, ticks)  # type: ignore[arg-type]


def _number(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.6f}".rstrip("0")


def _time(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
