"""When the next pass of a family is due, and for which reasons. Pure: the time comes in.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from flanneld_masq.controller.backoff import FIRST_RETRY_SECONDS, LAST_DELAY, RepairBackoff, retry_delay
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import SLOTS

RULESET_CHANGED, EVENTS_LOST, TABLES_CHANGED = "ruleset changed", "ruleset events lost", "legacy tables changed"
RESYNC, RETRY = "resync", "retry"
CHANGES_BY_OTHERS = frozenset({RULESET_CHANGED, EVENTS_LOST, TABLES_CHANGED, RESYNC})

MAX_HELD_BY_FAILURE = 5.0  # an event may come with the end of the trouble, so it waits no longer than this
MAX_SETTLE_SECONDS = 0.05
GRID_SECONDS = 5.0  # a resync falls on a multiple of this time, on which polls fall too
MAX_STEP_SECONDS = 120.0  # one step of a pass: twice the time limit of the slowest tool
# Programs that commit several times in a row, and the pause after which such a row has ended. firewalld flushes and
# then rebuilds, and would flush the daemon's rules again. iptables-restore goes from table to table and fails if it has
# to read the ruleset again in between: "CHAIN_DEL failed (No such file or directory)". The kernel reports 15 characters
# of a name.
SETTLE_SECONDS = {
    "firewalld": 0.03,
    **{
        f"{tools}{flavour}-restore"[:15]: 0.006
        for tools in ("iptables", "ip6tables", "ebtables", "arptables")
        for flavour in ("", "-nft")
    },
}


@dataclass(frozen=True, **SLOTS)
class Begun:
    """A pass that began: `reasons` as they were marked, `reprobe` if the backends are to be probed again.

    `asked` is True if a reload asked for that.
    """

    reasons: tuple[str, ...]
    because: str
    reprobe: bool
    asked: bool

    @property
    def is_resync(self) -> bool:
        return RESYNC in self.reasons


@dataclass
class GapClock:
    """Measures how long rules are not as wanted: from the first notice of a change to the end of its repair.

    A change that no event announces, which only a resync finds, counts from the beginning of that pass.
    """

    _pending: float = math.inf  # the first notice since the last pass began
    _since: float = math.inf  # the first notice that a pass took up
    _drifted: bool = False

    def noticed(self, now: float) -> None:
        """Note a time, in seconds, at which another program may have changed the rules."""
        self._pending = min(self._pending, now)

    def dropped(self) -> None:
        """Forget the pending notices, because they need no pass."""
        self._pending = math.inf

    def begin(self, now: float) -> None:
        """Begin a pass at this time. If a pass before it failed, the gap goes on: its rules may still be wrong."""
        self._since = min(self._since, self._pending, now)
        self._pending = math.inf

    def drifted(self) -> None:
        """Note that the pass repaired a change by another program."""
        self._drifted = True

    def end(self, now: float) -> float:
        """End the gap, because the rules are as wanted. Return its length in seconds; 0 if nothing was repaired."""
        seconds = max(0.0, now - self._since) if self._drifted else 0.0
        self._since, self._drifted = math.inf, False
        return seconds


@dataclass
class Schedule:
    """Collects the reasons for the next pass of one family, and knows how long each pass has to wait.

    Failures are retried after growing delays. Repairs that another program keeps undoing spend the repair back-off.
    """

    passing: bool = False  # between `begin` and `end`
    failures: int = 0  # in a row
    backoff: RepairBackoff = field(default_factory=RepairBackoff)
    gap: GapClock = field(default_factory=GapClock)
    _reasons: dict[str, None] = field(default_factory=dict)
    _urgent: bool = False
    _reprobe: bool = False
    _failed_at: float = -math.inf
    _step_due: float = math.inf
    _waits: bool = False

    @property
    def dirty(self) -> bool:
        """True if there is a reason for a pass."""
        return bool(self._reasons)

    @property
    def urgent(self) -> bool:
        """True if one of the reasons does not wait for the end of a contention or of a retry delay."""
        return self._urgent

    @property
    def reprobe_pending(self) -> bool:
        """True if a reload came after the last pass began."""
        return self._reprobe

    def mark(self, reason: str, *, reprobe: bool = False, urgent: bool = True) -> None:
        """Note a reason for a pass. Changes by other programs are never urgent."""
        self._reasons[reason] = None
        self._reprobe = self._reprobe or reprobe
        self._urgent = self._urgent or (urgent and reason not in CHANGES_BY_OTHERS)

    def take(self) -> tuple[str, ...]:
        """Return the reasons up to now, and start to collect those of the next pass."""
        reasons = tuple(self._reasons)
        self._reasons.clear()
        self._urgent = False
        return reasons

    def begin(self, reasons: tuple[str, ...]) -> Begun:
        """Begin a pass for these reasons."""
        again = RETRY if self.failures else RESYNC
        because = ", ".join(again if reason == RESYNC else reason for reason in reasons) or again
        begun = Begun(reasons, because, self._reprobe or self.failures > 0, self._reprobe)
        self._reprobe, self.passing = False, True
        return begun

    def succeeded(self) -> None:
        """The kernel holds the desired state."""
        self.failures = 0
        self._waits = False

    def failed(self, now: float, *, waits: bool = False) -> None:
        """The pass failed. `waits` is True if it only waited for another program, in vain."""
        self.failures += 1
        self._failed_at = now
        self._waits = waits

    @property
    def retry_delay(self) -> float:
        """The seconds from the last failure to the next try."""
        return FIRST_RETRY_SECONDS if self._waits else retry_delay(self.failures)

    def end(self) -> None:
        """End the pass."""
        self.passing = False

    def next(self, now: float, resync: float) -> float:
        """Return the seconds until the next pass if no event comes before."""
        if self.failures:
            return self.retry_delay
        quiet, turn = self.backoff.due(now), until_turn(now, resync)
        return turn if quiet is None else min(quiet, turn)

    def held_until(self) -> float:
        """Return the time before which only an urgent reason begins a pass."""
        retry = min(self.retry_delay, MAX_HELD_BY_FAILURE)
        return max(self.backoff.not_before, self._failed_at + retry)

    def expect(self, now: float, seconds: float = 0.0) -> None:
        """Note that the next step of the loop begins within so many seconds, for the watchdog."""
        self._step_due = now + seconds + MAX_STEP_SECONDS

    def expect_hold(self, now: float) -> None:
        """The next step of the loop may be held back by a contention."""
        self.expect(now, LAST_DELAY)

    def hangs(self, now: float, moved: float) -> bool:
        """Return True if the loop should have gone on by now.

        A pass of many steps goes on with each of them: `moved` is when a tool of the family last started or ended.
        """
        return now > max(self._step_due, moved + MAX_STEP_SECONDS)


def until_turn(now: float, seconds: float) -> float:
    """Return the seconds until the last turn of GRID_SECONDS within `seconds`, or `seconds` if that is below two turns.

    So families and polls wake the process together.
    """
    if seconds < 2 * GRID_SECONDS:
        return seconds
    return math.floor((now + seconds) / GRID_SECONDS) * GRID_SECONDS - now


def settle_seconds(transactions: Iterable[Transaction]) -> float:
    """Return the seconds to wait for further commits by the programs that made these transactions."""
    return max((SETTLE_SECONDS.get(transaction.name, 0.0) for transaction in transactions), default=0.0)
