"""The textfile of node_exporter says what the status says, in the text format of Prometheus."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.controller.status import (
    FamilyStatus,
    GroupStatus,
    RepairCount,
    State,
    Status,
    Totals,
    stopped,
)
from flanneld_masq.hookspecs import MetricKind
from flanneld_masq.model import BackendName, ChangeKind, Family, FamilyLease, Group, Lease, Traffic
from flanneld_masq.service import prometheus

AT = datetime(2026, 11, 26, 12, 0, 0, 123000, tzinfo=timezone.utc)
GROUPS = {Group.MASQUERADE: GroupStatus(BackendName("nft"), "it is usable", 5)}
LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
    FamilyLease((ip_network("fd00::/56"),), ip_network("fd00:0:0:1::/64"), ip_address("fd00:0:0:1::1")),
)
STATUS = Status(
    State.DEGRADED,
    version="1.2.3",
    config_loaded=AT,
    leases=(LEASE,),
    families={
        Family.IPV4: FamilyStatus(
            State.SYNCED,
            groups=GROUPS,
            repairs=3,
            healed_flows=2,
            verified=AT,
            totals=Totals((RepairCount(BackendName("nft"), ChangeKind.MISSING, "iptables", 3),), 1, 1_500_000),
            traffic={BackendName("iptables-nft"): Traffic(7, 420)},
            cni_masquerade=("chain CNI-x",),
        ),
        Family.IPV6: FamilyStatus(State.DEGRADED, last_error="nft said no"),
    },
)
_SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(status: Status) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the exposition as Prometheus does: name and labels of each sample, with its value."""
    values = {}
    typed: set[str] = set()
    for line in prometheus.exposition(status).split("\n")[:-1]:
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("#"):
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            name, labels, value = sample.groups()
            assert name in typed
            unescaped = [
                (label, re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text))
                for label, text in _LABEL.findall(labels or "")
            ]
            values[name, frozenset(unescaped)] = float(value)
    return values


def of(status: Status, name: str) -> dict[str, float]:
    """Return the samples of one metric by the value of their last label."""
    found = {}
    for (metric, labels), value in samples(status).items():
        if metric == f"flanneld_masq_{name}":
            found[next((text for _, text in sorted(labels)), "")] = value
    return found


def test_each_state_and_each_family_has_its_sample() -> None:
    assert of(STATUS, "state") == {"synced": 0, "waiting": 0, "degraded": 1, "contended": 0, "stopped": 0}
    assert of(STATUS, "family_in_sync") == {"ipv4": 1, "ipv6": 0}
    assert of(STATUS, "repairs_total") == {"ipv4": 3, "ipv6": 0}
    assert of(STATUS, "healed_flows_total") == {"ipv4": 2, "ipv6": 0}
    labels = frozenset({("family", "ipv4"), ("group", "masquerade"), ("backend", "nft")})
    assert samples(STATUS)["flanneld_masq_rules", labels] == 5


def test_repairs_gaps_and_contentions() -> None:
    labels = {("family", "ipv4"), ("backend", "nft"), ("cause", "missing"), ("author", "iptables")}
    assert samples(STATUS)["flanneld_masq_repairs_by_author_total", frozenset(labels)] == 3
    assert of(STATUS, "gap_seconds_total") == {"ipv4": 1.5, "ipv6": 0}
    assert of(STATUS, "contentions_total") == {"ipv4": 1, "ipv6": 0}


def test_traffic_of_backends_that_count() -> None:
    labels = frozenset({("family", "ipv4"), ("backend", "iptables-nft")})
    assert samples(STATUS)["flanneld_masq_masqueraded_packets_total", labels] == 7
    assert samples(STATUS)["flanneld_masq_masqueraded_bytes_total", labels] == 420


def test_problems_by_their_kind() -> None:
    status = replace(STATUS, troubles=("one", "two"), plugin_failures=("three",))
    problems = {"family": 1, "input": 2, "plugin": 1, "cni_masquerade": 1, "flannel_rules": 0}
    assert of(status, "problems") == problems


def test_names_and_types_follow_the_conventions() -> None:
    for metric in prometheus.metrics(STATUS):
        assert re.fullmatch(r"flanneld_masq_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
        assert metric.help.endswith(".") or metric.name.endswith("build_info")
        assert len({tuple(name for name, _ in sample.labels) for sample in metric.samples}) <= 1


def test_a_stopped_daemon_holds_nothing_in_sync() -> None:
    ended = stopped(STATUS)
    assert of(ended, "state") == {"synced": 0, "waiting": 0, "degraded": 0, "contended": 0, "stopped": 1}
    assert of(ended, "family_in_sync") == {"ipv4": 0, "ipv6": 0}
    assert of(ended, "last_verified_timestamp_seconds") == {"ipv4": AT.timestamp()}


def test_a_family_without_a_lease_is_neither_in_sync_nor_stale() -> None:
    families = {**STATUS.families, Family.IPV6: FamilyStatus(State.WAITING, verified=AT)}
    status = replace(STATUS, leases=(replace(LEASE, ipv6=None),), families=families)
    assert of(status, "family_in_sync") == {"ipv4": 1}
    assert of(status, "last_verified_timestamp_seconds") == {"ipv4": AT.timestamp()}


def test_the_release_and_the_last_reload() -> None:
    assert of(STATUS, "build_info") == {"1.2.3": 1}
    assert of(STATUS, "config_last_reload_successful") == {"": 1}
    assert of(replace(STATUS, reload_refused=True), "config_last_reload_successful") == {"": 0}
    assert of(STATUS, "config_last_reload_success_timestamp_seconds") == {"": AT.timestamp()}
    assert of(replace(STATUS, config_loaded=None), "config_last_reload_success_timestamp_seconds") == {}


@given(st.text())
def test_any_label_is_read_as_it_was(name: str) -> None:
    """A plugin may give its backend any name."""
    groups = {Group.FORWARD: GroupStatus(BackendName(name), "", 2)}
    status = replace(STATUS, version=name, families={Family.IPV4: FamilyStatus(State.SYNCED, groups=groups)})
    values = samples(status)
    labels = frozenset({("family", "ipv4"), ("group", "forward"), ("backend", name)})
    assert values["flanneld_masq_rules", labels] == 2
    assert values["flanneld_masq_build_info", frozenset({("version", name)})] == 1
