"""Evaluates flannel's masquerade rules, as they were read, beside the policy. Pure.

A packet is masqueraded if flannel's rules say so or the policy does: a `return` of one does not keep the other from
masquerading. So flannel's rules take effect only where they masquerade what the policy leaves alone. Packets with a
mark are left out: what kube-proxy marks, it masquerades itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Optional

from flanneld_masq.model import (
    SLOTS,
    Address,
    Family,
    Group,
    Item,
    Lease,
    Network,
    Packet,
    Rule,
    Settings,
    Verdict,
    family_of,
)
from flanneld_masq.printable import printable
from flanneld_masq.ruleset import policy

MAX_DESTINATIONS = 400  # of packets; a policy with more exceptions is compared on the first ones
_VERDICTS = {
    "RETURN": Verdict.RETURN,
    "return": Verdict.RETURN,
    "ACCEPT": Verdict.ACCEPT,
    "accept": Verdict.ACCEPT,
    "MASQUERADE": Verdict.MASQUERADE,
    "masquerade": Verdict.MASQUERADE,
}
_COMMENT = re.compile(r' comment "[^"]*"$')
_MARK = re.compile(r"meta mark (?:& (?P<mask>0x[0-9a-f]+) )?(?P<operator>==|!=)? ?(?P<value>0x[0-9a-f]+)")
_ADDRESS = re.compile(r"ip6? (?P<field>[sd])addr (?P<negated>!= )?(?P<network>[0-9a-f.:/]+)")
_RANDOM = frozenset({"--random-fully", "--random", "random", "fully-random", "random,fully-random"})


@dataclass(frozen=True, **SLOTS)
class FlannelRule:
    """A rule of flannel, as a packet without a mark meets it."""

    item: Item
    verdict: Verdict
    src: Optional[Network] = None
    dst: Optional[Network] = None
    src_not: bool = False
    dst_not: bool = False

    def matches(self, packet: Packet) -> bool:
        if self.src is not None and (packet.src in self.src) is self.src_not:
            return False
        return self.dst is None or (packet.dst in self.dst) is not self.dst_not

    def __str__(self) -> str:
        return f"{printable(self.item.text)} ({self.item.place})"


@dataclass(frozen=True, **SLOTS)
class Conflict:
    """Flannel's `rule` masquerades `packets`, whose source address the policy keeps. `setting` is what has no effect
    because of that; empty if no setting asks for it."""

    rule: FlannelRule
    packets: str
    setting: str = ""

    @property
    def what(self) -> str:
        what = f"{self.packets} get the node's address, because flannel masquerades too"
        return f"{self.setting} has no effect: {what}" if self.setting else what

    def __str__(self) -> str:
        return f"{self.what}; flannel's rule that decides: {self.rule}"


@dataclass(frozen=True, **SLOTS)
class Effect:
    """The effect of flannel's rules beside the policy.

    `rules` counts them. `conflicts` are packets that they masquerade and the policy does not. `weaker` is True if they
    leave alone what the policy masquerades, which has no effect. `unread` are rules that cannot be evaluated.
    """

    rules: int = 0
    conflicts: tuple[Conflict, ...] = ()
    weaker: bool = False
    unread: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return bool(self.rules) and not (self.conflicts or self.weaker or self.unread)

    def summaries(self) -> Iterator[str]:
        """Yield what is worth reporting: each conflict, and otherwise how the rules relate to the policy."""
        yield from map(str, self.conflicts)
        for rule in self.unread:
            yield f"flannel's rules cannot be compared with the policy, because this one cannot be evaluated: {rule}"
        if self.rules and not self.conflicts and not self.unread:
            yield self.relation

    @property
    def relation(self) -> str:
        """Say how the rules relate to a policy that they do not break."""
        if self.weaker:
            return "flannel's rules masquerade less than the policy, which is harmless: the daemon's rules do the rest"
        return f"flannel's {self.rules} masquerade rules were read and agree with the policy"


def evaluate(
    items: Iterable[Item],
    settings: Settings,
    leases: tuple[Lease, ...],
    family: Family,
    exceptions: tuple[Network, ...] = (),
) -> Effect:
    """Compare flannel's rules, in the order in which packets meet them, with the policy."""
    flannel, unread = parsed(items)
    groups = policy.group_rules(settings, leases, family, exceptions=exceptions)
    rules = policy.rules_of(groups, Group.MASQUERADE)
    conflicts: dict[tuple[str, FlannelRule], Conflict] = {}  # a setting with many networks is reported once
    weaker = False
    for packet in _packets(flannel, rules, leases, family) if flannel else ():
        rule, ours = decide(flannel, packet), policy.decide(rules, packet)
        masqueraded = rule is not None and rule.verdict is Verdict.MASQUERADE
        kept = ours is None or ours.verdict is not Verdict.MASQUERADE
        weaker = weaker or not (kept or masqueraded)
        if rule is not None and masqueraded and kept:
            conflict = _conflict(rule, ours, settings, leases, packet)
            conflicts.setdefault((conflict.setting or conflict.packets, rule), conflict)
    return Effect(len(flannel) + len(unread), tuple(conflicts.values()), weaker, unread)


def decide(rules: Iterable[FlannelRule], packet: Packet) -> FlannelRule | None:
    """Return the first rule that matches, which decides; None if no rule does."""
    return next((rule for rule in rules if rule.matches(packet)), None)


def parsed(items: Iterable[Item]) -> tuple[tuple[FlannelRule, ...], tuple[str, ...]]:
    """Return the rules that a packet without a mark can match, and the text of those that cannot be evaluated."""
    rules, unread = [], []
    for item in items:
        try:
            rule = _iptables(item) if item.text.startswith("-A ") else _nft(item)
        except ValueError:
            unread.append(printable(item.text))
        else:
            rules += [rule] if rule is not None else []
    return tuple(rules), tuple(unread)


