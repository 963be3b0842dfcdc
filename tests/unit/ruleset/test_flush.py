"""A flush leaves a base chain empty. A single deleted rule, or a flush of the daemon's chain, is none."""

from __future__ import annotations

import pytest

from flanneld_masq.model import (
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Rule,
    Verdict,
    VerifiedState,
)
from flanneld_masq.ruleset import flush

GROUPS = (Group.MASQUERADE, Group.FORWARD)
DESIRED = Desired(
    Family.IPV4,
    tuple(GroupRules(group, (Rule("1", "", Verdict.ACCEPT, tag=f"{group}1"),), f"{group}0") for group in GROUPS),
)


def base(group: Group) -> str:
    return f"table-{group} BASE"


def items(group: Group) -> tuple[Item, ...]:
    own = f"table-{group} OWN"
    return (
        Item(ItemKind.CHAIN, own, "chain"),
        Item(ItemKind.RULE, own, "rule", tag=f"{group}1"),
        Item(ItemKind.JUMP, base(group), "jump", tag=f"{group}0"),
    )


WANTED = tuple(item for group in GROUPS for item in items(group))
MASQUERADE = items(Group.MASQUERADE)


def found(left: tuple[Item, ...], foreign: int = 0, before: int = 0) -> frozenset[Group]:
    """The flushed groups if `left` is left of the masquerade group, and so many foreign rules of `before`."""
    place = base(Group.MASQUERADE)
    observed = Observation((*left, *items(Group.FORWARD)), (Neighbours(place, ("x",) * foreign),))
    verified = VerifiedState("", WANTED, (Neighbours(place, (), ("x",) * before),))
    return flush.find(WANTED, DESIRED, verified, observed, ()).flushed


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("left", [(), MASQUERADE[:1]], ids=["chain deleted", "chain empty"])
def test_all_rules_gone_is_a_flush(left: tuple[Item, ...], before: int) -> None:
    assert found(left, 0, before) == {Group.MASQUERADE}


def test_flush_of_a_base_chain_with_foreign_rules_is_one() -> None:
    assert found(MASQUERADE[:2], 0, 2) == {Group.MASQUERADE}


@pytest.mark.parametrize("left", [MASQUERADE[:2], MASQUERADE[::2], MASQUERADE[1:], (MASQUERADE[2],)])
def test_single_objects_that_are_gone_are_none(left: tuple[Item, ...]) -> None:
    assert not found(left)


def test_foreign_rules_that_are_left_show_another_change() -> None:
    """A load of a saved ruleset, for example, which is over."""
    assert not found((), 1, 2)


def test_a_backend_without_jumps_is_never_flushed() -> None:
    wanted = tuple(item for item in WANTED if item.kind is not ItemKind.JUMP)
    assert not flush.find(wanted, DESIRED, None, Observation(), ()).flushed


def test_both_groups_can_be_flushed_without_a_verified_state() -> None:
    seen = flush.find(WANTED, DESIRED, None, Observation(MASQUERADE[:1]), ())
    assert seen.flushed == {Group.MASQUERADE, Group.FORWARD}
    assert seen.left == MASQUERADE[:1]


def test_whole_is_a_flush_that_left_no_rule_in_any_of_its_tables() -> None:
    def whole(*bare: Group) -> bool:
        neighbours = tuple(Neighbours(base(group), bare=group in bare) for group in GROUPS)
        return flush.find(WANTED, DESIRED, None, Observation((), neighbours), ()).whole

    assert whole(*GROUPS)
    assert not whole(Group.MASQUERADE)
    assert not flush.find(WANTED, DESIRED, None, Observation(WANTED), ()).whole
