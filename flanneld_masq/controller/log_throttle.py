"""Which failures and repairs are logged, and how often. Pure: the time comes in.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

FAILURE_BURST = 5.0  # lines at once
DRIFT_BURST = 20.0  # the same of repairs, for each author
REFILL_PER_SECOND = 1 / 60  # and so many a second without end
MAX_AUTHORS = 64  # of more, the one that was quiet the longest is forgotten
_NUMBER = re.compile(r"\d+")


@dataclass
class TokenBucket:
    """Grants `burst` lines at once and then REFILL_PER_SECOND. `left_out` lines came in vain since the last one that
    was granted."""

    burst: float
    left_out: int = 0
    _spent: float = 0.0
    _last: float = 0.0

    def take(self, now: float) -> bool:
        """Take one line, if there is one."""
        self._spent = max(0.0, self._spent - (now - self._last) * REFILL_PER_SECOND)
        self._last = now
        if self._spent > self.burst - 1:
            self.left_out += 1
            return False
        self._spent += 1
        return True

    def reported(self) -> int:
        """Return the number of lines left out, which the caller now reports."""
        left_out, self.left_out = self.left_out, 0
        return left_out


@dataclass
class LogThrottle:
    """The rate limit of failures in the log.

    A failure is logged once until a pass succeeds again, whatever the numbers in it. Failures that come and go are
    logged a few times at once, and then once a minute.
    """

    _bucket: TokenBucket = field(default_factory=lambda: TokenBucket(FAILURE_BURST))
    _logged: set[str] = field(default_factory=set)

    def line(self, failure: str, now: float) -> Optional[str]:
        """Return the line to log for a failure; None for nothing."""
        kind = _NUMBER.sub("0", failure)
        if kind in self._logged or not self._bucket.take(now):
            return None
        self._logged.add(kind)
        before = self._bucket.reported()
        return f"{failure} (failures before this one that were not logged: {before})" if before else failure

    def over(self) -> bool:
        """A pass succeeded. Return True if a failure that is over now had been logged."""
        logged = bool(self._logged)
        self._logged.clear()
        return logged


@dataclass
class DriftThrottle:
    """The rate limit of repairs in the log, one for each author. An author is the name of the most likely program,
    empty if none is known. Pids do not count, because a program that runs every few seconds has a new one each time."""

    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def line(self, repair: str, author: str, now: float) -> Optional[str]:
        """Return the line to log for a repair; None if the author had too many."""
        bucket = self._buckets.pop(author, None) or TokenBucket(DRIFT_BURST)
        if len(self._buckets) >= MAX_AUTHORS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[author] = bucket
        if not bucket.take(now):
            return None
        before = bucket.reported()
        by = f" by {author}" if author else ""
        return f"{repair} (repairs of changes{by} before this one that were not logged: {before})" if before else repair