def _iptables(item: Item) -> FlannelRule | None:
    """Parse a line of iptables-save. Return None for a rule that no packet without a mark matches."""
    words = shlex.split(item.text)[2:]
    sides: dict[str, tuple[Network, bool]] = {}
    verdict: Verdict | None = None
    negated = False
    matches = True
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in _RANDOM:
            continue
        value = words.pop(0) if words else ""
        if word in ("-s", "-d"):
            sides[word[1]] = (ip_network(value), negated)
        elif word == "--mark":
            matches = matches and _unmarked(value, negated)
        elif word == "-j":
            verdict = _verdict(value)
        elif word not in ("-m", "--comment") or (word == "-m" and value not in ("comment", "mark")):
            raise ValueError(word)
        negated = False
    return _rule(item, verdict, sides) if matches else None


def _nft(item: Item) -> FlannelRule | None:
    """Parse a rule as `kernel.expressions.describe` writes it."""
    text = _COMMENT.sub("", item.text)
    sides: dict[str, tuple[Network, bool]] = {}
    matches = True
    while text:
        address, mark = _ADDRESS.match(text), _MARK.match(text)
        match = address or mark
        if match is None:
            break
        if address:
            sides[address["field"]] = (ip_network(address["network"]), bool(address["negated"]))
        elif mark:
            value = f"{mark['value']}/{mark['mask'] or hex(2**32 - 1)}"
            matches = matches and _unmarked(value, mark["operator"] == "!=")
        text = text[match.end() :].lstrip()
    name, *options = text.split() or [""]
    if not _RANDOM.issuperset(options):
        raise ValueError(text)
    verdict = _verdict(name)
    return _rule(item, verdict, sides) if matches else None


def _verdict(name: str) -> Verdict:
    if name not in _VERDICTS:
        raise ValueError(name)
    return _VERDICTS[name]


def _unmarked(value_and_mask: str, negated: bool) -> bool:
    """Return True if a packet without a mark passes the test."""
    value, _, _ = value_and_mask.partition("/")
    return (int(value, 0) == 0) is not negated


def _rule(item: Item, verdict: Verdict | None, sides: dict[str, tuple[Network, bool]]) -> FlannelRule:
    if verdict is None:
        raise ValueError("no target")
    src, src_not = sides.get("s", (None, False))
    dst, dst_not = sides.get("d", (None, False))
    return FlannelRule(item, verdict, src, dst, src_not, dst_not)


def _packets(
    flannel: tuple[FlannelRule, ...], rules: tuple[Rule, ...], leases: tuple[Lease, ...], family: Family
) -> Iterator[Packet]:
    """Yield one packet of pods of every kind that the rules can tell apart.

    Networks are intervals of addresses, so it is enough to take the first address of each and the one behind its last.
    """
    leases_here = [lease for one in leases if (lease := one.of(family))]
    networks = [network for lease in leases_here for network in lease.networks]
    pods = [*networks, *(lease.subnet for lease in leases_here)]
    # what flannel keeps for other networks than the leases' concerns other pods
    own = (rule.src for rule in flannel if any(rule.src and rule.src.overlaps(network) for network in networks))
    sources = (*own, *(rule.src for rule in rules))
    destinations = (*(rule.dst for rule in flannel), *(net for rule in rules for net in (rule.dst, rule.dst_not)))
    edges = _edges((*pods, *_present(destinations)), family)[:MAX_DESTINATIONS]
    for src in _edges((*pods, *_present(sources)), family):
        from_pod = any(src in network for network in networks)
        for dst in edges:
            if from_pod or any(dst in network for network in networks):
                yield Packet(src, dst)


def _present(networks: Iterable[Optional[Network]]) -> Iterator[Network]:
    return (network for network in networks if network is not None)


def _edges(networks: Iterable[Network], family: Family) -> tuple[Address, ...]:
    address = IPv4Address if family is Family.IPV4 else IPv6Address
    found: dict[int, None] = {}
    for network in networks:
        if family_of(network) is family:
            first = int(network.network_address)
            found.update({first: None, first + network.num_addresses: None})
    found[0] = None
    return tuple(address(number) for number in found if number < 1 << family.data.width)


def _conflict(
    rule: FlannelRule, ours: Rule | None, settings: Settings, leases: tuple[Lease, ...], packet: Packet
) -> Conflict:
    masquerade, family = settings.masquerade, family_of(packet.src)
    if ours is not None and ours.row == "4":
        return Conflict(rule, f"packets from pods to {ours.dst}", "masquerade.non_masquerade_cidrs")
    if ours is not None and ours.row == "5":
        return Conflict(rule, f"packets from pods to {ours.dst}", "masquerade.masquerade_link_local = false")
    if ours is not None:
        packets = "packets from pods of this node to pods" if ours.row == "2" else "packets to pods of this node"
        return Conflict(rule, packets)
    if not masquerade.enabled:
        return Conflict(rule, "packets of pods", "masquerade.enabled = false")
    if not policy.masquerades(masquerade, family):
        return Conflict(rule, f"{family} packets of pods", "masquerade.families")
    networks = [network for one in leases if (lease := one.of(family)) for network in lease.networks]
    if any(packet.dst in network for network in networks):
        return Conflict(rule, "packets to pods of other nodes", "masquerade.to_remote_pods = false")
    return Conflict(rule, f"packets such as {packet.src} to {packet.dst}")
