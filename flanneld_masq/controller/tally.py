"""Counts the repairs of one family, by backend, kind of damage and author, and the time without the right rules. Pure.

The numbers become metrics, so the number of their labels is bounded: another program chooses its name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flanneld_masq.controller.status import LastWrite, RepairCount, Totals
from flanneld_masq.model import BackendName, Change, ChangeKind

MAX_AUTHORS = 20  # names; the repairs that further programs caused are counted together
OTHERS, NOBODY = "others", "unknown"
_WORST_FIRST = (ChangeKind.MISSING, ChangeKind.CHANGED, ChangeKind.MOVED, ChangeKind.EXTRA, ChangeKind.UNVERIFIED)
_Key = tuple[BackendName, ChangeKind, str]


@dataclass
class Tally:
    """The counts since the daemon's start. `gap_us` is the time that rules were not as wanted, in microseconds."""

    contentions: int = 0
    gap_us: int = 0
    _by_author: dict[_Key, int] = field(default_factory=dict)

    @property
    def repairs(self) -> int:
        return sum(self._by_author.values())

    @property
    def totals(self) -> Totals:
        counts = (RepairCount(*key, count) for key, count in self._by_author.items())
        return Totals(tuple(counts), self.contentions, self.gap_us)

    def add(self, write: LastWrite) -> None:
        """Count a repair, for the most suspicious of its culprits."""
        author = self._label(write.culprits[-1].name) if write.culprits else NOBODY
        key = (write.backend, _worst(write.changes), author)
        self._by_author[key] = self._by_author.get(key, 0) + 1

    def _label(self, name: str) -> str:
        known = {author for _, _, author in self._by_author} - {OTHERS, NOBODY}
        return name if name in known or len(known) < MAX_AUTHORS else OTHERS


def _worst(changes: tuple[Change, ...]) -> ChangeKind:
    kinds = {change.kind for change in changes}
    return next((kind for kind in _WORST_FIRST if kind in kinds), ChangeKind.UNVERIFIED)
