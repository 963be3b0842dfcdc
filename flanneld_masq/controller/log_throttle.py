"""Which failures are worth a line of the log. Pure: the time comes in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

BURST = 5.0  # lines at once
REFILL_PER_SECOND = 1 / 60  # and so many a second for ever
_NUMBER = re.compile(r"\d+")


@dataclass
class LogThrottle:
    """A failure is told once until things are right again, whatever the numbers in it. Of failures that come and go
    a few are told at once, and then one a minute.

    All times are seconds of one monotonic clock.
    """

    _tokens: float = BURST
    _last: float = 0.0
    _left_out: int = 0
    _told: set[str] = field(default_factory=set)

    def line(self, failure: str, now: float) -> Optional[str]:
        """What to log of a failure; None for nothing."""
        kind = _NUMBER.sub("0", failure)
        if kind in self._told:
            return None
        self._tokens = min(BURST, self._tokens + (now - self._last) * REFILL_PER_SECOND)
        self._last = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        self._told.add(kind)
        before, self._left_out = self._left_out, 0
        return f"{failure} (failures before this one that were not logged: {before})" if before else failure

    def over(self) -> bool:
        """Things are right. Whether a failure had been told that is over now."""
        told = bool(self._told)
        self._told.clear()
        return told
