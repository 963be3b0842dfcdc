"""Compares the desired items with the observed ones and returns the differences. Pure.

With a verified state of the same rules the comparison is exact: every deviation of the kernel is a difference.
Without one nothing in the kernel counts as verified, and everything must be written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import zip_longest

from flanneld_masq.model import (
    Change,
    ChangeKind,
    Desired,
    Group,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Plan,
    Position,
    VerifiedState,
)

MAX_DIFF_LINES = 200  # another program may have put any number of rules into the daemon's chains
_CACHED = 16  # desired states; nearly every pass has the same one as the pass before


def fingerprint(wanted: tuple[Item, ...], desired: Desired) -> str:
    """Return a digest that is equal exactly if the same rules are wanted at the same positions."""
    return _fingerprint(wanted, desired.position, desired.forward_position)


@lru_cache(_CACHED)
def _fingerprint(wanted: tuple[Item, ...], *positions: Position) -> str:
    lines = [*(position.value for position in positions)]
    lines += [f"{item.kind} {item.place} {item.text}" for item in wanted]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def differences(
    wanted: tuple[Item, ...], desired: Desired, verified_state: VerifiedState | None, observed: Observation
) -> tuple[Change, ...]:
    """Return what a reconcile would change, in the order of the kernel's objects; empty if nothing differs.

    `wanted` are the items of `desired`.
    """
    if not wanted:
        return tuple(Change(ChangeKind.EXTRA, item.place, found=item.text, item=item.kind) for item in observed.items)
    if (
        verified_state is None
        or verified_state.fingerprint != fingerprint(wanted, desired)
        or len(verified_state.items) != len(wanted)
    ):
        changes = tuple(_changes_by(_tag, wanted, observed.items))
        return (changes + tuple(moved(_forward(wanted, desired), desired, (), observed))) or tuple(_unverified(wanted))
    moves = tuple(moved(_forward(wanted, desired), desired, verified_state.neighbours, observed))
    if list(map(_identity_now, verified_state.items)) == list(map(_identity_now, observed.items)):
        return moves
    reference = tuple(_worded(item, desired_item.text) for item, desired_item in zip(verified_state.items, wanted))
    held = _translated(observed.items, reference)
    return (*_changes_by(_raw, reference, held), *moves)


def moved(
    forward: str, desired: Desired, verified_state: tuple[Neighbours, ...], observed: Observation
) -> Iterator[Change]:
    """Yield the daemon's jumps that do not stand where their position requires. `forward` is the place of the jump to
    the forward group; empty for none."""
    remembered = {around.place: around for around in verified_state}
    jumps = {item.place for item in observed.items if item.kind is ItemKind.JUMP}
    for around in observed.neighbours:
        if around.place not in jumps:  # one that is missing is written at the right place anyway
            continue
        if around.place == forward:
            yield from _misplaced(desired.forward_position, around)
        elif desired.position is Position.FIRST:
            yield from _misplaced(Position.FIRST, around)
        else:
            yield from _overtaken(remembered.get(around.place, Neighbours(around.place)), around)


def _misplaced(position: Position, around: Neighbours) -> Iterator[Change]:
    """Yield a jump that does not stand exactly where it belongs, whichever rule came first."""
    ahead, others = len(around.before), len(around.before) + len(around.after)
    right, where = others, "the daemon's jump after all other rules"
    if position is Position.FIRST:
        right, where = 0, "the daemon's jump before all other rules"
    elif position is Position.AUTO and around.blocker is not None:
        right, where = around.blocker.index, "the daemon's jump directly before the first rule that drops every packet"
    if ahead > right:
        yield Change(
            ChangeKind.MOVED, around.place, where, f"the daemon's jump after {_others(ahead - right)}", ItemKind.JUMP
        )
    elif ahead < right:
        yield Change(
            ChangeKind.MOVED, around.place, where, f"the daemon's jump before {_others(right - ahead)}", ItemKind.JUMP
        )


def _overtaken(then: Neighbours, now: Neighbours) -> Iterator[Change]:
    """Yield a jump that is before a rule that it was written after. Other programs may append rules later, and move
    their own rules after it."""
    passed = _passed(then, now)
    if passed:
        where = f"the daemon's jump before {len(passed)} of the rules that it came after"
        yield Change(
            ChangeKind.MOVED, now.place, "the daemon's jump after the rules that were there first", where, ItemKind.JUMP
        )


def _forward(wanted: tuple[Item, ...], desired: Desired) -> str:
    """Return the place of the jump to the forward group; empty for none."""
    group = desired.rules_of(Group.FORWARD)
    jumps = (item.place for item in wanted if item.kind is ItemKind.JUMP and group and item.tag == group.jump_tag)
    return next(jumps, "")


def _passed(then: Neighbours, now: Neighbours) -> frozenset[str]:
    """Return the rules that the daemon's jump was behind and now stands before, because it was moved.

    A jump with a handle was moved if the handle is another one. Without handles, rules that end the chain may have been
    deleted and appended again by their owner, as flannel does: then they count from zero. A rule that has kept its
    count was overtaken.
    """
    passed = frozenset(then.before) & frozenset(now.after) - frozenset(now.before)
    if not passed or (then.jump != 0 and then.jump == now.jump):
        return frozenset()
    if now.jump or not now.hits or frozenset(now.after[-len(passed) :]) != passed:
        return passed
    counted = dict(zip((*then.before, *then.after), then.hits))
    hits = zip((*now.before, *now.after), now.hits)
    return frozenset(rule for rule, count in hits if rule in passed and 0 < counted.get(rule, 0) <= count)


def unmet(wanted: tuple[Item, ...], observed: Observation) -> str:
    """Return what is wrong with the read-back of a write; empty if it holds the wanted items, with their tags, in
    their order."""
    pairs = zip_longest(map(_identity, wanted), map(_identity, observed.items))
    for index, (expected, actual) in enumerate(pairs):
        if expected != actual:
            return f"object {index + 1} should be {expected or 'none'} and is {actual or 'none'}"
    return ""


def verified_state_of(wanted: tuple[Item, ...], desired: Desired, observed: Observation) -> VerifiedState:
    """Make the verified state of an observation that was read back right after the daemon's own write."""
    neighbours = tuple(replace(around, blocker=None) for around in observed.neighbours)  # never compared with a new one
    return VerifiedState(fingerprint(wanted, desired), observed.items, neighbours)


