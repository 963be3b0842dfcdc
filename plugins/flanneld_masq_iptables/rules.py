"""Rules to the language of iptables-restore, and back to the names of what they stand in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from flanneld_masq.kernel import uapi
from flanneld_masq.model import (
    COMMENT_PREFIX,
    SLOTS,
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


@dataclass(frozen=True, **SLOTS)
class Place:
    """Where a group of rules lives: a chain of ours, reached by one jump from a built-in chain, that of a hook
    (NF_INET_*)."""

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
RestoreLines = Callable[[Place, "GroupRules"], "list[str]"]


def rule_line(place: Place, rule: Rule) -> str:
    """A rule as iptables-save prints it: addresses, matches, target."""
    return " ".join(["-A", place.chain, *_matches(rule), *_comment(rule.comment), "-j", *_target(rule)])


def jump_line(place: Place, group: GroupRules) -> str:
    return " ".join(["-A", place.base, *_comment(group.jump_comment), "-j", place.chain])


def chain_text(place: Place) -> str:
    return f"chain {place.chain}"


def items(desired: Desired) -> tuple[Item, ...]:
    """What an observation of `desired` holds. The kernel's form of rules is not known beforehand."""
    return tuple(item for group in desired.groups for item in _group_items(group))


def restore_input(desired: Desired, jumps: RestoreLines) -> str:
    """The input of `iptables-restore --noflush`: our chains declared, and so replaced whole.

    `jumps` says for each place which lines bring its jump in order; each table is one transaction.
    """
    return "".join(_table(group, jumps(PLACES[group.group], group)) for group in desired.groups)


def new_jump(place: Place, group: GroupRules, position: Position) -> str:
    line = jump_line(place, group)
    return line.replace("-A ", "-I ", 1) if position is Position.FIRST else line


def is_cni_masquerade(target: str | None) -> bool:
    """Whether a jump leads to a chain in which the CNI bridge plugin masquerades: "CNI-" and a hash."""
    return target is not None and target.startswith("CNI-") and not target.startswith("CNI-HOSTPORT")


def is_about_pods(source: str, leases: Iterable[FamilyLease]) -> bool:
    """Whether a rule for packets from there (an address or a network, empty for anywhere) is about pods of these
    leases. Other networks of containers may masquerade as they like."""
    try:
        network = ip_network(source, strict=False)
    except ValueError:  # anywhere, or a mask with holes
        return True
    return any(network.version == lease.subnet.version and network.overlaps(lease.subnet) for lease in leases)


def is_ours(comment: str) -> bool:
    return comment.startswith(COMMENT_PREFIX)


def tag_of(comment: str) -> str:
    return comment[len(COMMENT_PREFIX) :] if is_ours(comment) else ""


def jumps_to_replace(
    place: Place, group: GroupRules, observed: Observation, changes: Collection[Change]
) -> tuple[bool, tuple[Item, ...]]:
    """Whether a new jump is needed, and which of those observed must go.

    The one jump that is as wanted stays, unless it was moved. Of several like it none stays: a tool that deletes
    by text takes the first of them, whichever was meant.
    """
    found = [item for item in observed.items if item.kind is ItemKind.JUMP and item.place.startswith(f"{place.table} ")]
    moved = any(change.kind is ChangeKind.MOVED and change.place == place.jump for change in changes)
    wanted = (place.jump, jump_line(place, group))
    right = [item for item in found if (item.place, item.text) == wanted]
    kept = right[0] if len(right) == 1 and not moved else None
    return kept is None, tuple(item for item in found if item is not kept)


def still_referenced(place: Place, table: str, listing: str) -> str:
    """What keeps our chain from being removed. `listing` is a command that shows it."""
    return (
        f"chain {place.chain} in table {table} is empty now but stays, because a rule that is not ours jumps to it; "
        f"find it with `{listing}`"
    )


def _group_items(group: GroupRules) -> Iterator[Item]:
    place = PLACES[group.group]
    yield Item(ItemKind.CHAIN, place.own, chain_text(place), raw=chain_text(place))
    for rule in group.rules:
        yield Item(ItemKind.RULE, place.own, rule_line(place, rule), tag=rule.tag)
    yield Item(ItemKind.JUMP, place.jump, jump_line(place, group), tag=group.jump_tag)


def _table(group: GroupRules, jumps: list[str]) -> str:
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


def _target(rule: Rule) -> tuple[str, ...]:
    if rule.verdict is Verdict.MASQUERADE and rule.fully_random:
        return ("MASQUERADE", "--random-fully")
    return (rule.verdict.value.upper(),)
