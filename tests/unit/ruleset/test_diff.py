"""The differences that a comparison finds, and the text of a diff."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_masq.model import (
    BackendName,
    Blocker,
    Change,
    ChangeKind,
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Plan,
    Position,
    VerifiedState,
)
from flanneld_masq.ruleset import diff

CHAIN, BASE = "nat OURS", "nat BASE"
JUMP_TAG = "tag-jump"


def desired(position: Position = Position.LAST, *, forward: Position | None = None) -> Desired:
    """The jump belongs to the masquerade group, or with a position for it to the forward group."""
    group = Group.MASQUERADE if forward is None else Group.FORWARD
    return Desired(Family.IPV4, (GroupRules(group, (), JUMP_TAG),), position, forward or Position.AUTO)


LAST, FIRST = desired(), desired(Position.FIRST)


def chain(name: str = CHAIN, raw: str = "a chain") -> Item:
    return Item(ItemKind.CHAIN, name, f"chain {name}", raw=raw)


def rule(name: str, *, place: str = CHAIN) -> Item:
    """As it is wanted: the kernel's form is not known."""
    return Item(ItemKind.RULE, place, f"rule {name}", tag=f"tag-{name}")


def jump() -> Item:
    return Item(ItemKind.JUMP, BASE, "jump OURS", tag=JUMP_TAG)


def kernel(item: Item, *, handle: int = 7, **changed: Any) -> Item:
    """As the kernel holds it: its own bytes, and of rules its own words."""
    text = f"as read: {item.text}" if item.tag else item.text
    held = replace(item, raw=item.raw or f"bytes of {item.text}", text=text, handle=handle)
    return replace(held, **changed)


WANTED = (chain(), rule("a"), rule("b"), rule("c"), jump())
HELD = tuple(map(kernel, WANTED))


