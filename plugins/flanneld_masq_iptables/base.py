"""The part of the iptables backends that does not depend on how the kernel is read."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from flanneld_masq.errors import BackendUnavailable, KernelError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import (
    SLOTS,
    BackendName,
    Change,
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Probe,
    Stranger,
    Traffic,
)
from flanneld_masq_iptables import binaries, rules
from flanneld_masq_iptables.rules import PLACES, Jumps, Place

PlaceItems = tuple[tuple[Item, ...], Neighbours]


@dataclass(frozen=True, **SLOTS)
class Removal:
    """The number of transactions that it took, and why the chain stays; empty if it is gone."""

    transactions: int
    stuck: str = ""


class IptablesBackend(abc.ABC):
    """Writes with the iptables program of one flavour. A subclass reads what that flavour keeps in the kernel."""

    name: BackendName
    flavour: ClassVar[str]
    privilege: ClassVar[str]  # the remedy if the kernel refuses to answer

    def __init__(self, family: Family, host: Host) -> None:
        self.family = family
        self._host = host
        self._installed: binaries.Program | None = None

    @property
    def _program(self) -> binaries.Program:
        if self._installed is None:
            self._installed = binaries.find(self.flavour, self.name, self._host.run)
        return self._installed

    def probe(self) -> Probe:
        self._installed = None
        self._forget()
        try:
            return self._probe(self._program)
        except BackendUnavailable as error:
            return Probe(False, error.reason, error.remedy)
        except KernelError as error:
            return Probe(False, str(error), self.privilege)

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return rules.items(desired)

    def render(self, desired: Desired) -> str:
        def jump(place: Place, group: GroupRules) -> Sequence[str]:
            return [rules.new_jump(place, group, desired.position_of(group.group))]

        return rules.restore_input(desired, jump)

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        """Write the desired groups that differ, then remove the others. A table that is in order is left alone: a
        write to one of ip_tables takes as long as its rules are many."""
        touched = {change.place.split(" ", 1)[0] for change in changes}
        differing = tuple(group for group in desired.groups if PLACES[group.group].table in touched)
        written = replace(desired, groups=differing) if changes else desired
        jumps = {
            PLACES[group.group]: rules.jumps_to_replace(group, desired.position_of(group.group), observed, changes)
            for group in written.groups
        }
        transactions = self._write(written, observed, jumps) if written.groups else 0
        kept = {group.group for group in desired.groups}
        removals = [self._remove_place(place, observed) for group, place in PLACES.items() if group not in kept]
        stuck = [removal.stuck for removal in removals if removal.stuck]
        if stuck:
            raise RulesetError("; ".join(stuck))
        return transactions + sum(removal.transactions for removal in removals)

    def remove(self, items: tuple[Item, ...]) -> None:
        for place in PLACES.values():
            there = [item for item in items if item.place.startswith(f"{place.table} ")]
            chains = [item.place.split(" ", 1)[1] for item in there if item.kind is ItemKind.CHAIN]
            self._delete(place, tuple(item for item in there if item.kind is ItemKind.RULE), next(iter(chains), None))

    def traffic(self, tags: Collection[str]) -> Traffic:
        counted = self._counted(PLACES[Group.MASQUERADE])
        return sum((traffic for tag, traffic in counted if tag in tags), Traffic(0, 0))

    @abc.abstractmethod
    def _counted(self, place: Place) -> Iterable[tuple[str, Traffic]]:
        """Return the tag, empty for none, and the counters of each rule in the daemon's chain of a place."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Forget what another release of the program may do differently."""

    @abc.abstractmethod
    def _probe(self, program: binaries.Program) -> Probe:
        """Check whether the kernel offers what the program needs. Raises KernelError if it refuses to answer."""

    @abc.abstractmethod
    def _observe(self, place: Place) -> PlaceItems:
        """Read the daemon's items of one place, and the foreign rules around its jump."""

    @abc.abstractmethod
    def _write(self, desired: Desired, observed: Observation, jumps: Mapping[Place, Jumps]) -> int:
        """Write the desired groups and replace their jumps. Return the number of transactions."""

    @abc.abstractmethod
    def _delete(self, place: Place, items: tuple[Item, ...], chain: str | None) -> int:
        """Delete these rules and jumps of one table, and then the chain if given. Return the number of transactions."""

    @abc.abstractmethod
    def _remove_chain(self, place: Place, items: tuple[Item, ...]) -> Removal:
        """Delete the daemon's chain with its rules, and the jumps to it. Keep it, empty, if a foreign rule refers to
        it."""

    def _obstacle(self, place: Place) -> str:
        """Return what makes a write to this place pointless; empty for nothing."""
        return ""

    def _restore(self, text: str) -> None:
        self._program.restore(self._host.run, self.family.data.tools, text)

    def _observation(self, places: Collection[Place]) -> Observation:
        observed = [self._observe(place) for place in places]
        return Observation(
            tuple(item for items, _ in observed if _has_tag(items) for item in items),
            tuple(neighbours for _, neighbours in observed),
            "; ".join(filter(None, map(self._obstacle, places))),
            tuple(Stranger(items, len(items) == 1) for items, _ in observed if items and not _has_tag(items)),
        )

    def _remove_place(self, place: Place, observed: Observation) -> Removal:
        items = [item for item in observed.items if item.place.split(" ", 1)[0] == place.table]
        removable = tuple(item for item in items if item.kind is not ItemKind.CHAIN)
        if len(removable) < len(items):
            return self._remove_chain(place, removable)
        return Removal(self._delete(place, removable, None))


def _has_tag(items: tuple[Item, ...]) -> bool:
    """Return True if a rule or jump among these is the daemon's, and so the chain."""
    return any(item.tag for item in items)
