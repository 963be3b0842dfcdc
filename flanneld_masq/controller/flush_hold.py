"""How long a repair waits for the end of a flush by single commands. Pure: the time comes in.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from flanneld_masq.model import Group
from flanneld_masq.ruleset.flush import Flush, FlushPolicy

QUIET_SECONDS = 0.15  # without a further command a flush has ended
MAX_HOLD_SECONDS = 0.2
MAX_FORWARD_HOLD_SECONDS = 1.0
LOOK_SECONDS = 0.02  # between two looks
# Programs that flush. The kernel reports 15 characters of a name.
FLUSHING = frozenset(
    f"{program}{action}"[:15]
    for program in ("iptables", "ip6tables", "iptables-nft", "ip6tables-nft", "xtables-nft-multi")
    for action in ("", "-restore")
)


@dataclass
class FlushHold:
    """One pass that begins with `policy`, and lets a flush that it reports end before it repairs anything.

    Pods are without masquerade for MAX_HOLD_SECONDS at most, also if the commands go on. The forward group waits
    longer: its jump is a rule in a chain that the other program is about to fill by numbers.
    """

    policy: FlushPolicy
    _since: dict[Group, float] = field(default_factory=dict)  # when each group was first seen to be broken
    _moved: float = -math.inf
    _sign: Hashable = None

    def pause(self, flush: Flush, commits: int, now: float) -> float:
        """Return the seconds until the next look, and set the policy of that look. `commits` counts those of all
        programs."""
        self._since = {group: self._since.get(group, now) for group in flush.broken}
        if (commits, flush) != self._sign:
            self._sign, self._moved = (commits, flush), now
        masquerade = self._since.get(Group.MASQUERADE, math.inf) + MAX_HOLD_SECONDS - now
        forward = self._since.get(Group.FORWARD, math.inf) + MAX_FORWARD_HOLD_SECONDS - now
        quiet = self._moved + QUIET_SECONDS - now
        if min(quiet, forward) <= 0 or (masquerade <= 0 and Group.FORWARD not in self._since):
            self.policy = FlushPolicy.REPAIR
        else:
            self.policy = FlushPolicy.FORWARD_WAITS if masquerade <= 0 else FlushPolicy.WAIT
        return max(0.0, min(quiet, forward, masquerade, LOOK_SECONDS))
