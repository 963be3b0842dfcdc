"""Splits the output of iptables-save into tables, chains and rules that are still text. Pure.

Source: iptables-save(8). A rule stays a line until it is evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flanneld_masq.errors import SnapshotError
from flanneld_masq.inputs.save_lines import logical_lines, words_of
from flanneld_masq.model import SLOTS

_CHAIN = re.compile(r":(\S+) (\S+)")
_COUNTERS = re.compile(r"\[\d+:\d+\] ")
_RULE = "-A "


@dataclass(**SLOTS)
class SavedChain:
    """A chain; `policy` is empty for one that only rules call."""

    policy: str = ""
    lines: list[str] = field(default_factory=list)


SavedTable = dict[str, SavedChain]


def tables(text: str) -> dict[str, SavedTable]:
    """Return the tables by name, each with its chains by name. Lines that fit no table are skipped.

    Raises SnapshotError for a listing that ends before its table does.
    """
    found: dict[str, SavedTable] = {}
    outside: SavedTable = {}
    table = outside
    for line in logical_lines(text):
        if line.startswith("["):
            line = _COUNTERS.sub("", line, count=1)
        if line.startswith(_RULE):
            _append(table, line)
        elif line.startswith("*"):
            table = found.setdefault(line[1:].strip(), {})
        elif chain := _CHAIN.match(line):
            table[chain[1]] = SavedChain("" if chain[2] == "-" else chain[2])
        elif line.startswith("COMMIT"):
            table = outside
    if table is not outside:
        raise SnapshotError("the output of iptables-save was cut short")
    return found


def _append(table: SavedTable, line: str) -> None:
    name = line[len(_RULE) :].partition(" ")[0]
    chain = table.get(name)
    if chain is None:
        chain = table[name] = SavedChain()
    chain.lines.append(line)


def words(line: str) -> list[str]:
    """Return the words of a rule, without quotes where they can be read."""
    quoted = words_of(line) if '"' in line or "\\" in line else None
    return line.split() if quoted is None else quoted
