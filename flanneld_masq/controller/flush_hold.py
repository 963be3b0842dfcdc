"""How long a repair waits for the end of a flush by single commands. Pure: the time comes in.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import reduce

from flanneld_masq.model import SLOTS, Group
from flanneld_masq.ruleset.flush import Flush, FlushPolicy

LOOK_SECONDS = 0.02  # between two looks
MAX_FORWARD_SECONDS = 1.0


@dataclass(frozen=True, **SLOTS)
class Patience:
    """`masquerade` are the seconds that this group waits at most. After `quiet` seconds without a further commit a
    flush has ended."""

    masquerade: float
    quiet: float

    def or_more(self, other: Patience) -> Patience:
        return Patience(max(self.masquerade, other.masquerade), max(self.quiet, other.quiet))


BY_COMMANDS = Patience(0.2, 0.2)
BY_RESTORE = Patience(0.0, 0.4)  # as firewalld flushes, three times before it loads its rules
# The kernel reports 15 characters of a name.
_PATIENCE = {
    f"{program}{action}"[:15]: patience
    for program in ("iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "xtables-nft-multi")
    for action, patience in (("-restore", BY_RESTORE), ("", BY_COMMANDS))
}


def patience_with(names: Iterable[str]) -> Patience | None:
    """Return the patience with a flush by programs of these names; None if none of them flushes in several steps."""
    found = [_PATIENCE[name] for name in names if name in _PATIENCE]
    return reduce(Patience.or_more, found) if found else None


@dataclass
class FlushHold:
    """One pass that begins with `policy`, and lets a flush that it reports end before it repairs anything.

    The forward group waits longer than the masquerade group: its jump is a rule in a chain that the other program is
    about to fill by numbers.
    """

    policy: FlushPolicy
    _since: dict[Group, float] = field(default_factory=dict)  # when each group was first seen to be broken
    _moved: float = -math.inf
    _sign: Hashable = None

    def pause(self, flush: Flush, commits: int, patience: Patience | None, now: float) -> float:
        """Return the seconds until the next look, and set the policy of that look. `commits` counts those of all
        programs."""
        if patience is None:
            self.policy = FlushPolicy.REPAIR
            return 0.0
        self._since = {group: self._since.get(group, now) for group in flush.broken}
        if (commits, flush) != self._sign:
            self._sign, self._moved = (commits, flush), now
        masquerade = self._since.get(Group.MASQUERADE, math.inf) + patience.masquerade - now
        forward = self._since.get(Group.FORWARD, math.inf) + MAX_FORWARD_SECONDS - now
        quiet = self._moved + patience.quiet - now
        if min(quiet, forward) <= 0 or (masquerade <= 0 and Group.FORWARD not in self._since):
            self.policy = FlushPolicy.REPAIR
        else:
            self.policy = FlushPolicy.FORWARD_WAITS if masquerade <= 0 else FlushPolicy.WAIT
        return max(0.0, min(quiet, forward, masquerade, LOOK_SECONDS))
