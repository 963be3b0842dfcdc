"""Finds the first rule of a built-in chain that drops every packet that reaches it. Pure.

An accept has an effect only ahead of that rule. Ahead of any other rule it would overrule what that rule decides, for
example a network policy. So a jump to a chain counts only if the chain drops all packets, and no drop or return with a
condition comes before that drop. An accept before it may.

Both limits below are far above what programs write. Beyond them a chain counts as one that decides by more.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Optional

from flanneld_masq.model import SLOTS

MAX_DEPTH = 16  # the kernel allows no deeper jumps in nf_tables
MAX_CHAINS = 64  # read for one analysis


class Action(enum.Enum):
    """The action of a rule on the packets that it matches."""

    NOTHING = "nothing"
    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    OTHER = "other"  # another program decides, for example one that reads a queue


@dataclass(frozen=True, **SLOTS)
class Step:
    """One rule. `always` is True if it matches every packet. `chain` identifies the chain that it jumps or goes to."""

    action: Action
    always: bool
    chain: Hashable = None


OURS = Step(Action.NOTHING, True)  # a rule of the built-in chain with the daemon's tag, which each pass removes


@dataclass(frozen=True, **SLOTS)
class Drop:
    """The drop of a built-in chain: by the rule of this index, or by policy (None)."""

    index: Optional[int] = None


class _End(enum.Enum):
    """The end of a chain for a packet that no rule with a condition has decided."""

    DROPS = "drops"
    DECIDED = "decided"
    RETURNS = "returns"


@dataclass(frozen=True, **SLOTS)
class _Fate:
    """`narrow` is True if a rule with a condition drops packets; `maybe` are chains that conditions lead to."""

    end: _End
    narrow: bool = False
    maybe: tuple[Hashable, ...] = ()


@dataclass
class Analysis:
    """Follows the rules of a built-in chain. `read` returns the rules of another chain. `own` is the daemon's chain,
    which is taken for empty."""

    read: Callable[[Hashable], Sequence[Step]]
    own: Hashable = None
    _chains: dict[Hashable, Sequence[Step]] = field(default_factory=dict)
    _fates: dict[Hashable, _Fate] = field(default_factory=dict)
    _dropping: dict[Hashable, bool] = field(default_factory=dict)

    @property
    def followed(self) -> tuple[Hashable, ...]:
        """The chains that were read: while neither they nor the built-in chain change, the result is the same."""
        return tuple(self._chains)

    def drop(self, steps: Iterable[Step], *, policy: bool) -> Drop | None:
        """Return what drops every packet that reaches it; None if nothing does. `policy` is True for policy DROP."""
        for index, step in enumerate(steps):
            if not step.always or step.action is Action.NOTHING:
                continue
            fate = self._fate_of(step, 0)
            if fate.end is _End.RETURNS and step.action is Action.JUMP:
                continue
            dropped = fate.end is _End.DROPS or (fate.end is _End.RETURNS and policy)
            return Drop(index) if dropped and not self._decides_more(fate) else None
        return Drop() if policy else None

    def _decides_more(self, fate: _Fate) -> bool:
        return fate.narrow or any(self._may_drop(chain, 1) for chain in fate.maybe)

    def _fate_of(self, step: Step, depth: int) -> _Fate:
        """Return the fate of all packets at a rule that matches each of them."""
        if step.action in (Action.JUMP, Action.GOTO):
            return self._fate(step.chain, depth + 1)
        ends = {Action.DROP: _End.DROPS, Action.RETURN: _End.RETURNS}
        return _Fate(ends.get(step.action, _End.DECIDED))

    def _fate(self, chain: Hashable, depth: int) -> _Fate:
        if chain == self.own:
            return _Fate(_End.RETURNS)
        if chain not in self._fates:
            steps = self._steps(chain, depth)
            self._fates[chain] = _Fate(_End.RETURNS, narrow=True) if steps is None else self._follow(steps, depth)
        return self._fates[chain]

    def _follow(self, steps: Sequence[Step], depth: int) -> _Fate:
        narrow = returns = False
        maybe: tuple[Hashable, ...] = ()
        for step in steps:
            if step.action is Action.NOTHING:
                continue
            if not step.always:
                narrow = narrow or step.action in (Action.DROP, Action.OTHER)
                returns = returns or step.action in (Action.RETURN, Action.GOTO)
                maybe += (step.chain,) if step.action in (Action.JUMP, Action.GOTO) else ()
                continue
            fate = self._fate_of(step, depth)
            narrow, maybe = narrow or fate.narrow, maybe + fate.maybe
            if fate.end is _End.RETURNS and step.action is Action.JUMP:
                continue
            if returns and fate.end is not _End.RETURNS:  # some packets pass, so the chain ends nothing
                return _Fate(_End.RETURNS, narrow or fate.end is _End.DROPS, maybe)
            return _Fate(fate.end, narrow, maybe)
        return _Fate(_End.RETURNS, narrow, maybe)

    def _may_drop(self, chain: Hashable, depth: int) -> bool:
        """Return True if any rule in the chain, or in one that it leads to, drops packets."""
        if chain == self.own:
            return False
        if chain not in self._dropping:
            steps = self._steps(chain, depth)
            self._dropping[chain] = steps is None or any(self._drops(step, depth) for step in steps)
        return self._dropping[chain]

    def _drops(self, step: Step, depth: int) -> bool:
        if step.action in (Action.JUMP, Action.GOTO):
            return self._may_drop(step.chain, depth + 1)
        return step.action in (Action.DROP, Action.OTHER)

    def _steps(self, chain: Hashable, depth: int) -> Sequence[Step] | None:
        """Return the rules of a chain; None beyond the limits."""
        if depth > MAX_DEPTH:
            return None
        if chain not in self._chains:
            if len(self._chains) >= MAX_CHAINS:
                return None
            self._chains[chain] = self.read(chain)
        return self._chains[chain]
