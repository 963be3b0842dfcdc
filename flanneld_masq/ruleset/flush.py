"""Recognises a flush by another program, which may still be at it. Pure.

`iptables -F` deletes the rules of every chain of a table. `iptables -X` comes next, and fails if a jump to one of the
chains is back by then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from flanneld_masq.model import SLOTS, Change, Desired, Group, GroupRules, Item, ItemKind, Observation, VerifiedState


class FlushPolicy(enum.Enum):
    """The treatment of a flush by a pass. WAIT and FORWARD_WAITS apply to every drift: a flush is under way."""

    REPAIR = "repair everything"
    REPORT = "report a flush before anything is written"
    WAIT = "report, and write nothing"
    FORWARD_WAITS = "repair the masquerade group, then report"


@dataclass(frozen=True, **SLOTS)
class Flush:
    """`flushed` groups have lost all rules and their jump, or the jump and all foreign rules around it. `broken` ones
    are not as desired. `whole` is True if no rule is left in the tables of the flushed ones. `left` are the daemon's
    items that are left."""

    flushed: frozenset[Group]
    broken: frozenset[Group]
    left: tuple[Item, ...]
    whole: bool = False


def find(
    wanted: tuple[Item, ...],
    desired: Desired,
    verified_state: VerifiedState | None,
    observed: Observation,
    changes: tuple[Change, ...],
) -> Flush:
    """Return which groups another program flushed. `wanted` are the items of `desired`; `changes` are the differences
    between them and `observed`."""
    flushed = [group for group in desired.groups if _is_flushed(group, wanted, verified_state, observed)]
    changed = {change.place for change in changes}
    broken = [group for group in desired.groups if any(item.place in changed for item in items_of(group, wanted))]
    bases = {item.place for group in flushed for item in items_of(group, wanted) if item.kind is ItemKind.JUMP}
    whole = bool(bases) and all(around.bare for around in observed.neighbours if around.place in bases)
    return Flush(frozenset(one.group for one in flushed), frozenset(one.group for one in broken), observed.items, whole)


def items_of(group: GroupRules, wanted: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the items of one group among those of all."""
    tags = {group.jump_tag, *(rule.tag for rule in group.rules)}
    places = {item.place for item in wanted if item.kind is ItemKind.RULE and item.tag in tags}
    return tuple(item for item in wanted if item.tag in tags or item.place in places)


def _is_flushed(
    group: GroupRules, wanted: tuple[Item, ...], verified_state: VerifiedState | None, observed: Observation
) -> bool:
    """Return True if the base chain is empty now. If it held no foreign rule before, the daemon's chain must be too."""
    items = items_of(group, wanted)
    base = next((item.place for item in items if item.kind is ItemKind.JUMP), None)
    if base is None or any(item.place == base for item in observed.items):
        return False
    if any(around.before or around.after for around in observed.neighbours if around.place == base):
        return False
    known = verified_state.neighbours if verified_state is not None else ()
    alone = not any(around.before or around.after for around in known if around.place == base)
    own = {item.place for item in items if item.kind is ItemKind.RULE}
    left = any(item.kind is ItemKind.RULE and item.place in own for item in observed.items)
    return not (left and alone)
