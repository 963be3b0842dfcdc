"""Heals connections of one family: deletes those that have the wrong source address and have seen no reply.

The next packet of such a connection begins it again, under the rules in force.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from flanneld_masq.kernel.conntrack import Conntrack, Entry, is_local
from flanneld_masq.model import SLOTS, Address, Family, Group
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.ruleset import policy
from flanneld_masq.ruleset.healing import is_wrong

STEP_SECONDS = 0.01  # how long a repair may have to wait for a step, besides the kernel's own reading
MAX_SECONDS = 10.0  # of all steps together; enough for half a million unanswered connections
_MAX_REMEMBERED = 10_000  # destinations


class ConnectionTable(Protocol):
    """The tracked connections of one family, as `Conntrack` has them."""

    def unanswered(self) -> Iterator[Iterator[Entry]]:
        """Yield the connections that have seen no reply, some at a time."""

    def delete_unanswered(self, entry: Entry) -> bool:
        """Delete a connection unless it was answered meanwhile. Return True if it was deleted."""

    def close(self) -> None:
        """Close it, also before all connections were read."""


@dataclass(frozen=True, **SLOTS)
class Healed:
    """The result of a search. `slipped` counts connections that had begun without masquerade, `masqueraded` those that
    were masqueraded although the rules say no. `duration_us` is the time of all steps in microseconds. `complete` is
    False if the search ended early because it took MAX_SECONDS."""

    slipped: int = 0
    masqueraded: int = 0
    duration_us: int = 0
    complete: bool = True

    @property
    def flows(self) -> int:
        return self.slipped + self.masqueraded


class Search:
    """Goes once through the connections of one family, in steps. For one thread, in the node's network namespace.

    `local` returns True if packets to an address end on this node: their connections pass no masquerade rule.
    `clock` counts seconds.
    """

    def __init__(
        self,
        family: Family,
        desired_state: DesiredState,
        open_table: Callable[[Family], ConnectionTable] = Conntrack,
        *,
        local: Callable[[Address], bool] = is_local,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        leases = (lease.of(family) for lease in desired_state.leases)
        self._subnets = tuple(lease.subnet for lease in leases if lease is not None)
        groups = policy.group_rules(
            desired_state.settings, desired_state.leases, family, exceptions=desired_state.exceptions
        )
        self._rules = policy.rules_of(groups, Group.MASQUERADE)
        self._open = partial(open_table, family)
        self._local = local
        self._clock = clock
        self._known: dict[Address, bool] = {}  # destinations, and whether they are on this node
        self._table: ConnectionTable | None = None
        self._batches: Iterator[Iterator[Entry]] = iter(())
        self._counts = {False: 0, True: 0}  # healed connections, by whether they had source NAT
        self._spent = 0.0  # seconds
        self._cut_short = False

    @property
    def healed(self) -> Healed:
        """The result so far."""
        return Healed(self._counts[False], self._counts[True], round(self._spent * 1_000_000), not self._cut_short)

    def step(self, seconds: float = STEP_SECONDS) -> bool:
        """Search for about so many seconds. Return True if there is more to do.

        Raises KernelError; then there is no further step.
        """
        if not self._rules:
            return False
        began = self._clock()
        try:
            more = self._go_on(began + min(seconds, MAX_SECONDS - self._spent))
        except BaseException:
            self.close()
            raise
        self._spent += self._clock() - began
        self._cut_short = more and self._spent >= MAX_SECONDS
        if more and not self._cut_short:
            return True
        self.close()
        return False

    def close(self) -> None:
        """End the search."""
        if self._table is not None:
            self._table.close()

    def _go_on(self, deadline: float) -> bool:
        """Return True if there is more to do at the deadline."""
        if self._table is None:
            self._table = self._open()
            self._batches = self._table.unanswered()
        for batch in self._batches:
            for entry in batch:
                self._look_at(entry)
            if self._clock() >= deadline:
                return True
        return False

    def _look_at(self, entry: Entry) -> None:
        flow = entry.flow
        if not is_wrong(flow, self._rules, self._subnets) or self._ends_here(flow.dst):
            return
        if self._table is not None and self._table.delete_unanswered(entry):
            self._counts[flow.source_nat] += 1

    def _ends_here(self, address: Address) -> bool:
        if address not in self._known:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[address] = self._local(address)
        return self._known[address]


def heal(family: Family, desired_state: DesiredState) -> Healed:
    """Search through all connections of a family at once. Raises KernelError."""
    search = Search(family, desired_state)
    while search.step():
        pass
    return search.healed
