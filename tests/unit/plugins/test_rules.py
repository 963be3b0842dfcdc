"""The jumps that a write to an iptables backend replaces."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from flanneld_masq_iptables import rules
from flanneld_masq_iptables.rules import Jumps

from flanneld_masq.model import (
    Blocker,
    Change,
    ChangeKind,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Position,
    Rule,
    Verdict,
)

from .ruleset import FILTER, FORWARD, FORWARD_JUMP, MASQUERADE, NAT, NAT_JUMP


def test_packets_of_no_connection() -> None:
    network = ip_network("10.244.0.0/16")
    rule = Rule("x", "", Verdict.DROP, src=network, invalid=True, tag="aa")
    comment = '-m comment --comment "flanneld-masq:aa"'
    expected = f"-A FLANNELD-MASQ-FWD -s {network} -m conntrack --ctstate INVALID {comment} -j DROP"
    assert rules.rule_line(FILTER, rule) == expected


class TestJumps:
    RIGHT = Item(ItemKind.JUMP, NAT.jump, NAT_JUMP, raw=NAT_JUMP, handle=1)
    OTHER = Item(ItemKind.JUMP, NAT.jump, NAT_JUMP.replace(":ee", ":old"), raw="old", handle=2)
    STRAY = Item(ItemKind.JUMP, "nat PREROUTING", NAT_JUMP.replace("POSTROUTING", "PREROUTING"), raw="stray", handle=3)
    FILTERS = Item(ItemKind.JUMP, FILTER.jump, FORWARD_JUMP, raw=FORWARD_JUMP, handle=4)

    @pytest.mark.parametrize(
        ("jumps", "new", "stale"),
        [
            ([], True, []),
            ([RIGHT], False, []),
            ([OTHER], True, [OTHER]),
            ([STRAY], True, [STRAY]),
            ([RIGHT, OTHER, STRAY], False, [OTHER, STRAY]),
            ([RIGHT, RIGHT], True, [RIGHT, RIGHT]),
            ([FILTERS], True, []),
            ([Item(ItemKind.RULE, NAT.jump, NAT_JUMP)], True, []),
        ],
    )
    def test_the_one_right_jump_stays(self, jumps: list[Item], new: bool, stale: list[Item]) -> None:
        observed = Observation(tuple(jumps))
        expected = Jumps((NAT_JUMP,) if new else (), tuple(stale))
        assert rules.jumps_to_replace(MASQUERADE, Position.LAST, observed, ()) == expected

    def test_a_jump_that_was_moved_goes(self) -> None:
        observed = Observation((self.RIGHT,))
        moved = Change(ChangeKind.MOVED, NAT.jump, "first", "behind")
        assert rules.jumps_to_replace(MASQUERADE, Position.LAST, observed, (moved,)) == Jumps(
            (NAT_JUMP,), (self.RIGHT,)
        )
        elsewhere = Change(ChangeKind.MOVED, FILTER.jump, "first", "behind")
        assert rules.jumps_to_replace(MASQUERADE, Position.LAST, observed, (elsewhere,)) == Jumps()

    def test_a_new_jump_is_inserted_before_what_drops_all(self) -> None:
        around = (Neighbours(NAT.jump, blocker=Blocker(0, 1, 5)), Neighbours(FILTER.jump, blocker=Blocker(2, 4, 77)))
        observed = Observation((), around)
        jumps = rules.jumps_to_replace(FORWARD, Position.AUTO, observed, ())
        assert jumps == Jumps((FORWARD_JUMP.replace("-A FORWARD", "-I FORWARD 4", 1),), (), before=77)
        assert rules.jumps_to_replace(FORWARD, Position.LAST, observed, ()) == Jumps((FORWARD_JUMP,))
        assert rules.jumps_to_replace(FORWARD, Position.AUTO, Observation(), ()) == Jumps((FORWARD_JUMP,))

    def test_a_new_jump_is_inserted_at_the_first_position(self) -> None:
        jump = rules.jumps_to_replace(MASQUERADE, Position.FIRST, Observation(), ())
        assert jump.new == (NAT_JUMP.replace("-A", "-I", 1),)
