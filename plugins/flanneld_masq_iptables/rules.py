"""Rules in the language of iptables-restore, and the chains and jumps that they stand in. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from flanneld_masq.kernel import uapi
from flanneld_masq.model import (
    COMMENT_PREFIX,
    SLOTS,
    TAG_LENGTH,
    Blocker,
    Change,
    ChangeKind,
    Desired,
    FamilyLease,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Observation,
    Position,
    Rule,
    Verdict,
)
from flanneld_masq.ruleset import flannel_rules


@dataclass(frozen=True, **SLOTS)
class Place:
    """The place of a group of rules: the daemon's own chain, and the built-in chain with the one jump to it. `hook` is
    the hook of the built-in chain (NF_INET_*)."""

    table: str
    chain: str
    base: str
    hook: int

    @property
    def own(self) -> str:
        return f"{self.table} {self.chain}"

    @property
    def jump(self) -> str:
        return f"{self.table} {self.base}"


PLACES = {
    Group.MASQUERADE: Place("nat", "FLANNELD-MASQ", "POSTROUTING", uapi.NF_INET_POST_ROUTING),
    Group.FORWARD: Place("filter", "FLANNELD-MASQ-FWD", "FORWARD", uapi.NF_INET_FORWARD),
}
TAG = re.compile(COMMENT_PREFIX.encode() + b"[0-9a-f]{%d}(?![^\\0])" % TAG_LENGTH)  # in bytes of the kernel
RestoreLines = Callable[[Place, GroupRules], Sequence[str]]


@dataclass(frozen=True, **SLOTS)
class Jumps:
    """The jumps of one place that a write adds (lines of iptables-restore) and deletes. `before` is the handle of the
    foreign rule that a new jump goes right before; 0 for none."""

    new: tuple[str, ...] = ()
    stale: tuple[Item, ...] = ()
    before: int = 0


def rule_line(place: Place, rule: Rule) -> str:
    """Return a rule as iptables-save prints it: addresses, matches, target."""
    return " ".join(["-A", place.chain, *_matches(rule), *_comment(rule.comment), "-j", *_target(rule)])


def jump_line(place: Place, group: GroupRules) -> str:
    return " ".join(["-A", place.base, *_comment(group.jump_comment), "-j", place.chain])


def chain_text(place: Place) -> str:
    return f"chain {place.chain}"


def items(desired: Desired) -> tuple[Item, ...]:
    """Return the items of an observation of `desired`. The kernel's form of rules is not known beforehand."""
    return tuple(item for group in desired.groups for item in _group_items(group))


def restore_input(desired: Desired, jumps: RestoreLines) -> str:
    """Return the input of `iptables-restore --noflush`. A chain that it declares is replaced as a whole.

    `jumps` gives for each place the lines that correct its jump. Each table is one transaction.
    """
    return "".join(_table(group, jumps(PLACES[group.group], group)) for group in desired.groups)


def new_jump(place: Place, group: GroupRules, position: Position, blocker: Blocker | None = None) -> str:
    line = jump_line(place, group)
    if position is Position.AUTO and blocker is not None:
        return line.replace(f"-A {place.base}", f"-I {place.base} {blocker.number}", 1)
    return line.replace("-A ", "-I ", 1) if position is Position.FIRST else line


def is_cni_masquerade(target: str | None) -> bool:
    """Return True if a jump leads to a chain in which the CNI bridge plugin masquerades: "CNI-" and a hash."""
    return target is not None and target.startswith("CNI-") and not target.startswith("CNI-HOSTPORT")


def is_about_pods(source: str, leases: Iterable[FamilyLease]) -> bool:
    """Return True if a rule for packets from `source` (an address or a network, empty for anywhere) concerns pods of
    these leases. Rules for other networks of containers are none of the daemon's business."""
    try:
        network = ip_network(source, strict=False)
    except ValueError:  # anywhere, or a mask with holes
        return True
    return any(network.version == lease.subnet.version and network.overlaps(lease.subnet) for lease in leases)


def flannel_nat(items: Iterable[Item]) -> tuple[Item, ...]:
    """Return flannel's masquerade rules that packets reach, of all objects that flannel wrote."""
    place = PLACES[Group.MASQUERADE]
    chain = f"{place.table} {flannel_rules.CHAINS[Group.MASQUERADE]}"
    return tuple(flannel_rules.reached(place.jump, chain, items))


def digest(text: str) -> str:
    """Return the digest by which a foreign rule is recognised."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def jumps_to_replace(
    group: GroupRules, position: Position, observed: Observation, changes: Collection[Change]
) -> Jumps:
    """Return the new jump of a group, if it needs one, and the observed jumps that must go.

    The one jump that is as desired stays, unless it was moved. Of several equal jumps none stays: a tool that deletes
    by text takes the first of them, whichever was meant.
    """
    place = PLACES[group.group]
    jumps = [item for item in observed.items if item.kind is ItemKind.JUMP and item.place.startswith(f"{place.table} ")]
    moved = any(change.kind is ChangeKind.MOVED and change.place == place.jump for change in changes)
    desired = (place.jump, jump_line(place, group))
    right = [jump for jump in jumps if (jump.place, jump.text) == desired]
    kept = right[0] if len(right) == 1 and not moved else None
    stale = tuple(jump for jump in jumps if jump is not kept)
    if kept is not None:
        return Jumps((), stale)
    blockers = (around.blocker for around in observed.neighbours if around.place == place.jump)
    blocker = next(blockers, None) if position is Position.AUTO else None
    return Jumps((new_jump(place, group, position, blocker),), stale, 0 if blocker is None else blocker.handle)


def still_referenced(place: Place, table: str, listing: str) -> str:
    """Return why the daemon's chain cannot be removed. `listing` is a command that shows the cause."""
    return (
        f"chain {place.chain} in table {table} is empty now but stays, because a rule of another program jumps to it; "
        f"find it with `{listing}`"
    )


def _group_items(group: GroupRules) -> Iterator[Item]:
    place = PLACES[group.group]
    yield Item(ItemKind.CHAIN, place.own, chain_text(place), raw=chain_text(place))
    for rule in group.rules:
        yield Item(ItemKind.RULE, place.own, rule_line(place, rule), tag=rule.tag)
    yield Item(ItemKind.JUMP, place.jump, jump_line(place, group), tag=group.jump_tag)


def _table(group: GroupRules, jumps: Sequence[str]) -> str:
    place = PLACES[group.group]
    rules = [rule_line(place, rule) for rule in group.rules]
    return "\n".join([f"*{place.table}", f":{place.chain} - [0:0]", *rules, *jumps, "COMMIT", ""])


def _comment(text: str) -> tuple[str, ...]:
    return ("-m", "comment", "--comment", f'"{text}"')


def _matches(rule: Rule) -> Iterator[str]:
    if rule.src is not None:
        yield f"-s {rule.src}"
    if rule.dst is not None:
        yield f"-d {rule.dst}"
    if rule.dst_not is not None:
        yield f"! -d {rule.dst_not}"
    if rule.mark is not None:
        yield f"-m mark --mark {rule.mark}"
    if rule.invalid:
        yield "-m conntrack --ctstate INVALID"


def _target(rule: Rule) -> tuple[str, ...]:
    if rule.verdict is Verdict.MASQUERADE and rule.fully_random:
        return ("MASQUERADE", "--random-fully")
    return (rule.verdict.value.upper(),)
