"""The base chains of a node as stations on the way of a packet: hooks from left to right, in each the kernel's order.

Pure. Lengths are units of the SVG, one pixel each at the usual size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.owners import owner_of
from flanneld_masq.packet_path.rules import BaseChain, Hook
from flanneld_masq.packet_path.ruleset import runs_at
from flanneld_masq.packet_path.state import Step

MARGIN = 104  # left and right of the hooks
WIDTH = 168  # of a hook
MAX_STATIONS = 24  # of a hook that are shown
_MAX_RULES = 1000  # of a chain whose owners are looked up


@dataclass(frozen=True, **SLOTS)
class Station:
    """A base chain at `x`, with the programs that own its rules, each once; empty for one that is not recognised."""

    base: BaseChain
    x: float
    owners: tuple[str, ...]

    @property
    def priority(self) -> int:
        """Return the priority at which the kernel calls the chain."""
        return runs_at(self.base)


@dataclass(frozen=True, **SLOTS)
class Column:
    """A hook and its base chains as one column. `left` is its left edge, `more` the number of chains not shown."""

    hook: Hook
    left: float
    stations: tuple[Station, ...]
    more: int = 0


class Board:
    """The hooks of one family as columns, from left to right in the order in which packets meet them."""

    def __init__(self, node: Node, family: Family) -> None:
        self.node = node
        self.family = family
        self.columns = tuple(
            _column(node, hook, family, MARGIN + index * WIDTH) for index, hook in enumerate(_shown(node, family))
        )
        self._at: Mapping[tuple[Hook, str, str], Station] = {
            (column.hook, station.base.table, station.base.chain.name): station
            for column in self.columns
            for station in column.stations
        }

    def column(self, hook: Hook) -> Column:
        return next(column for column in self.columns if column.hook is hook)

    def x_of(self, step: Step) -> float:
        """Return where a step is: at its base chain, or where its hook begins for a route or a sysctl."""
        chain = step.jumps[0].chain if step.jumps else step.place.chain
        station = self._at.get((step.hook, step.place.table, chain))
        if station is not None:
            return station.x
        return self.column(step.hook).left + (WIDTH - 6 if step.place.chain else 0)


def _shown(node: Node, family: Family) -> list[Hook]:
    """Return the hooks of the board; those of devices only if they have chains."""
    return [hook for hook in Hook if hook not in (Hook.INGRESS, Hook.EGRESS) or node.ruleset.at(hook, family)]


def _column(node: Node, hook: Hook, family: Family, left: float) -> Column:
    bases = node.ruleset.at(hook, family)
    shown = bases[:MAX_STATIONS]
    gap = WIDTH / (len(shown) + 1)
    stations = (Station(base, left + gap * (index + 1), _owners(base)) for index, base in enumerate(shown))
    return Column(hook, left, tuple(stations), len(bases) - len(shown))


def _owners(base: BaseChain) -> tuple[str, ...]:
    rules = islice(base.chain, _MAX_RULES)
    places = (*(rule.place for rule in rules), base.policy_place)
    found = dict.fromkeys(owner_of(place, base.chains) for place in places[: len(base.chain) or 1])
    return tuple(found)
