"""Finds the rules of legacy iptables whose counters grew, where ip_tables cannot report packets itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq_iptables import binaries, save_format
from flanneld_masq_iptables.legacy_tables import LegacyTables
from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.inputs.save_lines import logical_lines
from flanneld_masq.model import SLOTS, BackendName, Family
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner

_COUNTED = re.compile(r"\[([0-9]{1,20}):[0-9]{1,20}\] (-A .*)", re.DOTALL)


@dataclass(frozen=True, **SLOTS)
class Growth:
    """A rule, by its number in its chain counted from 1, and the packets that it counted meanwhile."""

    table: str
    chain: str
    number: int
    text: str
    packets: int


def legacy_tables(family: Family, root: Path) -> tuple[str, ...]:
    """Return the tables of ip_tables. No table is made by asking. Raises KernelError if the tables cannot be found
    out."""
    return tuple(sorted(LegacyTables(root / family.data.legacy_names, TableInfo(family)).existing()))


class Counters:
    """The counters of all tables at one time."""

    def __init__(self, run: ProcessRunner, family: Family, tables: Iterable[str]) -> None:
        program = binaries.find(binaries.LEGACY, BackendName("iptables-legacy"), run)
        argv = f"{family.data.tools}-save"
        self._rules = {
            table: tuple(counted(run((argv, "-c", "-t", table), executable=program.path).stdout)) for table in tables
        }

    def growth(self, later: Counters) -> tuple[Growth, ...]:
        """Return the rules that counted packets since. A table whose rules changed meanwhile is left out."""
        return tuple(
            found for table, rules in self._rules.items() for found in grown(table, rules, later._rules.get(table, ()))
        )


def counted(printed: str) -> Iterator[tuple[str, int]]:
    """Yield rule and packets of each rule that iptables-save -c prints. Pure."""
    for line in logical_lines(printed):
        if match := _COUNTED.fullmatch(line):
            yield match[2], int(match[1])


def grown(table: str, before: tuple[tuple[str, int], ...], after: tuple[tuple[str, int], ...]) -> Iterator[Growth]:
    """Yield the rules whose counters grew; none if the rules are not the same. Pure."""
    if [text for text, _ in before] != [text for text, _ in after]:
        return
    numbers: dict[str, int] = {}
    for (text, then), (_, now) in zip(before, after):
        chain = save_format.chain_of(text)
        numbers[chain] = numbers.get(chain, 0) + 1
        if now > then:
            yield Growth(table, printable(chain), numbers[chain], printable(text), now - then)
