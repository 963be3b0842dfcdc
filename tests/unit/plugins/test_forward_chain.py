"""The rule before which an accept must stand, held against a model that sends packets through the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest
from flanneld_masq_iptables.forward_chain import MAX_CHAINS, MAX_DEPTH, Action, Analysis, Drop, Step
from hypothesis import given
from hypothesis import strategies as st

Chains = Mapping[str, Sequence[Step]]
NONE: Chains = {}

DROP, ACCEPT, RETURN, LOG = (
    Step(action, True) for action in (Action.DROP, Action.ACCEPT, Action.RETURN, Action.NOTHING)
)
SOME_DROP, SOME_ACCEPT, SOME_RETURN = (Step(step.action, False) for step in (DROP, ACCEPT, RETURN))
QUEUE = Step(Action.OTHER, True)


def jump(chain: str, *, always: bool = True) -> Step:
    return Step(Action.JUMP, always, chain)


def goto(chain: str, *, always: bool = True) -> Step:
    return Step(Action.GOTO, always, chain)


def drop(base: Sequence[Step], policy: bool = False, chains: Chains = NONE, **more: Sequence[Step]) -> Drop | None:
    known = {**chains, **more}
    return Analysis(lambda chain: known.get(str(chain), ()), own="OURS").drop(base, policy=policy)


@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize(
    ("base", "chains", "index"),
    [
        ([DROP], {}, 0),
        ([SOME_DROP, LOG, DROP], {}, 2),
        ([SOME_ACCEPT, DROP, DROP], {}, 1),
        ([jump("X")], {"X": [LOG, DROP]}, 0),
        ([jump("X")], {"X": [SOME_ACCEPT, DROP]}, 0),
        ([goto("X")], {"X": [DROP]}, 0),
        ([jump("X")], {"X": [goto("Y")], "Y": [jump("Z")], "Z": [DROP]}, 0),
        ([jump("X"), DROP], {"X": [SOME_DROP, RETURN, DROP]}, 1),
        ([jump("X"), DROP], {"X": [SOME_RETURN, DROP]}, 1),
        ([jump("X"), DROP], {"X": [goto("Y", always=False), DROP], "Y": []}, 1),
        ([jump("X", always=False), DROP], {"X": [DROP]}, 1),
        ([jump("X")], {"X": [jump("Y", always=False), DROP], "Y": [LOG, SOME_ACCEPT]}, 0),
        ([jump("OURS"), DROP], {"OURS": [DROP]}, 1),
    ],
)
def test_the_first_that_drops_all(base: Sequence[Step], chains: Chains, index: int, policy: bool) -> None:
    assert drop(base, policy, chains) == Drop(index)


@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize(
    ("base", "chains"),
    [
        ([ACCEPT, DROP], {}),
        ([QUEUE, DROP], {}),
        ([jump("X"), DROP], {"X": [ACCEPT]}),
        ([jump("X"), DROP], {"X": [SOME_DROP, DROP]}),
        ([jump("X"), DROP], {"X": [jump("Y", always=False), DROP], "Y": [SOME_DROP]}),
    ],
)
def test_nothing_that_an_accept_could_help_against(base: Sequence[Step], chains: Chains, policy: bool) -> None:
    assert drop(base, policy, chains) is None


def test_the_policy() -> None:
    assert drop([], policy=True) == Drop()
    assert drop([SOME_DROP, jump("X")], policy=True, X=[SOME_DROP]) == Drop()
    assert drop([SOME_DROP], policy=False) is None


def test_a_return_or_a_goto_leads_to_the_policy() -> None:
    assert drop([RETURN], policy=True) == Drop(0)
    assert drop([RETURN, DROP], policy=False) is None
    assert drop([goto("X"), DROP], policy=True, X=[]) == Drop(0)
    assert drop([goto("X"), DROP], policy=True, X=[SOME_DROP]) is None


def test_chains_without_end_are_not_followed() -> None:
    deep = {f"C{number}": [jump(f"C{number + 1}")] for number in range(100)}
    assert drop([jump("C0"), DROP], chains=deep) == Drop(1)
    many = {f"C{number}": [LOG] for number in range(2 * MAX_CHAINS)}
    analysis = Analysis(lambda chain: many[str(chain)])
    assert analysis.drop([*map(jump, many), DROP], policy=False) == Drop(2 * MAX_CHAINS)
    assert len(analysis.followed) == MAX_CHAINS
    loop = {"X": [jump("Y")], "Y": [jump("X", always=False), DROP]}
    assert drop([jump("X"), DROP], chains=loop) in (Drop(0), None)
    assert MAX_DEPTH < 100


NAMES = ("A", "B", "C")
VERDICTS = st.sampled_from((Action.NOTHING, Action.ACCEPT, Action.DROP, Action.RETURN))


def steps(names: Sequence[str]) -> st.SearchStrategy[list[Step]]:
    plain = st.builds(Step, VERDICTS, st.booleans())
    if not names:
        return st.lists(plain, max_size=4)
    leads = st.builds(Step, st.sampled_from((Action.JUMP, Action.GOTO)), st.booleans(), st.sampled_from(names))
    return st.lists(plain | leads, max_size=4)


class Model:
    """Sends a packet through the rules. A rule with a condition matches as the bits of the packet say."""

    def __init__(self, chains: Chains, bits: int) -> None:
        self.chains = chains
        self.bits = bits
        self.number = 0

    def matches(self, step: Step) -> bool:
        if step.always:
            return True
        self.number += 1
        return bool(self.bits >> (self.number % 16) & 1)

    def decided(self, chain: Sequence[Step]) -> Action | None:
        """ACCEPT, DROP, or None at the end of the chain."""
        for step in chain:
            if not self.matches(step):
                continue
            if step.action in (Action.ACCEPT, Action.DROP):
                return step.action
            if step.action is Action.RETURN:
                return None
            if step.action in (Action.JUMP, Action.GOTO):
                decided = self.decided(self.chains[str(step.chain)])
                if decided is not None or step.action is Action.GOTO:
                    return decided
        return None


def packets(chains: Chains) -> Iterator[Model]:
    return (Model(chains, bits) for bits in (0, 0xFFFF, 0x5555, 0xAAAA, 0x1234, 0x8001, 0x0F0F))


@given(steps(NAMES), steps(NAMES[1:]), steps(NAMES[2:]), steps(()))
def test_no_packet_passes_the_rule_that_drops_all(
    base: list[Step], a: list[Step], b: list[Step], c: list[Step]
) -> None:
    """No packet that reaches that rule is let through by what comes from there on, unless a rule accepts it."""
    chains = dict(zip(NAMES, (a, b, c)))
    found = drop(base, chains=chains)
    if found is not None:
        assert found.index is not None
        for packet in packets(chains):
            assert packet.decided(base[found.index :]) is not None
        for index in range(found.index):  # none before it drops all packets
            steps_before = base[index : index + 1]
            assert any(packet.decided(steps_before) is not Action.DROP for packet in packets(chains))


def test_packets_pass_a_conditional_return_and_reach_the_drop() -> None:
    """Found by the test above when it still asked for one packet alone."""
    assert drop([jump("C"), DROP], C=[SOME_RETURN, DROP]) == Drop(1)
