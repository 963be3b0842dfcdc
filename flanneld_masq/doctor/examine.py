"""Examines the facts of a node: all findings, those of the whole node first. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.doctor import (
    bridge_checks,
    daemon_checks,
    flow_checks,
    network_checks,
    rule_checks,
    subnet_checks,
    tunnel_checks,
)
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding

_CHECKS = (
    daemon_checks.configuration,
    subnet_checks.unknown,
    subnet_checks.overlapping,
    subnet_checks.flannel_masquerades,
    daemon_checks.net_conf,
    daemon_checks.plugins,
    daemon_checks.running,
    daemon_checks.reported,
    daemon_checks.saved_rulesets,
    network_checks.conntrack,
    network_checks.unread,
    rule_checks.unread,
    bridge_checks.of_another_node,
    bridge_checks.prefix_length,
    bridge_checks.same_gateway,
    bridge_checks.mtu,
    bridge_checks.netfilter,
    network_checks.forwarding,
    network_checks.ipv6_disabled,
    network_checks.inside_pod_network,
    network_checks.led_elsewhere,
    network_checks.default_routes,
    tunnel_checks.down,
    tunnel_checks.without_address,
    tunnel_checks.local_address,
    tunnel_checks.mtu,
    tunnel_checks.leading_back,
    tunnel_checks.missing_routes,
    tunnel_checks.dropped,
)


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield each finding once. The packets of pods come last, for most of what happens to them has a known cause."""
    found = list(_found(facts))
    yield from found
    yield from flow_checks.flows(facts, found)


def examine_flows(facts: Facts) -> Iterator[Finding]:
    """Yield the findings on the subnet files and the packets of pods alone, for a node that was saved."""
    yield from subnet_checks.unknown(facts)
    yield from subnet_checks.overlapping(facts)
    yield from flow_checks.flows(facts, ())


def _found(facts: Facts) -> Iterator[Finding]:
    for check in _CHECKS:
        yield from check(facts)
    for family in facts.families:
        for check_family in rule_checks.OF_A_FAMILY:
            yield from check_family(facts, family)
