"""Examines the facts of a node: all findings, those of the whole node first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
from flanneld_masq.doctor.findings import Finding, Kind

_CHECKS = (
    daemon_checks.configuration,
    subnet_checks.flannel_masquerades,
    daemon_checks.net_conf,
    daemon_checks.plugins,
    daemon_checks.running,
    daemon_checks.reported,
    daemon_checks.saved_rulesets,
    rule_checks.unread,
    rule_checks.not_followed,
    bridge_checks.netfilter,
)
_OF_NETWORK = (  # their facts are subnet files, interfaces, routes, switches and packets, which can be saved
    subnet_checks.unknown,
    subnet_checks.overlapping,
    network_checks.conntrack,
    network_checks.unread,
    bridge_checks.of_another_node,
    bridge_checks.prefix_length,
    bridge_checks.same_gateway,
    bridge_checks.mtu,
    bridge_checks.hairpin,
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
_OF_KERNEL = {  # what all other checks find
    Kind.BACKEND_UNUSABLE,
    Kind.BRIDGE_NETFILTER_MISSING,
    Kind.BRIDGE_NETFILTER_OFF,
    Kind.CNI_MASQUERADES,
    Kind.CONFIGURATION_INVALID,
    Kind.DAEMON_CONTENDED,
    Kind.DAEMON_DEGRADED,
    Kind.DAEMON_NOT_RUNNING,
    Kind.DAEMON_TROUBLE,
    Kind.DAEMON_UNKNOWN,
    Kind.FLANNEL_MASQUERADES,
    Kind.FLANNEL_OVERRULES,
    Kind.FLANNEL_RULES,
    Kind.FLANNEL_RULES_RETURN,
    Kind.FORWARD_DROPS,
    Kind.FORWARD_DROPS_UNHELPED,
    Kind.IPTABLES_FLAVOURS_MIXED,
    Kind.KUBE_PROXY_KEEPS_MARK,
    Kind.KUBE_PROXY_MARK_DIFFERS,
    Kind.KUBE_PROXY_MARK_UNUSUAL,
    Kind.NET_CONF_UNUSABLE,
    Kind.PLUGIN_FAILED,
    Kind.RULES_DIFFER,
    Kind.RULES_NOT_FOLLOWED,
    Kind.RULES_UNREADABLE,
    Kind.RULES_WITHOUT_SUBNET,
    Kind.SAVED_RULESET,
    Kind.SERVICE_CANNOT_READ,
    Kind.SERVICE_FAILED,
}


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield each finding once. The packets of pods come last, for most of what happens to them has a known cause."""
    found = list(_found(facts))
    yield from found
    yield from flow_checks.flows(facts, found)


def examine_saved(facts: Facts, said: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings on a node that was saved. Facts that the snapshot lacks come from the findings that doctor
    `said` there: on the daemon, its service, its rules, and those of flannel and kube-proxy."""
    found = [one for check in _OF_NETWORK for one in check(facts)]
    found += [one for one in said if one.kind in _OF_KERNEL]
    yield from found
    yield from flow_checks.flows(facts, found)


def _found(facts: Facts) -> Iterator[Finding]:
    for check in (*_CHECKS, *_OF_NETWORK):
        yield from check(facts)
    for family in facts.families:
        for check_family in rule_checks.OF_A_FAMILY:
            yield from check_family(facts, family)
