"""Renders the daemon's status in the text format of Prometheus, for node_exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.model import Family

STATES = (State.SYNCED, State.WAITING, State.DEGRADED, State.CONTENDED, State.STOPPED)
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class _Metric(NamedTuple):
    name: str
    type: str
    help: str
    samples: Iterable[str]  # labels and value of each


def exposition(status: Status) -> str:
    """Return the whole file."""
    return "".join(f"{line}\n" for metric in _metrics(status) for line in _lines(metric))


def _metrics(status: Status) -> Iterator[_Metric]:
    named = {name: family for name, family in status.families.items() if status.names(name)}
    yield _Metric("state", "gauge", "1 for the state that the daemon is in, 0 for the others.", _states(status))
    yield _Metric(
        "family_in_sync",
        "gauge",
        "1 if the kernel held the wanted rules at the last verification; only families that a subnet file names.",
        (_sample(int(family.state is State.SYNCED), family=str(name)) for name, family in named.items()),
    )
    yield _Metric(
        "last_verified_timestamp_seconds",
        "gauge",
        "When the kernel's rules were last verified; at least at every resync.",
        _verifications(named),
    )
    yield _Metric("rules", "gauge", "Rules that the kernel holds for flanneld-masq.", _rules(status))
    yield _Metric(
        "repairs_total",
        "counter",
        "Repairs of rules that other programs had changed, since the start.",
        (_sample(family.repairs or 0, family=str(name)) for name, family in status.families.items()),
    )
    yield _Metric(
        "healed_flows_total",
        "counter",
        "Connections deleted because they had the wrong source address and no reply, since the start.",
        (_sample(family.healed_flows or 0, family=str(name)) for name, family in status.families.items()),
    )
    yield _Metric(
        "config_last_reload_successful",
        "gauge",
        "1 if the configuration was valid when it was last read.",
        [_sample(int(not status.reload_refused))],
    )
    yield _Metric(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "When the settings in force were read.",
        [_sample(_seconds(status.config_loaded))] if status.config_loaded else [],
    )
    yield _Metric("build_info", "gauge", "1; the label is the release.", [_sample(1, version=status.version)])


def _lines(metric: _Metric) -> Iterator[str]:
    name = f"flanneld_masq_{metric.name}"
    yield f"# HELP {name} {metric.help}"
    yield f"# TYPE {name} {metric.type}"
    for sample in metric.samples:
        yield name + sample


def _states(status: Status) -> Iterator[str]:
    return (_sample(int(status.state is state), state=str(state)) for state in STATES)


def _verifications(families: dict[Family, FamilyStatus]) -> Iterator[str]:
    for name, family in families.items():
        if family.verified is not None:
            yield _sample(_seconds(family.verified), family=str(name))


def _rules(status: Status) -> Iterator[str]:
    for name, family in status.families.items():
        for group, choice in family.groups.items():
            for carrier in choice.carriers:
                yield _sample(carrier.rules or 0, family=str(name), group=str(group), backend=carrier.backend)


def _sample(value: float | str, **labels: str) -> str:
    """Return labels and value; the name of the metric goes before them."""
    pairs = ",".join(f'{name}="{text.translate(_ESCAPES)}"' for name, text in labels.items())
    return f"{{{pairs}}} {value}" if pairs else f" {value}"


def _seconds(time: datetime) -> str:
    """Return a time of Unix, cut to milliseconds as in status.json."""
    return f"{time.replace(microsecond=time.microsecond // 1000 * 1000).timestamp():.3f}"