def text_of(plan: Plan) -> Iterator[str]:
    """Yield the lines of a diff for people: what the kernel holds and should not (-), what it lacks (+)."""
    place = ""
    for change in plan.changes:
        if change.place != place:
            place = change.place
            yield f"@@ {plan.family} {plan.backend}: {place} @@"
        yield f"# {change.kind}"
        if change.kind is ChangeKind.UNVERIFIED:
            yield f"  {change.found}"
            continue
        if change.found:
            yield f"- {change.found}"
        if change.wanted:
            yield f"+ {change.wanted}"


def diff_text(plan: Plan) -> str:
    """Return the lines of `text_of` as one text, at most MAX_DIFF_LINES of them and the number of those left out."""
    lines = list(text_of(plan))
    left_out = len(lines) - MAX_DIFF_LINES
    more = [f"({left_out} more lines)"] if left_out > 0 else []
    return "\n".join([*lines[:MAX_DIFF_LINES], *more])


def _others(count: int) -> str:
    return f"{count} other rule{'' if count == 1 else 's'}"


def _identity(item: Item | None) -> str:
    return "" if item is None else f"{item.kind} {item.tag or item.text} in {item.place}"


def _identity_now(item: Item) -> tuple[str, str, str]:
    return (item.place, item.kind, item.raw)


def _raw(item: Item) -> str:
    return f"{item.kind} {item.raw}"


def _tag(item: Item) -> str:
    return f"{item.kind} {item.tag or item.raw or item.text}"


def _unverified(wanted: tuple[Item, ...]) -> Iterator[Change]:
    """Yield a change for each chain: all tags are right, but without a verified state that proves nothing."""
    heads = [item for item in wanted if item.kind is ItemKind.CHAIN] or wanted[:1]
    return (Change(ChangeKind.UNVERIFIED, item.place, item.text, item.text, item.kind) for item in heads)


def _translated(observed: tuple[Item, ...], reference: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return the observed items; an item whose bytes are known gets the text of the desired one."""
    words = {_raw(item): item.text for item in reference}
    return tuple(_worded(item, words.get(_raw(item), item.text)) for item in observed)


def _worded(item: Item, text: str) -> Item:
    return item if item.text == text else replace(item, text=text)


def _changes_by(
    key: Callable[[Item], str], reference: tuple[Item, ...], observed: tuple[Item, ...]
) -> Iterator[Change]:
    for place in dict.fromkeys(item.place for item in (*reference, *observed)):
        wanted = [item for item in reference if item.place == place]
        held = [item for item in observed if item.place == place]
        wanted_keys, held_keys = list(map(key, wanted)), list(map(key, held))
        if wanted_keys == held_keys:
            continue
        matcher = SequenceMatcher(None, wanted_keys, held_keys, autojunk=False)
        for operation, left, left_end, right, right_end in matcher.get_opcodes():
            if operation != "equal":
                yield from _changes(wanted[left:left_end], held[right:right_end])


def _changes(wanted: list[Item], held: list[Item]) -> Iterator[Change]:
    for expected, actual in zip_longest(wanted, held):
        if expected is None:
            yield Change(ChangeKind.EXTRA, actual.place, found=actual.text, item=actual.kind)
        elif actual is None:
            yield Change(ChangeKind.MISSING, expected.place, wanted=expected.text, item=expected.kind)
        else:
            yield Change(ChangeKind.CHANGED, expected.place, expected.text, actual.text, expected.kind)
