"""One pass over one family: observe, plan, apply, verify. Decides nothing about when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from flanneld_masq.errors import KernelError, MasqError, RulesetError
from flanneld_masq.hookspecs import Backend
from flanneld_masq.kernel.nfnetlink import following, is_after
from flanneld_masq.model import (
    AUTO,
    BackendName,
    Change,
    ChangeKind,
    Desired,
    Family,
    Group,
    Lease,
    Observation,
    Plan,
)
from flanneld_masq.reconcile.selection import BackendSelector, assignment_of
from flanneld_masq.reconcile.values import Assignment, DesiredState, Outcome, Removed, Repair, Surveys, Target
from flanneld_masq.ruleset import diff, policy
from flanneld_masq.state_directory import StateDirectory

WRITE_TRIES = 4
COMMIT_WAIT_SECONDS = 0.1
REMEMBERED_COMMITS = 256  # for as long as their events may be on their way


class OwnCommits:
    """What the reconcilers of one process share, so that none takes the commit of another for somebody's
    meddling: whose turn it is to write, and the generations that came of it, the last of them."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._made: tuple[int, ...] = ()

    def note(self, before: int, transactions: int) -> None:
        made = (following(before, number) for number in range(1, transactions + 1))
        self._made = (*self._made[-REMEMBERED_COMMITS:], *made)

    def __contains__(self, generation: int) -> bool:
        return generation in self._made


