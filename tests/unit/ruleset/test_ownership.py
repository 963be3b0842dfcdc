"""Chains and tables with one of the daemon's names: which program they belong to."""

from __future__ import annotations

import pytest

from flanneld_masq.errors import RulesetError
from flanneld_masq.model import Item, ItemKind, Observation, Stranger, VerifiedState, tag_of
from flanneld_masq.ruleset import ownership

CHAIN = Item(ItemKind.CHAIN, "nat FLANNELD-MASQ", "chain FLANNELD-MASQ", raw="chain FLANNELD-MASQ")
RULE = Item(ItemKind.RULE, CHAIN.place, "their rule", raw="their rule")
OTHER = Item(ItemKind.RULE, "filter FLANNELD-MASQ-FWD", "our rule", raw="our rule", tag="0123456789ab")
EMPTY, FULL = Stranger((CHAIN,), empty=True), Stranger((CHAIN, RULE), empty=False)
VERIFIED = VerifiedState("", (CHAIN,))


def observation(*strangers: Stranger) -> Observation:
    return Observation((OTHER,), strangers=strangers)


class TestSettled:
    def test_without_strangers_nothing_changes(self) -> None:
        observed = observation()
        assert ownership.settled((CHAIN,), None, observed) is observed

    @pytest.mark.parametrize("stranger", [EMPTY, FULL])
    def test_where_nothing_is_wanted_a_stranger_is_left_alone(self, stranger: Stranger) -> None:
        assert ownership.settled((), None, observation(stranger)) == Observation((OTHER,))
        assert ownership.settled((), VerifiedState("", (OTHER,)), observation(stranger)) == Observation((OTHER,))

    @pytest.mark.parametrize("stranger", [EMPTY, FULL])
    @pytest.mark.parametrize("wanted", [(), (CHAIN,)])
    def test_what_this_program_wrote_stays_ours(self, stranger: Stranger, wanted: tuple[Item, ...]) -> None:
        expected = Observation((*stranger.items, OTHER))
        assert ownership.settled(wanted, VERIFIED, observation(stranger)) == expected

    def test_an_empty_one_is_taken_where_one_is_wanted(self) -> None:
        assert ownership.settled((CHAIN,), None, observation(EMPTY)) == Observation((CHAIN, OTHER))

    def test_the_rules_of_others_are_not_replaced(self) -> None:
        with pytest.raises(RulesetError, match="chain nat FLANNELD-MASQ has a name of flanneld-masq"):
            ownership.settled((CHAIN,), None, observation(FULL))


class TestTags:
    @pytest.mark.parametrize(
        "comment",
        [
            "",
            "flanneld-masq",
            "flanneld-masq:",
            "flanneld-masq: do not NAT the office",
            "flanneld-masq:0123456789a",
            "flanneld-masq:0123456789abc",
            "flanneld-masq:0123456789AB",
            "flanneld-masq:0123456789ag",
            "flanneld-masq:0123456789ab\n",
            " flanneld-masq:0123456789ab",
            "flanneld-masq:0123456789ab by hand",
        ],
    )
    def test_a_comment_that_begins_like_ours_has_none(self, comment: str) -> None:
        assert tag_of(comment) == ""

    def test_the_tag_of_our_comment(self) -> None:
        assert tag_of("flanneld-masq:0123456789ab") == "0123456789ab"
