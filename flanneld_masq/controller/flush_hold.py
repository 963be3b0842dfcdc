"""How long a repair waits for the end of a flush by single commands. Pure: the time comes in.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from functools import reduce

from flanneld_masq.model import SLOTS, Group
from flanneld_masq.ruleset.flush import Flush, FlushPolicy

LOOK_SECONDS = 0.02  # between two looks


@dataclass(frozen=True, **SLOTS)
class Patience:
    """`masquerade` and `forward` are the seconds that these groups wait at most. After `quiet` seconds without a
    further commit a flush has ended."""

    masquerade: float
    forward: float
    quiet: float

    def or_more(self, other: Patience) -> Patience:
        pairs = ((self.masquerade, other.masquerade), (self.forward, other.forward), (self.quiet, other.quiet))
        return Patience(*map(max, pairs))


# firewalld with IndividualCalls=yes goes on for seconds, on a busy machine 2.5 s until its last rule of FORWARD.
BY_COMMANDS = Patience(masquerade=0.2, forward=5.0, quiet=0.2)
# A firewall script begins with a policy, which brings the forward group, and flushes next.
BEFORE_FLUSH = Patience(masquerade=0.0, forward=0.2, quiet=0.05)
# As firewalld flushes, up to three times before it loads its rules. It begins with all tables.
BY_RESTORE = Patience(masquerade=0.0, forward=2.0, quiet=0.8)
# The kernel reports 15 characters of a name.
_PROGRAMS = ("iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "xtables-nft-multi")
_COMMANDS = frozenset(program[:15] for program in _PROGRAMS)
_RESTORES = frozenset(f"{program}-restore"[:15] for program in _PROGRAMS) - _COMMANDS


def patience_with(flush: Flush, names: Collection[str], *, counted: bool = True) -> Patience | None:
    """Return the patience with a flush by programs of these names; None if none of them flushes in several steps.
    Without `counted` the kernel reports no names.

    iptables-restore does what it does at once. Only the program that starts it may have more to do, and that is certain
    if it has left no rule at all.
    """
    commands = not counted or _COMMANDS.intersection(names)
    found = [BY_COMMANDS if flush.flushed else BEFORE_FLUSH] if commands else []
    found += [BY_RESTORE] if flush.whole and _RESTORES.intersection(names) else []
    return reduce(Patience.or_more, found) if found else None


@dataclass
class FlushHold:
    """One pass that begins with `policy`, and lets a flush that it reports end before it repairs anything.

    The forward group waits longer than the masquerade group: its jump is a rule in a chain that the other program is
    about to fill by numbers.
    """

    policy: FlushPolicy
    _patience: Patience | None = None  # the most of all reports, if the first one has any
    _since: dict[Group, float] = field(default_factory=dict)  # when each group was first seen to be broken
    _moved: float = -math.inf
    _sign: Hashable = None

    def pause(self, flush: Flush, commits: int, patience: Patience | None, now: float) -> float:
        """Return the seconds until the next look, and set the policy of that look. `commits` counts those of all
        programs."""
        if self._patience is not None and patience is not None:
            patience = self._patience.or_more(patience)
        self._patience = patience or self._patience
        if self._patience is None:
            self.policy = FlushPolicy.REPAIR
            return 0.0
        self._since = {group: self._since.get(group, now) for group in flush.broken}
        if (commits, flush) != self._sign:
            self._sign, self._moved = (commits, flush), now
        masquerade = self._since.get(Group.MASQUERADE, math.inf) + self._patience.masquerade - now
        forward = self._since.get(Group.FORWARD, math.inf) + self._patience.forward - now
        quiet = self._moved + self._patience.quiet - now
        if min(quiet, forward) <= 0 or (masquerade <= 0 and Group.FORWARD not in self._since):
            self.policy = FlushPolicy.REPAIR
        else:
            self.policy = FlushPolicy.FORWARD_WAITS if masquerade <= 0 else FlushPolicy.WAIT
        return max(0.0, min(quiet, forward, masquerade, LOOK_SECONDS))