class Reconciler:
    """Brings one family to what is wished, in every backend. For one thread.

    `backends` are in the order of preference. Probes are kept until `reprobe`. `commits` is what the
    reconcilers of one process share.
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
        self.family = family
        self.selector = BackendSelector(family, backends, missing)
        self._backends = backends
        self._store = store
        self._commits = commits or OwnCommits()
        self._clock = clock
        self._verified: int | None = None  # in which generation all that was looked at is right
        self._held: dict[BackendName, Target] = {}  # what each backend was last seen to hold
        self.repairs: list[Repair] = []  # of the last pass, also of one that failed in the end
        # of the last desired state, for most passes have the same
        self._targets: tuple[DesiredState, Assignment, tuple[Target, ...]] | None = None

    def plan(self, desired_state: DesiredState) -> tuple[Plan, ...]:
        """What `reconcile` would change, in every backend. Changes nothing."""
        plans = []
        assignment = assignment_of(self.selector.choices(desired_state))
        self.selector.check_evidence()
        for target in (*self._wanted(desired_state, assignment), *self._unwanted(assignment)):
            _, changes = self._compare(target, tuple(Group))
            plans.append(Plan(self.family, target.backend.name, changes))
        return tuple(plans)

    def reconcile(self, desired_state: DesiredState) -> Outcome:
        """Make the kernel hold what is wished, the chosen backends first and the others after them.

        The first pass, one after `reprobe`, and one with another choice of backends clear our rules from
        the other backends too; the rest look only where rules are wanted. Raises MasqError where the
        kernel, a tool or a plugin said no; what was done before stays done.
        """
        self.repairs, self._verified = [], None
        first = self._undisputed(desired_state)
        self._converge(first)
        self._known(self.generation())
        choices = self.selector.choices(desired_state)
        assignment = assignment_of(choices)
        if self.selector.unsettled or assignment != self.selector.assignment:
            first, self.selector.unsettled = (), True
            self._converge(self._growing(desired_state, assignment))
        targets = self._wanted(desired_state, assignment)
        self._converge([target for target in targets if target not in first])
        self.selector.check_evidence()  # all rules that are known to be wanted are in place, and none is removed
        if self.selector.unsettled:
            self._clear(assignment)
        self.selector.adopt(assignment)
        if not targets:
            self._verified = None  # of a family that no lease names nothing that others do matters
        return Outcome(
            choices,
            tuple(self.repairs),
            {group.group: len(group.rules) for target in targets for group in target.desired.groups},
            self._verified,
            self._first_fingerprint(),
        )

    def _clear(self, assignment: Collection[BackendName]) -> None:
        """Of a backend that cannot be used any more our old rules may still be in force. What the kernel lets us remove
        without its tools is removed."""
        self._converge(list(self._unwanted(assignment)))
        with contextlib.suppress(MasqError):
            self._converge(list(self._unwanted(assignment, usable=False)))

    def _growing(self, desired_state: DesiredState, assignment: Assignment) -> list[Target]:
        """Of backends that take over one group and shall lose the other: both, until the other is in its new place."""
        both = {name: groups | self.selector.assignment.get(name, frozenset()) for name, groups in assignment.items()}
        return (
            [self._target(desired_state, name, groups) for name, groups in both.items()] if both != assignment else []
        )

    def _undisputed(self, desired_state: DesiredState) -> tuple[Target, ...]:
        """The target that masquerades, of the last pass, if the desired state is the same.

        No change of the ruleset makes that another one, so it does not wait until the evidence for `forward` is read.
        """
        assignment = self.selector.assignment
        targets = self._kept(desired_state, assignment) or ()
        return tuple(target for target in targets if Group.MASQUERADE in assignment[target.backend.name])

    def _kept(self, desired_state: DesiredState, assignment: Assignment) -> tuple[Target, ...] | None:
        """Return the targets of the last pass if they still hold. A probe may have changed them after `reprobe`."""
        if self.selector.unsettled or self._targets is None or self._targets[:2] != (desired_state, assignment):
            return None
        return self._targets[2]

    def _first_fingerprint(self) -> tuple[bytes | None, ...]:
        if self._verified is None:
            return ()
        try:
            seen = self.fingerprint()
        except KernelError:
            return ()  # somebody commits at this very moment, and the event of that is on its way
        return seen if self.generation() == self._verified else ()

    def generation(self) -> int | None:
        """Of the ruleset in nf_tables; None where the kernel has none that we can read."""
        for backend in self._backends.values():
            with contextlib.suppress(MasqError):  # if the backend is in use, its pass meets the error
                if (found := backend.generation()) is not None:
                    return found
        return None

    def made(self, generation: int) -> bool:
        """Whether a reconciler of this process made it."""
        return generation in self._commits

    def poll(self) -> bool:
        """Whether rules may have moved, in a backend whose interface tells nobody. Not while a pass runs."""
        return any(self._backends[name].poll() for name in self.selector.assignment)

    def fingerprint(self) -> tuple[bytes | None, ...]:
        """What differs whenever a pass would find a difference in a backend with events. Not while a pass runs."""
        return tuple(map(self._fingerprint, self._backends))

    def fingerprint_again(self, seen: tuple[bytes | None, ...]) -> tuple[bytes | None, ...]:
        """Read the fingerprints again up to the first difference; those behind it are returned as they were.

        Backends that carry our rules come first. Not while a pass runs."""
        found = dict(zip(self._backends, seen))
        for name in sorted(found, key=lambda name: name not in self.selector.assignment):
            now = self._fingerprint(name)
            if now != found[name]:
                found[name] = now
                break
        return tuple(found.values())

    def _fingerprint(self, name: BackendName) -> bytes | None:
        """Of a backend that carries nothing only the evidence counts, and where that cannot be read there is none."""
        with contextlib.nullcontext() if name in self.selector.assignment else contextlib.suppress(MasqError):
            return self._backends[name].fingerprint(self.selector.assignment.get(name, frozenset()))
        return None

    def polls(self) -> bool:
        """Whether there is such a backend in use."""
        return any(self._backends[name].poll() is not None for name in self.selector.assignment)

    def render(self, desired_state: DesiredState) -> Iterator[tuple[BackendName, str]]:
        """What each backend would write into an empty kernel. Asks neither the kernel nor the tools: `auto`
        stands for the backend that it likes best."""
        best = next(iter(self._backends))
        name = best if desired_state.settings.backend == AUTO else desired_state.settings.backend
        forward = name if desired_state.settings.forward.backend == AUTO else desired_state.settings.forward.backend
        for backend in dict.fromkeys((name, forward)):
            groups = frozenset(
                group for group, found in ((Group.MASQUERADE, name), (Group.FORWARD, forward)) if found == backend
            )
            desired = policy.desired(
                desired_state.settings, desired_state.leases, self.family, groups, exceptions=desired_state.exceptions
            )
            yield backend, self._backends[backend].render(desired)

    def remove_everything(self) -> tuple[tuple[Repair, ...], tuple[MasqError, ...]]:
        """Remove all that is ours from every backend, usable or not; what failed does not stop the rest."""
        repairs: list[Repair] = []
        errors: list[MasqError] = []
        with self._store.exclusive(self.family):
            for backend in self._backends.values():
                try:
                    repairs += self._converge_one(Target(backend, Desired(self.family), ()))
                except MasqError as error:
                    errors.append(error)
        return tuple(repairs), tuple(errors)

    def survey(self, leases: tuple[Lease, ...]) -> Surveys:
        """What flannel and the CNI bridge plugin keep, in every backend that can be used."""
        found = tuple(lease for each in leases if (lease := each.of(self.family)) is not None)
        return tuple((backend, backend.survey(found)) for backend in self.selector.usable())

    def remove_flannel_rules(self, leases: tuple[Lease, ...]) -> Removed:
        """Remove what flannel wrote, of each of its generations; what was removed, by backend."""
        removed = []
        for backend, survey in self.survey(leases):
            if survey.flannel:
                backend.remove(survey.flannel)
                removed.append((backend.name, survey.flannel))
        return tuple(removed)

    def _wanted(self, desired_state: DesiredState, assignment: Assignment) -> tuple[Target, ...]:
        """The backends that shall hold something, and what."""
        targets = self._kept(desired_state, assignment)
        if targets is None:
            targets = tuple(self._target(desired_state, name, groups) for name, groups in assignment.items())
            self._targets = (desired_state, assignment, targets)
        return targets

    def _target(self, desired_state: DesiredState, name: BackendName, groups: frozenset[Group]) -> Target:
        desired = policy.desired(
            desired_state.settings,
            desired_state.leases,
            self.family,
            groups,
            random_fully=self.selector.randomises(name),
            exceptions=desired_state.exceptions,
        )
        return Target(self._backends[name], desired, self._backends[name].wanted(desired))

    def _unwanted(self, assignment: Collection[BackendName], *, usable: bool = True) -> Iterator[Target]:
        """The other backends, those that can be used or those that cannot: nothing of ours shall be in them."""
        for name, backend in self._backends.items():
            if name not in assignment and self.selector.probe(name).usable is usable:
                yield Target(backend, Desired(self.family), ())

    def _compare(self, target: Target, groups: tuple[Group, ...]) -> tuple[Observation, tuple[Change, ...]]:
        observed = target.backend.observe(groups)
        return observed, self._differences(target, observed)

    def _differences(self, target: Target, observed: Observation) -> tuple[Change, ...]:
        if target.wanted and observed.obstacle:
            raise RulesetError(observed.obstacle)
        verified_state = self._store.verified_state(target.backend.name, self.family)
        return diff.differences(target.wanted, target.desired.position, verified_state, observed)

    def _converge(self, targets: Collection[Target]) -> None:
        """One after the other. One that fails does not stop the rest; then the first error is raised."""
        errors: list[MasqError] = []
        with self._store.exclusive(self.family) if targets else contextlib.nullcontext():
            for target in targets:
                try:
                    self.repairs += self._converge_one(target)
                except MasqError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    def _converge_one(self, target: Target) -> tuple[Repair, ...]:
        """Observe, plan, apply, verify; none where nothing was to do."""
        started = self._clock()
        groups = tuple(group.group for group in target.desired.groups)
        if self.selector.unsettled or not target.wanted:
            groups = tuple(Group)
        looked_at = target.backend.generation()
        observed, changes = self._compare(target, groups)
        drift = self._held.get(target.backend.name) == target
        if not changes:
            self._known(looked_at)
            self._held[target.backend.name] = target
            return ()
        found_at = target.backend.generation()
        self._write(target, groups, looked_at, observed, changes)
        self._held[target.backend.name] = target
        duration = round((self._clock() - started) * 1_000_000)
        return (Repair(Plan(self.family, target.backend.name, changes), duration, found_at, drift),)

    def _write(
        self,
        target: Target,
        groups: tuple[Group, ...],
        looked_at: int | None,
        observed: Observation,
        changes: tuple[Change, ...],
    ) -> None:
        """Replace what was `observed` in the generation `looked_at`, read back, and remember what the kernel holds.

        What is read back counts as ours only if nobody else has committed since the look, or if it is what we wrote
        before; of somebody who always does, the last of several tries is believed, if the tags are right. Each try
        answers what the one before has read back.
        """
        problem = ""
        for tries_left in reversed(range(WRITE_TRIES)):
            with self._undisturbed():
                before = target.backend.generation()
                current = self._only_we(looked_at, before)
                transactions = target.backend.replace(target.desired, observed, changes)
                looked_at = target.backend.generation()
                observed = target.backend.observe(groups)
                after = target.backend.generation()
                unmixed = before is None or after == following(before, transactions)
                if unmixed and before is not None:
                    self._commits.note(before, transactions)
            changes = self._differences(target, observed)
            problem = diff.unmet(target.wanted, observed)
            moved = any(change.kind is ChangeKind.MOVED for change in changes)
            ours = not changes or (current and unmixed and not moved)
            if not problem and (ours or not tries_left):
                self._remember(target, observed)
                self._known(before, after if ours and unmixed else before)
                return
        raise RulesetError(
            f"{self.family}: {target.backend.name} wrote the rules {WRITE_TRIES} times, and each time the kernel held "
            f"something else at once: {problem}; see `flanneld-masq plan`"
        )

    def _only_we(self, since: int | None, until: int | None) -> bool:
        """Whether the reconcilers of this process made all that was committed between two generations."""
        if since is None or until is None:
            return True
        count = (until - since) & 0xFFFFFFFF
        return count <= REMEMBERED_COMMITS and all(self.made(following(since, n)) for n in range(1, count + 1))

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Wait for another family's write, but not for one that hangs: at worst ours is written twice."""
        acquired = self._commits.turn.acquire(timeout=COMMIT_WAIT_SECONDS)
        try:
            yield
        finally:
            if acquired:
                self._commits.turn.release()

    def _known(self, generation: int | None, afterwards: int | None = None) -> None:
        """What was looked at is right in that generation, and `afterwards` too, which nobody but us has made."""
        if generation is None:
            return
        if self._verified in (None, generation):
            self._verified = generation if afterwards is None else afterwards
        elif self._verified is not None and is_after(self._verified, generation):
            self._verified = generation

    def _remember(self, target: Target, observed: Observation) -> None:
        if target.wanted:
            verified_state = diff.verified_state_of(target.wanted, target.desired.position, observed)
            self._store.remember(target.backend.name, self.family, verified_state)
        else:
            self._store.forget(target.backend.name, self.family)
