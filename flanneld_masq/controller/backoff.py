"""Delays after failures, and the back-off of repairs that another program keeps undoing. Pure: the time comes in."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 60.0
BURST = 10.0  # repairs at once
REFILL_PER_SECOND = 2.0  # and so many a second without end
FIRST_DELAY, LAST_DELAY = 0.1, 30.0  # seconds
QUIET_SECONDS = 10.0


def retry_delay(failures: int) -> float:
    """Return the seconds until the next try after so many failures in a row: doubled each time, at most 60."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(max(failures - 1, 0), 16), LAST_RETRY_SECONDS)


@dataclass
class RepairBackoff:
    """The back-off of repairs. Repairs are free while they are few. Once the burst is spent the state is `contended`:
    each further repair waits twice as long as the one before, until there is nothing to repair for QUIET_SECONDS.

    All times are seconds of one monotonic clock.
    """

    tokens: float = BURST
    contended: bool = False
    not_before: float = 0.0
    _delay: float = 0.0
    _last: float = 0.0

    def repaired(self, now: float) -> None:
        """Note a repair of rules that another program had changed."""
        self.tokens = min(BURST, self.tokens + (now - self._last) * REFILL_PER_SECOND) - 1
        self._last = now
        if self.contended or self.tokens < 0:
            self.contended = True
            self._delay = min(max(self._delay * 2, FIRST_DELAY), LAST_DELAY)
            self.not_before = now + self._delay

    def in_order(self, now: float) -> bool:
        """Nothing was to repair. Return True if that ends a contention."""
        if not self.contended or now < max(self.not_before, self._last + QUIET_SECONDS):
            return False
        self.tokens, self.contended, self._delay, self.not_before = BURST, False, 0.0, 0.0
        return True

    def due(self, now: float) -> float | None:
        """Return the seconds until a contention can be over; None if there is none."""
        return max(0.0, max(self.not_before, self._last + QUIET_SECONDS) - now) if self.contended else None
