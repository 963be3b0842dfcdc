"""Our masquerade rules as the kernel holds them, and for how long they were not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Union

from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_nft import render

from flanneld_masq.kernel.expressions import jump_target
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import BackendName, Family, Group
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.topology import Topology

from ..common import eventually

BACKENDS = tuple(map(BackendName, ("nft", "iptables-nft", "iptables-legacy")))
_PLACE = PLACES[Group.MASQUERADE]


class NftRules:
    """In nf_tables: the daemon's chain, and with iptables-nft the jumps to it. A look takes microseconds."""

    pause = 0.001  # seconds between two looks

    def __init__(self, topology: Topology, backend: BackendName) -> None:
        with topology.node.entered():
            self._netlink = Nfnetlink()
        self._own = (render.TABLE, render.CHAINS[Group.MASQUERADE].name)
        self._base = ""
        if backend != "nft":
            self._own, self._base = (_PLACE.table, _PLACE.chain), _PLACE.base
        self._families = tuple(each.family for each in topology.addresses)

    def look(self) -> tuple[Hashable, ...]:
        """All that makes the rules of each family what they are, but for their handles."""
        return tuple(self._rules(family) for family in self._families)

    def handles(self) -> tuple[int, ...]:
        """Return the handles of the daemon's rules. A rule that is written again has another one."""
        return tuple(rule.handle for family in self._families for rule in self._netlink.rules(family, *self._own))

    def generation(self) -> int:
        """Counts the transactions of everybody."""
        return self._netlink.generation()

    def _rules(self, family: Family) -> Hashable:
        own = tuple(rule.raw for rule in self._netlink.rules(family, *self._own))
        base = self._netlink.rules(family, self._own[0], self._base) if self._base else ()
        return own, tuple(rule.raw for rule in base if jump_target(rule) == self._own[1])


class LegacyRules:
    """In ip_tables: lines of a listing. A look takes some milliseconds, and two processes."""

    pause = 0.01

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._run = ProcessRunner()

    def look(self) -> tuple[Hashable, ...]:
        return tuple(self._lines(each.family) for each in self._topology.addresses)

    def _lines(self, family: Family) -> Hashable:
        with self._topology.node.entered():
            saved = self._run((f"{family.data.tools}-legacy-save", "-t", _PLACE.table)).stdout
        return tuple(line for line in saved.splitlines() if line.startswith("-A") and _PLACE.chain in line)


Rules = Union[NftRules, LegacyRules]


def rules_of(topology: Topology, backend: BackendName) -> Rules:
    return LegacyRules(topology) if backend == "iptables-legacy" else NftRules(topology, backend)


class Outages:
    """Looks at rules all the time, in a thread, and notes how long those of a family were other than at the start."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._wanted = rules.look()
        self._gone: dict[int, float] = {}  # which family's, since when
        self._seconds: list[float] = []
        self._seen_at = 0.0  # when the last look began
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="outages")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look during the block, and on until the rules are whole."""
        self._thread.start()
        try:
            yield
            done = time.monotonic()
            eventually(lambda: self._seen_at > done and not self._gone)
        finally:
            self._end.set()
            self._thread.join()

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Length of each outage of a family, from the last read before it, so at most two reads too long."""
        return tuple(seconds * 1000 for seconds in self._seconds)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self._rules.pause):
            began = time.monotonic()
            for number, (found, wanted) in enumerate(zip(self._rules.look(), self._wanted)):
                if found != wanted:
                    self._gone.setdefault(number, before)
                elif number in self._gone:
                    self._seconds.append(time.monotonic() - self._gone.pop(number))
            before = self._seen_at = began
