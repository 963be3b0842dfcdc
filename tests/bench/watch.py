"""Looks at the rules in the kernel, often, cheaply, and without a process: whole, gone, or back."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Callable, Optional

from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.kernel.expressions import jump_target
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import SLOTS, Family

from .clock import DEADLINE, LOOK_SECONDS, BenchError, now, pause
from .site import Site

# Chains to be seen whole, and built-in chains of which the jumps to them are.
Chains = tuple[tuple[str, str, Optional[str]], ...]

NFT: Chains = (("flanneld-masq", "postrouting", None), ("flanneld-masq", "forward", None))
IPTABLES: Chains = (("nat", "FLANNELD-MASQ", "POSTROUTING"), ("filter", "FLANNELD-MASQ-FWD", "FORWARD"))
FLANNEL: Chains = (("nat", "FLANNEL-POSTRTG", "POSTROUTING"), ("filter", "FLANNEL-FWD", "FORWARD"))
FLANNEL_NFTABLES: Chains = (("flannel-ipv4", "postrtg", None),)


UNTOUCHED_SECONDS = 0.2  # after the end of a damage of which nothing is seen
COMPLETE_SECONDS = 1.0  # after which the rules of a generation are visible, also on a busy machine


class Watch(ABC):
    """`wanted` is what the kernel held when the rules were last known to be in order."""

    wanted: Hashable = None

    @abstractmethod
    def look(self) -> Hashable:
        """All that makes the rules what they are."""

    def generation(self) -> int:
        """Counts the transactions of everybody; always 0 where the kernel does not count them."""
        return 0

    def accept(self) -> None:
        """Take the present rules as the wanted ones."""
        self.wanted = self.look()

    def whole(self) -> bool:
        return self.look() == self.wanted


class NftWatch(Watch):
    """For all that lives in nf_tables. One look takes 4 us, and 0.1 ms while the generation is a new one.

    The kernel counts a generation before its rules are visible, so they are read again for a second after that.
    """

    def __init__(self, site: Site, chains: Chains) -> None:
        with site.entered():
            self._netlink = Nfnetlink()
        self._chains = chains
        self._generation = -1
        self._complete_at = 0.0
        self._seen: Hashable = None

    def generation(self) -> int:
        return self._netlink.generation()

    def look(self) -> Hashable:
        generation = self._netlink.generation()
        asked = now()
        if generation != self._generation:
            self._complete_at = asked + COMPLETE_SECONDS
        if generation != self._generation or asked < self._complete_at:
            self._seen = tuple(self._rules(*place) for place in self._chains)
            self._generation = generation
        return self._seen

    def handle(self, table: str, chain: str) -> int:
        """The handle of the last rule of a chain."""
        return self._netlink.rules(Family.IPV4, table, chain)[-1].handle

    def _rules(self, table: str, chain: str, base: Optional[str]) -> Hashable:
        own = tuple(rule.raw for rule in self._netlink.rules(Family.IPV4, table, chain))
        there = self._netlink.rules(Family.IPV4, table, base) if base else ()
        return own, tuple(rule.raw for rule in there if jump_target(rule) == chain)


class LegacyWatch(Watch):
    """For the nat table of ip_tables: number and size of its entries, where its chains start. 3 us a look."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._info: Optional[TableInfo] = None
        with site.entered():  # the file, and later the socket, belong to the namespace they were opened in
            self._names = os.open("/proc/thread-self/net/ip_tables_names", os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> Hashable:
        if self._info is not None:
            return self._info.read("nat")
        if b"nat" not in os.pread(self._names, 4096, 0).split():
            return None  # asking for a table that is not there would make it
        self._info = TableInfo(Family.IPV4)
        with self._site.entered():
            return self._info.read("nat")


def watch_of(site: Site) -> Watch:
    """For the daemon's rules."""
    if site.flavour == "legacy":
        return LegacyWatch(site)
    return NftWatch(site, NFT if site.backend == "nft" else IPTABLES)


@dataclass(frozen=True, **SLOTS)
class Outage:
    """`seen` is False if no look saw that the rules were gone. They may have been gone between two looks: `seconds` is
    then the longest time between two."""

    seconds: float
    seen: bool = True


def outage(
    watch: Watch,
    act: Callable[[], object],
    what: str,
    *,
    ended: Callable[[], bool] = lambda: False,
    every: float = LOOK_SECONDS,
) -> Outage:
    """Begin `act`; measure from the last look that saw the rules whole to the first one that sees them so again.

    So it is never less than the time that they were gone, and more by at most two pauses. Two transactions between two
    looks are a damage and its repair; the time between the looks then counts. `ended` returns True once `act` did all
    that it does.
    """
    if not watch.whole():
        raise BenchError(f"{what}: the rules were not in order before")
    generation = watch.generation()
    act()
    started = last = now()
    longest, end = 0.0, math.inf
    while True:
        asked = now()
        longest = max(longest, asked - last)
        if not watch.whole():
            break
        if (watch.generation() - generation) & 0xFFFFFFFF >= 2:
            return Outage(now() - last)
        if asked > end:
            return Outage(longest, seen=False)
        if asked - started > DEADLINE:
            raise BenchError(f"{what}: nothing happened within {DEADLINE:g} s")
        if end == math.inf and ended():
            end = asked + UNTOUCHED_SECONDS
        last = asked
        pause(every)
    while not watch.whole():
        if now() - last > DEADLINE:
            raise BenchError(f"{what}: not back within {DEADLINE:g} s")
        pause(every)
    return Outage(now() - last)
