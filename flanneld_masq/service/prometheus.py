"""Turns the daemon's status into metrics, and renders them in the text format of Prometheus.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.hookspecs import Metric, MetricKind, Sample
from flanneld_masq.model import Family

PREFIX = "flanneld_masq_"
STATES = (State.SYNCED, State.WAITING, State.DEGRADED, State.CONTENDED, State.STOPPED)
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def exposition(status: Status) -> str:
    """Return the whole file."""
    return "".join(f"{line}\n" for metric in metrics(status) for line in _lines(metric))


def metrics(status: Status) -> tuple[Metric, ...]:
    """Return all metrics of the daemon."""
    return (*_health(status), *_repairs(status), *_rules(status), *_configuration(status))


def _health(status: Status) -> Iterator[Metric]:
    named = {name: family for name, family in status.families.items() if status.names(name)}
    yield _gauge(
        "state",
        "1 for the state that the daemon is in, 0 for the others.",
        (_sample(status.state is state, state=state) for state in STATES),
    )
    yield _gauge(
        "family_in_sync",
        "1 if the kernel held the wanted rules at the last verification; only families that a subnet file names.",
        (_sample(family.state is State.SYNCED, family=name) for name, family in named.items()),
    )
    yield _gauge(
        "last_verified_timestamp_seconds",
        "When the kernel's rules were last verified; at least at every resync.",
        (_sample(_seconds(at), family=name) for name, family in named.items() if (at := family.verified)),
    )
    yield _gauge(
        "problems",
        "Problems that the daemon knows of, by their kind. `flanneld-masq doctor` explains them and finds more.",
        (_sample(count, kind=kind) for kind, count in _problems(status)),
    )


def _problems(status: Status) -> Iterator[tuple[str, int]]:
    families = status.families.values()
    yield "family", sum(bool(family.last_error) for family in families)
    yield "input", len(status.troubles)
    yield "plugin", len(status.plugin_failures)
    yield "cni_masquerade", sum(bool(family.cni_masquerade) for family in families)
    yield "flannel_rules", sum(bool(family.flannel.takeover_stopped) for family in families)


def _repairs(status: Status) -> Iterator[Metric]:
    families = status.families.items()
    yield _counter(
        "repairs_total",
        "Repairs of rules that other programs had changed, since the start.",
        (_sample(family.repairs or 0, family=name) for name, family in families),
    )
    yield _counter(
        "repairs_by_author_total",
        "The same repairs, by backend, worst damage, and name of the program that had done it.",
        (sample for name, family in families for sample in _by_author(name, family)),
    )
    yield _counter(
        "gap_seconds_total",
        "Time from each notice of a change by another program to the end of its repair, since the start.",
        (_sample(family.totals.gap_us / 1_000_000, family=name) for name, family in families),
    )
    yield _counter(
        "contentions_total",
        "How often a program kept undoing repairs, so that they were delayed, since the start.",
        (_sample(family.totals.contentions, family=name) for name, family in families),
    )
    yield _counter(
        "healed_flows_total",
        "Connections deleted because they had the wrong source address and no reply, since the start.",
        (_sample(family.healed_flows or 0, family=name) for name, family in families),
    )


def _by_author(name: Family, family: FamilyStatus) -> Iterator[Sample]:
    for count in family.totals.repairs:
        yield _sample(count.count, family=name, backend=count.backend, cause=count.cause, author=count.author)


def _rules(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "rules",
        "Rules that the kernel holds for flanneld-masq.",
        (
            _sample(carrier.rules or 0, family=name, group=group, backend=carrier.backend)
            for name, family in status.families.items()
            for group, choice in family.groups.items()
            for carrier in choice.carriers
        ),
    )
    counted = [
        (name, backend, traffic)
        for name, family in status.families.items()
        for backend, traffic in family.traffic.items()
    ]
    yield _counter(
        "masqueraded_packets_total",
        "First packets of connections that the masquerade rules had counted at the last resync; those of nft do not.",
        (_sample(traffic.packets, family=name, backend=backend) for name, backend, traffic in counted),
    )
    yield _counter(
        "masqueraded_bytes_total",
        "Bytes in these packets.",
        (_sample(traffic.bytes, family=name, backend=backend) for name, backend, traffic in counted),
    )


def _configuration(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "config_last_reload_successful",
        "1 if the configuration was valid when it was last read.",
        [_sample(not status.reload_refused)],
    )
    yield _gauge(
        "config_last_reload_success_timestamp_seconds",
        "When the settings in force were read.",
        [_sample(_seconds(status.config_loaded))] if status.config_loaded else [],
    )
    yield _gauge("build_info", "1; the label is the release.", [_sample(1, version=status.version)])


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    return Metric(PREFIX + name, MetricKind.GAUGE, text, tuple(samples))


def _counter(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    return Metric(PREFIX + name, MetricKind.COUNTER, text, tuple(samples))


def _sample(value: float, **labels: object) -> Sample:
    return Sample(
        int(value) if isinstance(value, bool) else value, tuple((key, str(one)) for key, one in labels.items())
    )


def _seconds(time: datetime) -> float:
    """Return a time of Unix, cut to milliseconds as in status.json."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000).timestamp()


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for sample in metric.samples:
        pairs = ",".join(f'{name}="{text.translate(_ESCAPES)}"' for name, text in sample.labels)
        yield f"{metric.name}{{{pairs}}} {sample.value}" if pairs else f"{metric.name} {sample.value}"