def observation(*items: Item, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Observation:
    return Observation(items, (Neighbours(BASE, before, after),))


VERIFIED = diff.verified_state_of(WANTED, LAST, observation(*HELD))


def changes(
    *items: Item,
    wanted: tuple[Item, ...] = WANTED,
    verified_state: VerifiedState | None = VERIFIED,
    position: Desired = LAST,
) -> list[tuple[str, str, str, str]]:
    differences = diff.differences(wanted, position, verified_state, observation(*items))
    return [(change.kind, change.place, change.wanted, change.found) for change in differences]


def test_nothing_to_do() -> None:
    assert changes(*HELD) == []
    assert changes(wanted=(), verified_state=None) == []


def test_handles_do_not_count() -> None:
    assert changes(*(replace(item, handle=99) for item in HELD)) == []


def test_nor_do_the_words_of_the_reader() -> None:
    assert changes(*(replace(item, text="in other words") for item in HELD)) == []


class TestWithAVerifiedState:
    @pytest.mark.parametrize("index", range(len(HELD)))
    def test_missing(self, index: int) -> None:
        changed = changes(*HELD[:index], *HELD[index + 1 :])
        assert changed == [("missing", WANTED[index].place, WANTED[index].text, "")]

    @pytest.mark.parametrize("index", range(len(HELD)))
    def test_doubled(self, index: int) -> None:
        changed = changes(*HELD[: index + 1], HELD[index], *HELD[index + 1 :])
        assert changed == [("extra", WANTED[index].place, "", WANTED[index].text)]

    def test_foreign_rule_between(self) -> None:
        foreign = Item(ItemKind.RULE, CHAIN, "drop", raw="bytes of drop")
        assert changes(*HELD[:2], foreign, *HELD[2:]) == [("extra", CHAIN, "", "drop")]

    @pytest.mark.parametrize("index", range(len(HELD)))
    def test_another_body_under_the_same_tag(self, index: int) -> None:
        forged = replace(HELD[index], raw="other bytes", text="something else")
        changed = changes(*HELD[:index], forged, *HELD[index + 1 :])
        assert changed == [("changed", WANTED[index].place, WANTED[index].text, "something else")]

    @pytest.mark.parametrize("order", [order for order in permutations((1, 2, 3)) if order != (1, 2, 3)])
    def test_another_order(self, order: tuple[int, ...]) -> None:
        changed = changes(HELD[0], *(HELD[index] for index in order), HELD[4])
        assert changed
        assert {place for _, place, _, _ in changed} == {CHAIN}
        assert {text for _, _, *texts in changed for text in texts if text} <= {item.text for item in WANTED}

    def test_everything_gone(self) -> None:
        assert changes() == [("missing", item.place, item.text, "") for item in WANTED]

    def test_a_jump_from_elsewhere(self) -> None:
        stray = kernel(jump(), place="nat ELSEWHERE")
        assert changes(*HELD, stray) == [("extra", "nat ELSEWHERE", "", "jump OURS")]

    def test_the_same_bytes_as_another_kind_of_object(self) -> None:
        disguised = replace(HELD[4], kind=ItemKind.RULE)
        assert [kind for kind, *_ in changes(*HELD[:4], disguised)] == ["changed"]

    def test_each_place_is_told_by_itself(self) -> None:
        changed = changes(HELD[0], *HELD[2:4])
        assert changed == [("missing", CHAIN, "rule a", ""), ("missing", BASE, "jump OURS", "")]

    @settings(max_examples=25)
    @given(st.lists(st.sampled_from((*HELD, Item(ItemKind.RULE, CHAIN, "drop", raw="drop"))), max_size=8))
    def test_in_sync_exactly_if_the_bytes_are_equal(self, items: list[Item]) -> None:
        assert (changes(*items) == []) == (tuple(items) == HELD)


class TestWithoutOne:
    def test_right_tags_prove_nothing(self) -> None:
        assert changes(*HELD, verified_state=None) == [("unverified", CHAIN, f"chain {CHAIN}", f"chain {CHAIN}")]

    def test_a_backend_without_chains_is_no_exception(self) -> None:
        wanted = (rule("a"), rule("b"))
        held = tuple(map(kernel, wanted))
        assert [kind for kind, *_ in changes(*held, wanted=wanted, verified_state=None)] == ["unverified"]

    def test_one_of_other_rules_is_none(self) -> None:
        other = diff.verified_state_of((*WANTED[:-1], rule("d")), LAST, observation(*HELD))
        assert [kind for kind, *_ in changes(*HELD, verified_state=other)] == ["unverified"]

    def test_one_of_the_other_position_is_none(self) -> None:
        assert [kind for kind, *_ in changes(*HELD, position=FIRST)] == ["unverified"]

    def test_one_that_was_cut_is_none(self) -> None:
        cut = replace(VERIFIED, items=VERIFIED.items[:-1])
        assert [kind for kind, *_ in changes(*HELD, verified_state=cut)] == ["unverified"]

    def test_tags_are_compared(self) -> None:
        old = kernel(replace(rule("b"), tag="tag-old"))
        assert changes(HELD[0], HELD[1], old, HELD[3], HELD[4], verified_state=None) == [
            ("changed", CHAIN, "rule b", "as read: rule b")
        ]

    def test_nothing_there(self) -> None:
        assert changes(verified_state=None) == [("missing", item.place, item.text, "") for item in WANTED]


def test_where_nothing_is_wanted_everything_is_too_much() -> None:
    assert changes(*HELD, wanted=()) == [("extra", item.place, "", item.text) for item in HELD]
    assert changes(*HELD, wanted=(), verified_state=None) == changes(*HELD, wanted=())


class TestMoved:
    def moved(
        self, position: Desired, observed: Neighbours, *verified_state: Neighbours, wanted: tuple[Item, ...] = WANTED
    ) -> list[tuple[str, str, str]]:
        remembered = VerifiedState(diff.fingerprint(wanted, position), HELD, verified_state)
        moves = diff.differences(wanted, position, remembered, Observation(HELD, (observed,)))
        return [(change.kind, change.place, change.found) for change in moves]

    def test_first_and_nothing_before_it(self) -> None:
        assert self.moved(FIRST, Neighbours(BASE, (), ("x", "y"))) == []

    @pytest.mark.parametrize(("before", "text"), [(("x",), "1 other rule"), (("x", "y"), "2 other rules")])
    def test_first_and_something_before_it(self, before: tuple[str, ...], text: str) -> None:
        assert self.moved(FIRST, Neighbours(BASE, before, ())) == [("moved", BASE, f"the daemon's jump after {text}")]

    def test_last_and_a_rule_appended_later(self) -> None:
        verified_state = Neighbours(BASE, ("x",), ())
        assert self.moved(LAST, Neighbours(BASE, ("x",), ("new", "newer")), verified_state) == []

    def test_last_and_before_what_it_was_behind(self) -> None:
        verified_state = Neighbours(BASE, ("x", "y"), ())
        for observed, count in ((("y",), 1), ((), 2)):
            after = tuple(name for name in ("x", "y") if name not in observed)
            moves = self.moved(LAST, Neighbours(BASE, observed, after), verified_state)
            assert moves == [("moved", BASE, f"the daemon's jump before {count} of the rules that it came after")]

    def counted(self, *hits: int) -> list[tuple[str, str, str]]:
        """The jump was behind x and y, which had counted 3 packets each; now it is before those with these hits."""
        verified_state = Neighbours(BASE, ("x", "y"), ("z",), hits=(3, 3, 3))
        before, after = ("x", "y")[: 2 - len(hits)], ("z", *("x", "y")[2 - len(hits) :])
        observed = Neighbours(BASE, before, after, hits=(*(9 for _ in before), 9, *hits))
        return self.moved(LAST, observed, verified_state)

    def test_rules_without_handles_that_count_from_zero_are_appended(self) -> None:
        for hits in ((0,), (2,), (0, 0), (0, 2)):
            assert self.counted(*hits) == []

    def test_rules_without_handles_that_kept_counts_were_overtaken(self) -> None:
        for hits, count in (((3,), 1), ((7,), 1), ((0, 3), 1), ((4, 3), 2)):
            assert [text for *_, text in self.counted(*hits)] == [
                f"the daemon's jump before {count} of the rules that it came after"
            ]

    def test_rules_that_do_not_end_the_chain_were_overtaken(self) -> None:
        verified_state = Neighbours(BASE, ("x",), ("z",), hits=(0, 0))
        assert self.moved(LAST, Neighbours(BASE, (), ("x", "z"), hits=(0, 0)), verified_state) != []
        assert self.moved(LAST, Neighbours(BASE, (), ("z", "x"), hits=(0, 0)), verified_state) == []

    def test_last_and_others_removed_or_reordered_their_own(self) -> None:
        verified_state = Neighbours(BASE, ("x", "y"), ("z",))
        for before in ((), ("y",), ("y", "x"), ("x", "new", "y"), ("z", "x", "y")):
            assert self.moved(LAST, Neighbours(BASE, before, ()), verified_state) == []

    def test_a_doubled_foreign_rule_is_no_move(self) -> None:
        verified_state = Neighbours(BASE, ("x",), ())
        assert self.moved(LAST, Neighbours(BASE, ("x",), ("x",)), verified_state) == []

    def test_another_place_is_another_matter(self) -> None:
        verified_state = Neighbours("nat ELSEWHERE", ("x",), ())
        assert self.moved(LAST, Neighbours(BASE, (), ("x",)), verified_state) == []

    @pytest.mark.parametrize(
        ("position", "blocker", "right"),
        [
            (Position.AUTO, None, 3),
            (Position.AUTO, 0, 0),
            (Position.AUTO, 2, 2),
            (Position.LAST, None, 3),
            (Position.LAST, 1, 3),
            (Position.FIRST, None, 0),
            (Position.FIRST, 1, 0),
        ],
    )
    @pytest.mark.parametrize("ahead", range(4))
    def test_the_jump_to_the_forward_group_has_one_right_place(
        self, position: Position, blocker: int | None, right: int, ahead: int
    ) -> None:
        """Whatever was verified before: so the order of events does not matter."""
        drop = None if blocker is None else Blocker(blocker, blocker + 1)
        observed = Neighbours(BASE, ("x", "y", "z")[:ahead], ("x", "y", "z")[ahead:], blocker=drop)
        for verified_state in ((), (Neighbours(BASE, observed.before, observed.after),)):
            moves = self.moved(desired(forward=position), observed, *verified_state)
            assert [kind for kind, *_ in moves] == ([] if ahead == right else ["moved"])
            assert all(f"{abs(ahead - right)} other rule" in found for *_, found in moves)

    def test_a_jump_that_is_missing_has_not_moved(self) -> None:
        observed = Observation(HELD[:-1], (Neighbours(BASE, blocker=Blocker(2, 3)),))
        wanted = desired(forward=Position.AUTO)
        remembered = diff.verified_state_of(WANTED, wanted, observation(*HELD))
        assert [change.kind for change in diff.differences(WANTED, wanted, remembered, observed)] == ["missing"]

    def test_what_drops_is_not_remembered(self) -> None:
        observed = Observation(HELD, (Neighbours(BASE, ("x",), blocker=Blocker(0, 1)),))
        assert diff.verified_state_of(WANTED, LAST, observed).neighbours == (Neighbours(BASE, ("x",)),)

    def test_first_counts_without_a_verified_state_too(self) -> None:
        observed = Observation(HELD, (Neighbours(BASE, ("x",), ()),))
        assert [change.kind for change in diff.differences(WANTED, FIRST, None, observed)] == ["moved"]

    def test_beside_other_damage(self) -> None:
        verified_state = replace(VERIFIED, neighbours=(Neighbours(BASE, ("x",), ()),))
        observed = Observation(HELD[1:], (Neighbours(BASE, (), ("x",)),))
        assert [change.kind for change in diff.differences(WANTED, LAST, verified_state, observed)] == [
            "missing",
            "moved",
        ]


class TestUnmet:
    def test_met(self) -> None:
        assert diff.unmet(WANTED, observation(*HELD)) == ""
        assert diff.unmet((), Observation()) == ""

    @pytest.mark.parametrize(
        ("items", "problem"),
        [
            (HELD[:-1], "object 5 should be jump tag-jump in nat BASE and is none"),
            ((*HELD, HELD[-1]), "object 6 should be none and is jump tag-jump in nat BASE"),
            ((HELD[0], HELD[2], HELD[1], *HELD[3:]), "object 2 should be rule tag-a in nat OURS and is rule tag-b in"),
            ((), f"object 1 should be chain chain {CHAIN} in {CHAIN} and is none"),
            ((*HELD[:4], kernel(jump(), place="nat X")), "object 5 should be jump tag-jump in nat BASE and is jump"),
        ],
    )
    def test_not_met(self, items: tuple[Item, ...], problem: str) -> None:
        assert diff.unmet(WANTED, observation(*items)).startswith(problem)


class TestFingerprint:
    def test_equal_for_equal_rules(self) -> None:
        assert diff.fingerprint(WANTED, LAST) == diff.fingerprint(tuple(WANTED), LAST)

    @pytest.mark.parametrize(
        "other",
        [
            WANTED[:-1],
            (*WANTED, WANTED[-1]),
            (WANTED[0], WANTED[2], WANTED[1], *WANTED[3:]),
            (*WANTED[:-1], replace(WANTED[-1], text="jump ELSEWHERE")),
            (*WANTED[:-1], replace(WANTED[-1], place="nat ELSEWHERE")),
            (*WANTED[:-1], replace(WANTED[-1], kind=ItemKind.RULE)),
        ],
    )
    def test_different_for_others(self, other: tuple[Item, ...]) -> None:
        assert diff.fingerprint(other, LAST) != diff.fingerprint(WANTED, LAST)

    def test_different_at_another_position(self) -> None:
        assert diff.fingerprint(WANTED, FIRST) != diff.fingerprint(WANTED, LAST)
        forward = [diff.fingerprint(WANTED, desired(forward=position)) for position in Position]
        assert len(set(forward)) == len(forward)


class TestDiff:
    def text(self, *found: Change) -> list[str]:
        return list(diff.text_of(Plan(Family.IPV4, BackendName("nft"), found)))

    def test_every_kind(self) -> None:
        assert self.text(
            Change(ChangeKind.MISSING, "nat OURS", wanted="rule a"),
            Change(ChangeKind.EXTRA, "nat OURS", found="drop"),
            Change(ChangeKind.CHANGED, "nat OURS", wanted="rule b", found="rule x"),
            Change(ChangeKind.MOVED, "nat BASE", wanted="first", found="behind 2"),
            Change(ChangeKind.UNVERIFIED, "nat OURS", wanted="chain OURS", found="chain OURS"),
        ) == [
            "@@ ipv4 nft: nat OURS @@",
            "# missing",
            "+ rule a",
            "# extra",
            "- drop",
            "# changed",
            "- rule x",
            "+ rule b",
            "@@ ipv4 nft: nat BASE @@",
            "# moved",
            "- behind 2",
            "+ first",
            "@@ ipv4 nft: nat OURS @@",
            "# unverified",
            "  chain OURS",
        ]

    def test_nothing(self) -> None:
        assert self.text() == []

    def test_as_one_text(self) -> None:
        changes = (Change(ChangeKind.CHANGED, "ip flanneld-masq postrouting", wanted="return", found="accept"),)
        assert diff.diff_text(Plan(Family.IPV4, BackendName("nft"), changes)) == (
            "@@ ipv4 nft: ip flanneld-masq postrouting @@\n# changed\n- accept\n+ return"
        )

    def test_a_long_text_is_cut(self) -> None:
        changes = tuple(Change(ChangeKind.EXTRA, "nat OURS", found=f"-j X{number}") for number in range(50_000))
        *lines, last = diff.diff_text(Plan(Family.IPV4, BackendName("iptables-nft"), changes)).split("\n")
        assert (len(lines), last) == (diff.MAX_DIFF_LINES, f"({100_001 - diff.MAX_DIFF_LINES} more lines)")
