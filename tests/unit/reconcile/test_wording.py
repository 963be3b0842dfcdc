"""Changes in plain words."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.model import Change, ChangeKind, ItemKind
from flanneld_masq.reconcile.wording import describe

TABLE, CHAIN, RULE, JUMP = ItemKind.TABLE, ItemKind.CHAIN, ItemKind.RULE, ItemKind.JUMP
KINDS = {
    ChangeKind.MISSING: "missing",
    ChangeKind.EXTRA: "not wanted",
    ChangeKind.CHANGED: "changed",
    ChangeKind.MOVED: "moved",
    ChangeKind.UNVERIFIED: "not verified",
    ChangeKind.FLANNEL: "flannel's",
}
CHANGES = st.lists(
    st.builds(Change, st.sampled_from(ChangeKind), st.just("nat A"), item=st.none() | st.sampled_from(ItemKind))
)


def made(kind: ChangeKind, *items: ItemKind | None) -> tuple[Change, ...]:
    return tuple(Change(kind, "nat A", "a", "b", item) for item in items)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            made(ChangeKind.MISSING, TABLE, CHAIN, *[RULE] * 5, CHAIN, *[RULE] * 2),
            "table, 2 chains and 7 rules were missing",
        ),
        (
            made(ChangeKind.MISSING, *[CHAIN] * 2, *[RULE] * 7, *[JUMP] * 2),
            "2 chains, 7 rules and 2 jumps were missing",
        ),
        (made(ChangeKind.EXTRA, *[RULE] * 3), "3 rules were not wanted"),
        (made(ChangeKind.MISSING, JUMP, CHAIN, RULE), "chain, rule and jump were missing"),
        (made(ChangeKind.UNVERIFIED, *[CHAIN] * 4), "4 chains were not verified"),
        (made(ChangeKind.FLANNEL, TABLE, RULE, RULE), "table and 2 rules were flannel's"),
        (made(ChangeKind.MISSING, None, None, None), "3 objects were missing"),
        (
            made(ChangeKind.CHANGED, RULE) + made(ChangeKind.MISSING, RULE, RULE) + made(ChangeKind.MOVED, JUMP),
            "rule was changed; 2 rules were missing; jump was moved",
        ),
        ((), ""),
    ],
)
def test_many_changes_are_counted_by_kind(changes: tuple[Change, ...], text: str) -> None:
    assert describe(changes) == text


def test_few_changes_are_described_one_by_one() -> None:
    changes = (
        Change(ChangeKind.MISSING, "nat A", wanted="rule a", item=RULE),
        Change(ChangeKind.CHANGED, "nat B", "accept", "drop", JUMP),
    )
    assert describe(changes) == "rule was missing in nat A: rule a; jump was changed in nat B: drop"


def test_what_the_kernel_still_holds_is_in_the_present() -> None:
    assert describe(made(ChangeKind.MISSING, *[RULE] * 3), past=False) == "3 rules are missing"
    assert describe(made(ChangeKind.MISSING, TABLE), past=False) == "table is missing in nat A: b"


@given(CHANGES)
def test_every_change_is_counted_once(changes: list[Change]) -> None:
    """The counts of each clause add up, each kind of change has one clause, and the verb agrees."""
    text = describe(changes, limit=0)
    totals = Counter(KINDS[change.kind] for change in changes)
    clauses = text.split("; ") if text else []
    assert len(clauses) == len(totals)
    for clause in clauses:
        words, verb, state = re.fullmatch(r"(.+) (was|were) (.+)", clause).groups()  # type: ignore[union-attr]
        counts = [int(word.split()[0]) if word[0].isdigit() else 1 for word in re.split(", | and ", words)]
        assert sum(counts) == totals[state]
        assert verb == ("was" if totals[state] == 1 else "were")
