"""Decides which tracked connections have another source address than the masquerade rules give them. Pure.

The kernel asks the rules once for each connection, at its first packet. A connection that began while they were missing
keeps the pod's address; one that began under other rules keeps what those gave it.
"""

from __future__ import annotations

from collections.abc import Collection

from flanneld_masq.model import Flow, Network, Packet, Rule, Verdict
from flanneld_masq.ruleset.policy import decide


def is_wrong(flow: Flow, rules: tuple[Rule, ...], subnets: Collection[Network]) -> bool:
    """Return True if a connection from a pod of this node has certainly the wrong source address.

    `rules` are the masquerade rules in force, `subnets` the pod subnets of this node. No connection keeps the mark that
    its first packet had. A connection without source NAT needs none to be sure: kube-proxy masquerades what it has
    marked, the rules masquerade the rest. With source NAT behind destination NAT it may be kube-proxy's own work, which
    is right.
    """
    if not any(flow.src in subnet for subnet in subnets):
        return False
    rule = decide(rules, Packet(flow.src, flow.dst))
    if rule is None or rule.mark is not None:
        return False
    if flow.source_nat:
        return rule.verdict is Verdict.RETURN and not flow.destination_nat
    return rule.verdict is Verdict.MASQUERADE
