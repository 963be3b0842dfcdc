"""Which failures are logged, and how often. Pure: the time comes in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

BURST = 5.0  # lines at once
REFILL_PER_SECOND = 1 / 60  # and so many a second without end
_NUMBER = re.compile(r"\d+")


@dataclass
class LogThrottle:
    """The rate limit of failures in the log.

    A failure is logged once until a pass succeeds again, whatever the numbers in it. Failures that come and go are
    logged a few times at once, and then once a minute.

    All times are seconds of one monotonic clock.
    """

    _tokens: float = BURST
    _last: float = 0.0
    _left_out: int = 0
    _logged: set[str] = field(default_factory=set)

    def line(self, failure: str, now: float) -> Optional[str]:
        """Return the line to log for a failure; None for nothing."""
        kind = _NUMBER.sub("0", failure)
        if kind in self._logged:
            return None
        self._tokens = min(BURST, self._tokens + (now - self._last) * REFILL_PER_SECOND)
        self._last = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        self._logged.add(kind)
        before, self._left_out = self._left_out, 0
        return f"{failure} (failures before this one that were not logged: {before})" if before else failure

    def over(self) -> bool:
        """A pass succeeded. Return True if a failure that is over now had been logged."""
        logged = bool(self._logged)
        self._logged.clear()
        return logged
