"""How long a repair waits for a flush to end, by a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flanneld_masq.controller.flush_hold import (
    FLUSHING,
    LOOK_SECONDS,
    MAX_FORWARD_HOLD_SECONDS,
    MAX_HOLD_SECONDS,
    QUIET_SECONDS,
    FlushHold,
)
from flanneld_masq.model import Group, Item, ItemKind
from flanneld_masq.ruleset.flush import Flush, FlushPolicy

START = 100.0
NAT, FILTER = frozenset({Group.MASQUERADE}), frozenset({Group.FORWARD})
BOTH = NAT | FILTER
Broken = Callable[[float], frozenset[Group]]


def looks(broken: Broken, commits: Callable[[float], int]) -> list[tuple[float, FlushPolicy]]:
    """Return the looks of a pass, with their time. The groups that are broken are repaired by FORWARD_WAITS."""
    hold, now = FlushHold(FlushPolicy.REPORT), START
    found: list[tuple[float, FlushPolicy]] = []
    repaired: frozenset[Group] = frozenset()
    while hold.policy is not FlushPolicy.REPAIR:
        left = broken(now - START) - repaired
        now += hold.pause(Flush(left, left, ()), commits(now - START), now)
        found.append((round(now - START, 6), hold.policy))
        repaired = NAT if hold.policy is FlushPolicy.FORWARD_WAITS else repaired
    return found


def held(broken: Broken, commits: Callable[[float], int]) -> float:
    """Return for how many seconds a pass is held."""
    return looks(broken, commits)[-1][0]


def on_and_on(now: float) -> int:
    return round(now * 1000)


def test_quiet_ends_it() -> None:
    found = looks(lambda _: BOTH, lambda _: 1)
    assert found[-1] == (QUIET_SECONDS, FlushPolicy.REPAIR)
    assert {policy for _, policy in found[:-2]} == {FlushPolicy.WAIT}


def test_looks_are_frequent() -> None:
    found = [0.0, *(time for time, _ in looks(lambda _: BOTH, lambda _: 1))]
    assert all(later - earlier <= LOOK_SECONDS + 1e-6 for earlier, later in zip(found, found[1:]))


def test_each_command_prolongs_it() -> None:
    assert held(lambda _: FILTER, lambda now: now >= 0.05) == pytest.approx(0.06 + QUIET_SECONDS)


def test_a_change_without_a_commit_prolongs_it() -> None:
    """As in legacy tables, where nothing counts commits."""
    hold = FlushHold(FlushPolicy.REPORT)
    chain = Item(ItemKind.CHAIN, "filter OWN", "chain")
    hold.pause(Flush(FILTER, FILTER, (chain,)), 0, START)
    assert hold.pause(Flush(FILTER, FILTER, ()), 0, START + QUIET_SECONDS) > 0


def test_masquerade_is_repaired_although_the_commands_go_on() -> None:
    assert looks(lambda _: NAT, on_and_on)[-1] == (MAX_HOLD_SECONDS, FlushPolicy.REPAIR)


def test_forward_waits_longer_while_the_commands_go_on() -> None:
    found = looks(lambda _: BOTH, on_and_on)
    assert [time for time, policy in found if policy is FlushPolicy.FORWARD_WAITS] == [MAX_HOLD_SECONDS]
    assert found[-1] == (MAX_FORWARD_HOLD_SECONDS, FlushPolicy.REPAIR)


def test_masquerade_has_its_own_time() -> None:
    """The filter table is flushed first, and pods are masqueraded until the other one is."""
    found = looks(lambda now: FILTER if now < 0.09 else BOTH, on_and_on)
    (masqueraded,) = (time for time, policy in found if policy is FlushPolicy.FORWARD_WAITS)
    assert masqueraded == pytest.approx(0.1 + MAX_HOLD_SECONDS)


def test_programs_are_known_by_the_fifteen_characters_of_the_kernel() -> None:
    assert {"iptables", "ip6tables-nft", "iptables-restor", "xtables-nft-mul"} <= FLUSHING
    assert all(len(name) <= 15 for name in FLUSHING)
