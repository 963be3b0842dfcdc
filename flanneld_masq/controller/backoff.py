"""How often we undo what somebody keeps doing. Pure: the time comes in."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 10.0  # repairs at once
REFILL_PER_SECOND = 2.0  # and so many a second for ever
FIRST_DELAY, LAST_DELAY = 0.1, 30.0  # seconds
QUIET_SECONDS = 10.0


@dataclass
class RepairBackoff:
    """Repairs are free while they are few. Once the budget is spent the state is `contended`: each further
    repair waits twice as long as the one before, until there is nothing to repair for QUIET_SECONDS.

    All times are seconds of one monotonic clock.
    """

    tokens: float = BURST
    contended: bool = False
    not_before: float = 0.0
    _delay: float = 0.0
    _last: float = 0.0

    def repaired(self, now: float) -> None:
        """Somebody had changed our rules, and we changed them back."""
        self.tokens = min(BURST, self.tokens + (now - self._last) * REFILL_PER_SECOND) - 1
        self._last = now
        if self.contended or self.tokens < 0:
            self.contended = True
            self._delay = min(max(self._delay * 2, FIRST_DELAY), LAST_DELAY)
            self.not_before = now + self._delay

    def in_order(self, now: float) -> bool:
        """Nothing was to repair. Whether that ends a contention."""
        if not self.contended or now < max(self.not_before, self._last + QUIET_SECONDS):
            return False
        self.tokens, self.contended, self._delay, self.not_before = BURST, False, 0.0, 0.0
        return True

    def due(self, now: float) -> float | None:
        """Seconds until it is worth looking whether a contention is over; None where there is none."""
        return max(0.0, max(self.not_before, self._last + QUIET_SECONDS) - now) if self.contended else None
