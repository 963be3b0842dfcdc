"""How long a repair waits for a flush to end, by a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from flanneld_masq.controller.flush_hold import (
    BEFORE_FLUSH,
    BY_COMMANDS,
    BY_RESTORE,
    LOOK_SECONDS,
    FlushHold,
    Patience,
    patience_with,
)
from flanneld_masq.model import Group, Item, ItemKind
from flanneld_masq.ruleset.flush import Flush, FlushPolicy

START = 100.0
NAT, FILTER = frozenset({Group.MASQUERADE}), frozenset({Group.FORWARD})
BOTH = NAT | FILTER
WHOLE = Flush(BOTH, BOTH, (), whole=True)
Broken = Callable[[float], frozenset[Group]]


def looks(
    broken: Broken, commits: Callable[[float], int], patience: Patience | None = BY_COMMANDS
) -> list[tuple[float, FlushPolicy]]:
    """Return the looks of a pass, with their time. The groups that are broken are repaired by FORWARD_WAITS."""
    hold, now = FlushHold(FlushPolicy.REPORT), START
    found: list[tuple[float, FlushPolicy]] = []
    repaired: frozenset[Group] = frozenset()
    while hold.policy is not FlushPolicy.REPAIR:
        left = broken(now - START) - repaired
        now += hold.pause(Flush(left, left, ()), commits(now - START), patience, now)
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
    assert found[-1] == (BY_COMMANDS.quiet, FlushPolicy.REPAIR)
    assert {policy for _, policy in found[:-2]} == {FlushPolicy.WAIT}


def test_looks_are_frequent() -> None:
    found = [0.0, *(time for time, _ in looks(lambda _: BOTH, lambda _: 1))]
    assert all(later - earlier <= LOOK_SECONDS + 1e-6 for earlier, later in zip(found, found[1:]))


def test_each_command_prolongs_it() -> None:
    assert held(lambda _: FILTER, lambda now: now >= 0.05) == pytest.approx(0.06 + BY_COMMANDS.quiet)


def test_a_change_without_a_commit_prolongs_it() -> None:
    """As in legacy tables, where nothing counts commits."""
    hold = FlushHold(FlushPolicy.REPORT)
    chain = Item(ItemKind.CHAIN, "filter OWN", "chain")
    hold.pause(Flush(FILTER, FILTER, (chain,)), 0, BY_COMMANDS, START)
    assert hold.pause(Flush(FILTER, FILTER, ()), 0, BY_COMMANDS, START + BY_COMMANDS.quiet) > 0


def test_masquerade_is_repaired_although_the_commands_go_on() -> None:
    assert looks(lambda _: NAT, on_and_on)[-1] == (BY_COMMANDS.masquerade, FlushPolicy.REPAIR)


def test_forward_waits_longer_while_the_commands_go_on() -> None:
    found = looks(lambda _: BOTH, on_and_on)
    assert [time for time, policy in found if policy is FlushPolicy.FORWARD_WAITS] == [BY_COMMANDS.masquerade]
    assert found[-1] == (BY_COMMANDS.forward, FlushPolicy.REPAIR)


def test_forward_waits_for_firewalld_with_individual_calls() -> None:
    """On a busy machine of two cores it sent a command every 8 to 100 ms, and the first rule of FORWARD 2.1 s after the
    flush. The rule that it inserts by number followed 0.3 s later."""
    assert held(lambda _: FILTER, lambda now: int(min(now, 2.5) / 0.1)) > 2.5


def test_masquerade_has_its_own_time() -> None:
    """The filter table is flushed first, and pods are masqueraded until the other one is."""
    found = looks(lambda now: FILTER if now < 0.09 else BOTH, on_and_on)
    (masqueraded,) = (time for time, policy in found if policy is FlushPolicy.FORWARD_WAITS)
    assert masqueraded == pytest.approx(0.1 + BY_COMMANDS.masquerade)


def test_masquerade_does_not_wait_for_iptables_restore() -> None:
    found = looks(lambda _: BOTH, lambda _: 1, BY_RESTORE)
    assert found[0] == (0.0, FlushPolicy.FORWARD_WAITS)
    assert found[-1] == (BY_RESTORE.quiet, FlushPolicy.REPAIR)


def test_nothing_waits_for_a_program_that_does_all_at_once() -> None:
    assert looks(lambda _: BOTH, lambda _: 1, patience_with(WHOLE, ["nft", "kube-proxy"])) == [
        (0.0, FlushPolicy.REPAIR)
    ]


@pytest.mark.parametrize(
    ("names", "patience"),
    [
        (["iptables"], BY_COMMANDS),
        (["nft", "ip6tables-nft"], BY_COMMANDS),
        (["xtables-nft-mul"], BY_COMMANDS),
        (["iptables-restor"], BY_RESTORE),
        (["ip6tables-nft-r"], BY_RESTORE),
        (["ip6tables", "iptables-restor"], Patience(BY_COMMANDS.masquerade, BY_COMMANDS.forward, BY_RESTORE.quiet)),
        ([], None),
    ],
)
def test_programs_are_known_by_the_kernels_fifteen_characters(names: list[str], patience: Patience) -> None:
    assert patience_with(WHOLE, names) == patience


def test_forward_group_that_moves_waits_for_a_flush_to_begin() -> None:
    """In a chain that a command made drop. Where the kernel reports no names it is as if it did."""
    arrival = Flush(frozenset(), FILTER, ())
    assert patience_with(arrival, ["iptables"]) == BEFORE_FLUSH == patience_with(arrival, [], counted=False)
    assert patience_with(arrival, ["nft", "iptables-restor"]) is None


def test_flush_that_begins_meanwhile_is_let_end() -> None:
    begun = Flush(FILTER, FILTER, ())
    hold, now = FlushHold(FlushPolicy.REPORT), START
    hold.pause(Flush(frozenset(), FILTER, ()), 1, BEFORE_FLUSH, now)
    hold.pause(begun, 2, BY_COMMANDS, now + 0.04)
    assert hold.pause(begun, 2, BY_COMMANDS, now + 0.2) > 0


def test_a_load_that_leaves_rules_is_over() -> None:
    """As that of netfilter-persistent, if its FORWARD has a policy and no rules."""
    left = replace(WHOLE, whole=False)
    assert patience_with(left, ["iptables-restor"]) is None
    assert patience_with(left, ["iptables", "iptables-restor"]) == BY_COMMANDS
