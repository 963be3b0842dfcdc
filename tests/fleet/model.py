"""Multiplies what one node was measured to cost by the nodes of a fleet, and places it in time. Pure.

Seconds are those of one clock that begins with the event. Moments are when it reaches each node.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flanneld_masq.controller.log_throttle import DriftThrottle
from flanneld_masq.model import SLOTS


@dataclass(frozen=True, **SLOTS)
class Cost:
    """The cost of one event on one node: journal entries, the bytes that the daemon sends to journald for them, and CPU
    seconds of the daemon and of the commands that belong to the event."""

    entries: float = 0.0
    size: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.entries + other.entries, self.size + other.size, self.cpu + other.cpu)

    def times(self, number: float) -> Cost:
        """Return the cost of so many."""
        return Cost(self.entries * number, self.size * number, self.cpu * number)


@dataclass(frozen=True, **SLOTS)
class Load:
    """The load of an event on a fleet: the sum of all nodes, `seconds` from its first moment to the end of the last
    second with a node, and the most entries in one of these seconds."""

    total: Cost
    seconds: float
    peak_entries: float


def load(moments: Sequence[float], cost: Cost) -> Load:
    """Return the load of an event that reaches one node at each of `moments`. There is at least one."""
    busiest = max(Counter(int(moment) for moment in moments).values())
    seconds = int(max(moments)) + 1.0
    return Load(cost.times(len(moments)), seconds, cost.entries * busiest)


def in_batches(nodes: int, batch: int, seconds: float) -> list[float]:
    """Return the moments of a rollout: `batch` nodes at once, and the next ones after so many seconds."""
    return [node // batch * seconds for node in range(nodes)]


def jittered(nodes: int, seconds: float, seed: int = 0) -> list[float]:
    """Return moments at random, spread evenly over so many seconds."""
    chance = random.Random(seed)
    return [chance.uniform(0.0, seconds) for _ in range(nodes)]


def drift_lines(repairs: int, every: float) -> int:
    """Return how many of so many repairs, one every so many seconds and all by one author, the daemon logs. The answer
    is that of the daemon's own rate limit."""
    throttle = DriftThrottle()
    return sum(throttle.line("repair", "author", number * every) is not None for number in range(repairs))


def scraped(nodes: int, size: int, interval: float) -> float:
    """Return bytes a second of all nodes, if each is scraped once in `interval` seconds for `size` bytes."""
    return nodes * size / interval
