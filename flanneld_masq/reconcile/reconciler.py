"""One pass over one family: observe, plan, apply, verify. The controller decides when."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from flanneld_masq.errors import MasqError, RulesetError
from flanneld_masq.hookspecs import Backend, Protector
from flanneld_masq.model import (
    AUTO,
    DEFAULT_KUBE_PROXY_MARK,
    BackendName,
    Desired,
    Family,
    Group,
    Mark,
    Plan,
)
from flanneld_masq.reconcile.change_detector import ChangeDetector
from flanneld_masq.reconcile.selection import BackendSelector, assignment_of
from flanneld_masq.reconcile.values import Assignment, DesiredState, Fingerprint, FlushSeen, Outcome, Repair, Target
from flanneld_masq.reconcile.writer import OwnCommits, Writer
from flanneld_masq.ruleset import policy
from flanneld_masq.ruleset.flush import FlushPolicy
from flanneld_masq.ruleset.mark_choice import MarkChoice
from flanneld_masq.state_directory import StateDirectory

_TargetsKey = tuple[DesiredState, Assignment, Mark]


class Reconciler:
    """Brings one family to its desired state, in every backend. For one thread.

    `backends` are in the order of preference. `missing` returns why the kernel lacks the family, empty if it has it.
    `commits` is shared by the reconcilers of one process. `clock` counts seconds. `repairs` are those of the last
    pass or removal, also of one that failed in the end.
    """

    def __init__(
        self,
        family: Family,
        backends: Mapping[BackendName, Backend],
        store: StateDirectory,
        *,
        missing: Callable[[], str] = lambda: "",
        commits: OwnCommits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        commits = commits or OwnCommits()
        self.family = family
        self.repairs: list[Repair] = []
        self.selector = BackendSelector(family, backends, missing)
        self.detector = ChangeDetector(backends, self.selector, commits)
        self._backends = backends
        self._store = store
        self._writer = Writer(family, store, commits, clock)
        self.traffic = self._writer.traffic
        # most passes have the desired state and the assignment of the one before, and so its targets
        self._targets: tuple[_TargetsKey, tuple[Target, ...]] | None = None
        self._cleared: dict[BackendName, bytes | None] = {}  # the fingerprint of each that holds no rule of the daemon
        self._on_flush = FlushPolicy.REPAIR
        self._mark = DEFAULT_KUBE_PROXY_MARK  # the one that `kube_proxy_mark = "auto"` stands for

    def plan(self, desired_state: DesiredState) -> tuple[Plan, ...]:
        """Return what `reconcile` would change, in every backend. Change nothing."""
        plans = []
        assignment = assignment_of(self.selector.choices(desired_state))
        self._choose_mark(desired_state, assignment)
        self.selector.check_evidence()
        if not assignment and not desired_state.complete:
            return ()
        for target in (*self._wanted(desired_state, assignment), *self._unwanted(assignment)):
            _, changes = self._writer.compare(target)
            plans.append(Plan(self.family, target.backend.name, changes))
        for target in self._unwanted(assignment, usable=False):
            with _despite_unusable():
                _, changes = self._writer.compare(target)
                plans.append(Plan(self.family, target.backend.name, changes))
        return tuple(plans)

    def reconcile(
        self,
        desired_state: DesiredState,
        heard: int | None = None,
        *,
        on_flush: FlushPolicy = FlushPolicy.REPAIR,
        stay: bool = False,
    ) -> Outcome:
        """Make the kernel hold the desired state, first in the chosen backends and then in the others.

        `heard` is the generation of the last kernel event before this call; None for no event.

        The pass removes the daemon's rules from a backend that must hold none. It keeps those of a family that an
        unread subnet file may name. Such a backend is read in the first pass, after `recheck` and `reprobe`, with
        another choice of backends, and whenever its fingerprint or poll has changed. `stay` is that of
        `BackendSelector.choices`. Raise MasqError if the kernel, a tool or a plugin refuses, and FlushSeen if
        `on_flush` says so; what was done before stays done.
        """
        self.repairs, self._writer.verified, self._writer.heard = [], None, heard
        self._on_flush = on_flush
        first = self._undisputed(desired_state)
        self._converge(first)
        self._writer.confirm(self.detector.generation())
        choices = self.selector.choices(desired_state, stay=stay)
        assignment = assignment_of(choices)
        mark = self._choose_mark(desired_state, assignment)
        if self.selector.unsettled or assignment != self.selector.assignment:
            first, self.selector.unsettled = (), True
            self._converge(self._growing(desired_state, assignment))
        targets = self._wanted(desired_state, assignment)
        self._converge([target for target in targets if target not in first])
        self.selector.check_evidence()  # all rules that are known to be wanted are in place, and none is removed yet
        fingerprint = self._settle(desired_state, assignment)
        return Outcome(
            choices,
            tuple(self.repairs),
            {group.group: len(group.rules) for target in targets for group in target.desired.groups},
            self._writer.verified,
            fingerprint,
            self.selector.unhelped,
            mark,
            self.selector.protection(desired_state.settings, assignment),
        )

    def render(self, desired_state: DesiredState) -> Iterator[tuple[BackendName, str]]:
        """Yield what each backend would write into an empty kernel.

        Neither the kernel nor a tool is asked: a backend `auto` stands for the most preferred one, and
        `kube_proxy_mark = "auto"` for the default.
        """
        settings = desired_state.settings
        name = next(iter(self._backends)) if settings.backend == AUTO else settings.backend
        forward = name if settings.forward.backend == AUTO else settings.forward.backend
        for backend in dict.fromkeys((name, forward)):
            groups = frozenset(
                group for group, carrier in ((Group.MASQUERADE, name), (Group.FORWARD, forward)) if carrier == backend
            )
            desired = policy.desired(
                settings, desired_state.leases, self.family, groups, exceptions=desired_state.exceptions
            )
            yield backend, self._backends[backend].render(desired)

    def remove_everything(self) -> tuple[tuple[Repair, ...], tuple[MasqError, ...]]:
        """Remove this program's rules from every backend, usable or not. An error does not stop the rest."""
        self.repairs, self._on_flush = [], FlushPolicy.REPAIR
        errors = self._attempt([self._empty(backend) for backend in self._backends.values()])
        return tuple(self.repairs), errors

    def release(self) -> None:
        """Let the rules stay in force when this process ends."""
        for backend in self._backends.values():
            if isinstance(backend, Protector):
                backend.release()

    def _undisputed(self, desired_state: DesiredState) -> tuple[Target, ...]:
        """Return the target that masquerades, if the last pass had the same desired state.

        No change of the ruleset moves that group, so its repair does not wait until the evidence is read.
        """
        assignment = self.selector.assignment
        targets = self._kept(desired_state, assignment) or ()
        return tuple(target for target in targets if Group.MASQUERADE in assignment[target.backend.name])

    def _choose_mark(self, desired_state: DesiredState, assignment: Assignment) -> MarkChoice | None:
        """Read kube-proxy's mark for the targets that are made from now on; None if no rule tests it."""
        if not assignment or not policy.masquerades(desired_state.settings.masquerade, self.family):
            return None
        choice = self.selector.kube_proxy_mark(desired_state.settings)
        if choice.mark is not None:
            self._mark = choice.mark
        return choice

    def _growing(self, desired_state: DesiredState, assignment: Assignment) -> list[Target]:
        """Return temporary targets for backends that swap groups (make before break).

        Each holds its old and its new groups until every group is installed in its new place.
        """
        both = {name: groups | self.selector.assignment.get(name, frozenset()) for name, groups in assignment.items()}
        if both == assignment:
            return []
        return [self._target(desired_state, name, groups) for name, groups in both.items()]

    def _wanted(self, desired_state: DesiredState, assignment: Assignment) -> tuple[Target, ...]:
        """Return the targets of the backends that must hold rules."""
        targets = self._kept(desired_state, assignment)
        if targets is None:
            targets = tuple(self._target(desired_state, name, groups) for name, groups in assignment.items())
            self._targets = ((desired_state, assignment, self._mark), targets)
        return targets

    def _kept(self, desired_state: DesiredState, assignment: Assignment) -> tuple[Target, ...] | None:
        """Return the targets of the last pass if they are still right; after `reprobe` a probe may change them."""
        if self.selector.unsettled or self._targets is None:
            return None
        key, targets = self._targets
        return targets if key == (desired_state, assignment, self._mark) else None

    def _target(self, desired_state: DesiredState, name: BackendName, groups: frozenset[Group]) -> Target:
        desired = policy.desired(
            desired_state.settings,
            desired_state.leases,
            self.family,
            groups,
            random_fully=self.selector.randomises(name),
            exceptions=desired_state.exceptions,
            auto_mark=self._mark,
            offered=self.selector.offered((name,)),
        )
        return Target(self._backends[name], desired, self._backends[name].wanted(desired))

    def _unwanted(self, assignment: Assignment, *, usable: bool = True) -> list[Target]:
        """Return empty targets for the other backends: those that can be used, or those that cannot."""
        return [
            self._empty(backend)
            for name, backend in self._backends.items()
            if name not in assignment and self.selector.probe(name).usable is usable
        ]

    def _empty(self, backend: Backend) -> Target:
        return Target(backend, Desired(self.family), ())

    def _settle(self, desired_state: DesiredState, assignment: Assignment) -> Fingerprint:
        """Clear the other backends, as far as they may hold rules; return the fingerprint of what is there then."""
        fingerprint = () if self.selector.unsettled else self.detector.fingerprint_at(self._writer.verified)
        suspects = self._suspects(assignment, fingerprint)
        if not suspects and fingerprint:
            return fingerprint
        known = bool(assignment) or desired_state.complete
        if known:
            self._clear(assignment, suspects)
        self.selector.adopt(assignment, settled=known)
        fingerprint = self.detector.fingerprint_at(self._writer.verified)
        self._cleared = {name: seen for name, seen in zip(self._backends, fingerprint) if name not in assignment}
        return fingerprint

    def _suspects(self, assignment: Assignment, fingerprint: Fingerprint) -> frozenset[BackendName]:
        """Return the other backends, but not those that certainly hold as little as when they were last cleared."""
        others = frozenset(name for name in self._backends if name not in assignment)
        if self.selector.unsettled:
            return others
        seen = dict(zip(self._backends, fingerprint))
        polled = {name: self.detector.polled(name) for name in others}
        unlike = {name for name in others if name not in self._cleared or seen.get(name) != self._cleared[name]}
        return frozenset(name for name in others if polled[name] or (polled[name] is None and name in unlike))

    def _clear(self, assignment: Assignment, suspects: Collection[BackendName]) -> None:
        """Remove this program's rules from those of the other backends.

        A backend that can no longer be used may still have rules in force. Remove those that the kernel can remove
        without the backend's tools.
        """
        self._converge([target for target in self._unwanted(assignment) if target.backend.name in suspects])
        for target in self._unwanted(assignment, usable=False):
            if target.backend.name in suspects:
                with _despite_unusable():
                    self._converge([target])

    def _converge(self, targets: Collection[Target]) -> None:
        """Bring each backend to its target, then raise the first error."""
        errors = self._attempt(targets) if targets else ()
        if errors:
            raise errors[0]

    def _attempt(self, targets: Collection[Target]) -> tuple[MasqError, ...]:
        """Bring each backend to its target, one after the other, and return the errors of those that failed."""
        errors: list[MasqError] = []
        with self._store.exclusive(self.family):
            for target in targets:
                try:
                    repair = self._writer.converge(target, self._on_flush)
                except MasqError as error:
                    errors.append(error)
                except FlushSeen as seen:
                    self.repairs += [seen.repair] if seen.repair else []
                    raise
                else:
                    self.repairs += [repair] if repair else []
        return tuple(errors)


@contextlib.contextmanager
def _despite_unusable() -> Iterator[None]:
    """Ignore the error of a backend that cannot be used, unless it says that rules of the daemon stay in force."""
    try:
        yield
    except RulesetError:
        raise
    except MasqError:
        return
