"""Knows the rules that flannel itself writes into the kernel, in each of its generations. Pure.

Sources: flannel's pkg/trafficmngr/iptables and nftables; before release 0.20 its network/iptables.go and
pkg/iptables wrote flat rules into POSTROUTING and FORWARD, before 0.17 without a comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS, Family, FamilyLease, Group, Item, ItemKind, Network

CHAINS = {Group.MASQUERADE: "FLANNEL-POSTRTG", Group.FORWARD: "FLANNEL-FWD"}
COMMENTS = {Group.MASQUERADE: "flanneld masq", Group.FORWARD: "flanneld forward"}
# the options that keep flanneld from writing rules to these tables of iptables
FLAGS = {"nat": "--ip-masq=false", "filter": "--iptables-forward-rules=false"}
NFT_CHAIN = "postrtg"  # the one that masquerades, in these tables
TABLES = {Family.IPV4: "flannel-ipv4", Family.IPV6: "flannel-ipv6"}


@dataclass(frozen=True, **SLOTS)
class FlatRule:
    """A rule of an old release. `src` and `dst` may each be negated."""

    target: str
    src: Optional[Network] = None
    dst: Optional[Network] = None
    src_not: bool = False
    dst_not: bool = False

    def iptables(self) -> str:
        """Return the matches and the target as iptables-save prints them."""
        parts = [_iptables(letter, value, inverted) for letter, value, inverted in self._sides("-s", "-d")]
        return " ".join([*parts, "-j", self.target])

    def nft(self, family: Family) -> str:
        """Return the rule as `expressions.describe` writes it."""
        sides = self._sides("saddr", "daddr")
        parts = [f"{family.data.nft} {field} {'!= ' if inverted else ''}{value}" for field, value, inverted in sides]
        return " ".join([*parts, _NFT_TARGETS[self.target]])

    def _sides(self, source: str, destination: str) -> Iterator[tuple[str, Network, bool]]:
        if self.src is not None:
            yield source, self.src, self.src_not
        if self.dst is not None:
            yield destination, self.dst, self.dst_not


_NFT_TARGETS = {
    "RETURN": "return",
    "ACCEPT": "accept",
    "MASQUERADE": "masquerade",
    "MASQUERADE --random-fully": "masquerade fully-random",
}


def reached(base: str, chain: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield flannel's rules of the place `base` in order, with those of the place `chain` where a rule jumps to it."""
    items = tuple(items)
    rules = [item for item in items if item.kind is ItemKind.RULE]
    for item in (item for item in rules if item.place == base):
        if chain.split()[-1] in item.text.split():
            yield from (inner for inner in rules if inner.place == chain)
        else:
            yield item


def flat_rules(group: Group, family: Family, lease: FamilyLease) -> tuple[FlatRule, ...]:
    """Return the rules without a comment that releases before 0.17 wrote for this lease."""
    return tuple(rule for network in lease.networks for rule in _flat(group, family, network, lease.subnet))


def _flat(group: Group, family: Family, network: Network, subnet: Network) -> Iterator[FlatRule]:
    if group is Group.FORWARD:
        yield FlatRule("ACCEPT", src=network)
        yield FlatRule("ACCEPT", dst=network)
        return
    for source, destination in ((network, network), (subnet, network), (network, subnet)):
        yield FlatRule("RETURN", src=source, dst=destination)
    yield FlatRule("RETURN", src=network, dst=subnet, src_not=True)
    for target in ("MASQUERADE", "MASQUERADE --random-fully"):
        yield FlatRule(target, src=network, dst=family.data.multicast, dst_not=True)
        yield FlatRule(target, src=network, dst=network, src_not=True)


def _iptables(option: str, value: Network, inverted: bool) -> str:
    return f"{'! ' if inverted else ''}{option} {value}"
