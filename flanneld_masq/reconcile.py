"""One pass over one family: observe, plan, apply, verify. Decides nothing about when."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from . import choice, plan, policy
from .choice import Choice
from .errors import MasqError, RulesetError
from .hookspecs import Backend
from .model import (
    AUTO,
    SLOTS,
    BackendName,
    Change,
    Desired,
    Family,
    Golden,
    Group,
    Lease,
    Network,
    Observation,
    Plan,
    Probe,
    Settings,
)
from .store import Store

WRITE_TRIES = 4


@dataclass(frozen=True, **SLOTS)
class Wish:
    """What is to hold: the input of a pass. `exceptions` are the networks that plugins add."""

    settings: Settings
    leases: tuple[Lease, ...] = ()
    exceptions: tuple[Network, ...] = ()
    flannel_uses_nftables: bool = False


@dataclass(frozen=True, **SLOTS)
class Repair:
    """What one backend was found to lack and now holds. `duration_us` counts from the first look."""

    plan: Plan
    duration_us: int


@dataclass(frozen=True, **SLOTS)
class Outcome:
    """What came of a pass. `rules` counts what the kernel now holds for us, jumps left out."""

    choices: Mapping[Group, Choice]
    repairs: tuple[Repair, ...]
    rules: Mapping[Group, int]


class Reconciler:
    """Brings one family to what is wished, in every backend. For one thread.

    `backends` are in the order of preference. Probes are kept until `reprobe`.
    """

    def __init__(
        self,
        family: Family,
        backends: Mapping[BackendName, Backend],
        store: Store,
        *,
        missing: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.family = family
        self._backends = backends
        self._store = store
        self._missing = missing
        self._clock = clock
        self._probes: dict[BackendName, Probe] | None = None
        self._thorough = True
        self._carried: Mapping[BackendName, frozenset[Group]] = {}

    def probes(self) -> Mapping[BackendName, Probe]:
        """Whether each backend can be used; asks each one once."""
        if self._probes is None:
            missing = self._missing()
            self._probes = {
                name: Probe(False, missing, "boot a kernel with it, or leave the family out of the subnet file")
                if missing
                else backend.probe()
                for name, backend in self._backends.items()
            }
        return self._probes

    def reprobe(self) -> None:
        """Ask the backends anew, and look at all of them once more: tools come and go."""
        self._probes = None
        self._thorough = True

    def plan(self, wish: Wish) -> tuple[Plan, ...]:
        """What `reconcile` would change, in every backend. Changes nothing."""
        plans = []
        for backend, desired in self._work(wish, _carried(self.choices(wish)), everywhere=True):
            wanted = backend.wanted(desired)
            observed = _without_obstacle(backend.observe(tuple(Group)), bool(wanted))
            golden = self._store.golden(backend.name, self.family)
            changes = plan.differences(wanted, desired.position, golden, observed)
            plans.append(Plan(self.family, backend.name, changes))
        return tuple(plans)

    def reconcile(self, wish: Wish) -> Outcome:
        """Make the kernel hold what is wished, the chosen backends first and the others after them.

        The first pass, one after `reprobe`, and one with another choice of backends clear our rules from
        the other backends too; the rest look only where rules are wanted. Raises MasqError where the
        kernel, a tool or a plugin said no; what was done before stays done.
        """
        choices = self.choices(wish)
        carried = _carried(choices)
        self._thorough = self._thorough or carried != self._carried
        with self._store.exclusive(self.family):
            found = [self._bring(*work) for work in self._work(wish, carried, everywhere=self._thorough)]
        self._thorough, self._carried = False, carried
        rules = policy.group_rules(wish.settings, wish.leases, self.family, exceptions=wish.exceptions)
        return Outcome(
            choices,
            tuple(repair for repair in found if repair is not None),
            {group.group: len(group.rules) for group in rules},
        )

    def render(self, wish: Wish) -> Iterator[tuple[BackendName, str]]:
        """What each backend would write into an empty kernel. Asks neither the kernel nor the tools: `auto`
        stands for the backend that it likes best."""
        best = next(iter(self._backends))
        name = best if wish.settings.backend == AUTO else wish.settings.backend
        forward = name if wish.settings.forward.backend == AUTO else wish.settings.forward.backend
        for backend in dict.fromkeys((name, forward)):
            groups = frozenset(
                group for group, found in ((Group.MASQUERADE, name), (Group.FORWARD, forward)) if found == backend
            )
            desired = policy.desired(wish.settings, wish.leases, self.family, groups, exceptions=wish.exceptions)
            yield backend, self._backends[backend].render(desired)

    def remove_everything(self) -> tuple[tuple[Repair, ...], tuple[MasqError, ...]]:
        """Remove all that is ours from every backend, usable or not; what failed does not stop the rest."""
        repairs: list[Repair] = []
        errors: list[MasqError] = []
        with self._store.exclusive(self.family):
            for backend in self._backends.values():
                try:
                    repair = self._bring(backend, Desired(self.family))
                except MasqError as error:
                    errors.append(error)
                else:
                    repairs += [repair] if repair is not None else []
        return tuple(repairs), tuple(errors)

    def choices(self, wish: Wish) -> Mapping[Group, Choice]:
        """The backend of each group; none for a family that no lease names. Raises what `choice.choose` raises."""
        if not any(lease.of(self.family) for lease in wish.leases):
            return {}
        return choice.choose(wish.settings, self.probes(), flannel_uses_nftables=wish.flannel_uses_nftables)

    def randomises(self, backend: BackendName) -> bool:
        """Whether the backend masquerades to fully random ports here."""
        return self.probes()[backend].random_fully

    def desired(self, wish: Wish, backend: BackendName, groups: frozenset[Group]) -> Desired:
        """What a backend that carries `groups` shall hold."""
        return policy.desired(
            wish.settings,
            wish.leases,
            self.family,
            groups,
            random_fully=self.randomises(backend),
            exceptions=wish.exceptions,
        )

    def _work(
        self, wish: Wish, carried: Mapping[BackendName, frozenset[Group]], *, everywhere: bool
    ) -> Iterator[tuple[Backend, Desired]]:
        """Backends that shall hold something first: old rules go once the new ones are in place."""
        for name, groups in carried.items():
            yield self._backends[name], self.desired(wish, name, groups)
        for name, backend in self._backends.items() if everywhere else ():
            if name not in carried and self.probes()[name].usable:
                yield backend, Desired(self.family)

    def _bring(self, backend: Backend, desired: Desired) -> Repair | None:
        """Observe, plan, apply, verify; None where nothing was to do."""
        started = self._clock()
        wanted = backend.wanted(desired)
        groups = tuple(Group) if self._thorough or not desired.groups else tuple(g.group for g in desired.groups)
        golden = self._store.golden(backend.name, self.family)
        observed = _without_obstacle(backend.observe(groups), bool(wanted))
        first = changes = plan.differences(wanted, desired.position, golden, observed)
        problem = ""
        for attempt in range(WRITE_TRIES):
            if not changes:
                return None
            before = backend.generation()
            transactions = backend.replace(desired, observed, changes)
            observed = backend.observe(groups)
            alone = before is None or backend.generation() == before + transactions
            problem = plan.unmet(wanted, observed)
            if not problem and (alone or attempt == WRITE_TRIES - 1):
                self._remember(backend, desired, plan.golden_of(wanted, desired.position, observed))
                duration = round((self._clock() - started) * 1_000_000)
                return Repair(Plan(self.family, backend.name, first), duration)
            changes = first
        raise RulesetError(
            f"{self.family}: {backend.name} wrote the rules {WRITE_TRIES} times, and each time the kernel held "
            f"something else at once: {problem}; see `flanneld-masq plan`"
        )

    def _remember(self, backend: Backend, desired: Desired, golden: Golden) -> None:
        if desired.groups:
            self._store.remember(backend.name, self.family, golden)
        else:
            self._store.forget(backend.name, self.family)


def describe(changes: tuple[Change, ...], limit: int = 2) -> str:
    """In one line: each difference if they are few, else how many of each kind there are in which place."""
    if len(changes) <= limit:
        return "; ".join(change.summary for change in changes)
    counts = Counter((change.place, change.kind) for change in changes)
    return "; ".join(f"{count} {kind} in {place}" for (place, kind), count in counts.items())


def _carried(choices: Mapping[Group, Choice]) -> Mapping[BackendName, frozenset[Group]]:
    names = dict.fromkeys(chosen.backend for chosen in choices.values())
    return {name: frozenset(group for group, chosen in choices.items() if chosen.backend == name) for name in names}


def _without_obstacle(observed: Observation, wanted: bool) -> Observation:
    if wanted and observed.obstacle:
        raise RulesetError(observed.obstacle)
    return observed
