"""Reads kube-proxy's mark from the nat table of ip_tables, which has no events and may hold 80,000 rules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from flanneld_masq.kernel.kube_proxy import IPTABLES_CHAIN, usable
from flanneld_masq.model import Mark, MarkEvidence
from flanneld_masq_iptables.sockopt import TableInfo, is_small
from flanneld_masq_iptables.xt_entries import Entries

TABLE = "nat"
READ_SECONDS = 5.0
STALE_SECONDS = 600.0


class LegacyMarkReader:
    """Keeps the mark that the table held when it was last read.

    A table whose shape has changed, or that is small, is read again after READ_SECONDS. A large table with unchanged
    number and size of rules is read again only after STALE_SECONDS: a read takes 30 ms for 80,000 rules, and kube-proxy
    changes its mark only when it restarts with another option. Entries that were read for another purpose are passed to
    `note`.
    """

    def __init__(self, info: TableInfo, clock: Callable[[], float] = time.monotonic) -> None:
        self._info = info
        self._clock = clock
        self._shape = b""
        self._read_at = -math.inf
        self._mark: Mark | None = None

    def read(self) -> MarkEvidence | None:
        """Return the mark of a table that exists; None if no chain of it sets one. Raises KernelError."""
        shape = self._info.read(TABLE)
        wait = READ_SECONDS if shape != self._shape or is_small(shape) else STALE_SECONDS
        if self._clock() >= self._read_at + wait:
            with self._info.entries(TABLE) as entries:
                self.note(shape, entries)
        return self.last

    @property
    def known(self) -> bool:
        """True once the table was read."""
        return self._read_at > -math.inf

    @property
    def last(self) -> MarkEvidence | None:
        """The answer of the last reading."""
        return None if self._mark is None else MarkEvidence(self._mark, f"chain {IPTABLES_CHAIN} of legacy table nat")

    def note(self, shape: bytes, entries: Entries) -> None:
        """Take the mark from entries that were read just after the table had that shape."""
        if shape == self._shape and self._clock() < self._read_at + STALE_SECONDS and not is_small(shape):
            return
        values = entries.marks(IPTABLES_CHAIN)
        self._mark = next((mark for value, mask in values if (mark := usable(value, mask)) is not None), None)
        self._shape, self._read_at = shape, self._clock()
