"""The two pictures: repair latency and idle CPU against the number of foreign rules."""

from __future__ import annotations

from typing import Optional

from .record import Record
from .scale import SIZES
from .svg import Chart, Point, Series

_LEAST = 1e-4  # a logarithmic axis has no 0
_SUBJECTS = {
    "nft": ("flanneld-masq, nft", "#0072b2", False),
    "iptables-nft": ("flanneld-masq, iptables-nft", "#009e73", False),
    "iptables-legacy": ("flanneld-masq, iptables-legacy", "#8856a7", False),
    "flannel nft": ("flannel, iptables-nft", "#e69f00", True),
    "flannel legacy": ("flannel, iptables-legacy", "#d55e00", True),
}


def latency(record: Record) -> Optional[Chart]:
    note = "Chain flushed by nft or iptables, until it is back. Mark: median; whisker: p99, or the largest of few."
    return _chart(record, "content-exit", "Repair latency", note, "time until repaired", _time, whiskers=True)


def idle(record: Record) -> Optional[Chart]:
    note = f"Nothing changes. Child processes are counted. {_LEAST:.4f} and less is drawn as {_LEAST:.4f}."
    return _chart(record, "idle-cpu", "CPU while idle", note, "CPU seconds a minute", _number, whiskers=False)


def _chart(
    record: Record, figure: str, title: str, note: str, unit: str, ticks: object, *, whiskers: bool
) -> Optional[Chart]:
    series = []
    for subject, look in _SUBJECTS.items():
        points = {
            SIZES.index(sample.foreign): Point(max(sample.median, _LEAST), sample.p99 if whiskers else None)
            for sample in record.of(figure, subject)
        }
        if points:
            series.append(Series(*look, points))
    if not series:
        return None
    places = [f"{size:,}" for size in SIZES]
    x_label = "foreign nat rules, as kube-proxy writes them"
    return Chart(title, note, x_label, f"{unit} (logarithmic)", places, series, ticks)  # type: ignore[arg-type]


def _number(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.6f}".rstrip("0")


def _time(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"
