"""Brings one backend to its target: observe, compare, replace, read back, remember."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from flanneld_masq.errors import RulesetError
from flanneld_masq.hookspecs import Meter, Protector
from flanneld_masq.kernel.objects import following, is_after
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, Group, Observation, Plan, Traffic, Verdict
from flanneld_masq.reconcile.values import FlushSeen, Repair, Target
from flanneld_masq.ruleset import diff, flush, ownership
from flanneld_masq.ruleset.flush import Flush, FlushPolicy
from flanneld_masq.state_directory import StateDirectory

WRITE_TRIES = 4
COMMIT_WAIT_SECONDS = 0.1
REMEMBERED_COMMITS = 256  # a commit is remembered while its event may be on its way


class OwnCommits:
    """The commits of all reconcilers of one process, so that none takes the commit of another one for drift.

    A reconciler holds the lock `turn` while it writes and reads back.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._generations: tuple[int, ...] = ()  # replaced as a whole: another thread may read it

    def note(self, before: int, transactions: int) -> None:
        """Remember the generations that this number of transactions made after the generation `before`."""
        made = (following(before, number) for number in range(1, transactions + 1))
        self._generations = (*self._generations[-REMEMBERED_COMMITS:], *made)

    def __contains__(self, generation: int) -> bool:
        return generation in self._generations

    def made_all(self, since: int | None, until: int | None) -> bool:
        """Return True if these reconcilers made every commit after `since` up to `until`, or if nothing counts them."""
        if since is None or until is None:
            return True
        count = (until - since) & 0xFFFFFFFF
        return count <= REMEMBERED_COMMITS and all(following(since, n) in self for n in range(1, count + 1))

    @contextlib.contextmanager
    def own_turn(self) -> Iterator[None]:
        """Wait for the write of another family, but not for one that hangs: at worst the rules are written twice."""
        acquired = self.turn.acquire(timeout=COMMIT_WAIT_SECONDS)
        try:
            yield
        finally:
            if acquired:
                self.turn.release()


class Writer:
    """Writes the rules of one family, for one thread. The caller holds the family's lock in the state directory.

    `verified` is the last generation in which everything that the pass has read so far is right; None if nothing was
    read yet or the kernel counts no generations. `heard` is the generation of the last event before the pass.
    """

    def __init__(self, family: Family, store: StateDirectory, commits: OwnCommits, clock: Callable[[], float]) -> None:
        self.verified: int | None = None
        self.heard: int | None = None
        self._family = family
        self._store = store
        self._commits = commits
        self._clock = clock
        self._held: dict[BackendName, Target] = {}  # the target that each backend last met

    def converge(self, target: Target, on_flush: FlushPolicy = FlushPolicy.REPAIR) -> Repair | None:
        """Make the backend hold its target, and return what that changed; None if it held it already.

        Groups that are not in the target leave nothing. Raise MasqError if the kernel, a tool or a plugin refuses,
        FlushSeen if `on_flush` says so.
        """
        started = self._clock()
        seen_at = target.backend.generation()
        observed, changes = self.compare(target)
        drift = self._held.get(target.backend.name) == target
        if not changes:
            self.confirm(seen_at, self._hold(target))
            self._held[target.backend.name] = target
            return None
        found_at = target.backend.generation()

        def repair(part: Target, differing: tuple[Change, ...]) -> Repair:
            self._write(part, seen_at, observed, differing)
            duration_us = round((self._clock() - started) * 1_000_000)
            return Repair(Plan(self._family, target.backend.name, differing), duration_us, found_at, drift)

        arrives = self._arrives(target)
        if (drift or arrives) and on_flush is not FlushPolicy.REPAIR:
            found, counted = self._find_flush(target, observed, changes), found_at is not None
            if on_flush is FlushPolicy.FORWARD_WAITS and found.broken == frozenset(Group):
                raise FlushSeen(found, counted=counted, repair=repair(*_without_forward(target, changes)))
            if found.flushed or arrives or on_flush is not FlushPolicy.REPORT:
                raise FlushSeen(found, counted=counted)
        repaired = repair(target, changes)
        self._held[target.backend.name] = target
        return repaired

    def _arrives(self, target: Target) -> bool:
        """Return True if the forward group moves to this backend: a drop has begun there, and a flush may be next."""
        held = self._held.get(target.backend.name)
        return bool(self._held) and _has_forward(target) and not (held and _has_forward(held))

    def _hold(self, target: Target) -> int | None:
        """Protect what is as desired. Return the generation after that; None if nothing was committed, or if another
        program committed as well."""
        backend = target.backend
        if not target.wanted or not isinstance(backend, Protector):
            return None
        with self._commits.own_turn():
            before = backend.generation()
            transactions = backend.hold(target.desired)
            after = backend.generation() if transactions else None
            if before is None or after != following(before, transactions):
                return None
            self._commits.note(before, transactions)
            return after

    def traffic(self) -> dict[BackendName, Traffic]:
        """Return what the masquerade rules of each backend that counts have counted. Raise MasqError."""
        found = {}
        for name, target in self._held.items():
            group = target.desired.rules_of(Group.MASQUERADE)
            tags = [rule.tag for rule in group.rules if rule.verdict is Verdict.MASQUERADE] if group else []
            counted = target.backend.traffic(tags) if tags and isinstance(target.backend, Meter) else None
            if counted is not None:
                found[name] = counted
        return found

    def compare(self, target: Target) -> tuple[Observation, tuple[Change, ...]]:
        """Read the backend and return what is there and what must change. Raise RulesetError at an obstacle."""
        observed = self._observe(target)
        return observed, self._differences(target, observed)

    def confirm(self, generation: int | None, afterwards: int | None = None) -> None:
        """Note that a backend is right in `generation`, and still in `afterwards` if only this process committed.

        Of an incomplete generation only the one before it is certain.
        """
        if generation is None:
            return
        if afterwards in (None, generation) and not self.complete(generation):
            generation, afterwards = following(generation, -1), None
        if self.verified in (None, generation):
            self.verified = generation if afterwards is None else afterwards
        elif self.verified is not None and is_after(self.verified, generation):
            self.verified = generation

    def complete(self, generation: int | None) -> bool:
        """Return True if what was read in that generation cannot lack a part of it.

        The kernel counts a generation before its rules are visible, and reports it after that. It is complete if its
        event arrived before the pass, or if this process made it: the kernel answers a write after the commit.
        """
        if generation is None or generation in self._commits:
            return True
        return self.heard is not None and not is_after(generation, self.heard)

    def _observe(self, target: Target) -> Observation:
        observed = target.backend.observe(tuple(Group))
        if not observed.strangers:
            return observed
        verified_state = self._store.verified_state(target.backend.name, self._family)
        return ownership.settled(target.wanted, verified_state, observed)

    def _differences(self, target: Target, observed: Observation) -> tuple[Change, ...]:
        if target.wanted and observed.obstacle:
            raise RulesetError(observed.obstacle)
        verified_state = self._store.verified_state(target.backend.name, self._family)
        return diff.differences(target.wanted, target.desired, verified_state, observed)

    def _find_flush(self, target: Target, observed: Observation, changes: tuple[Change, ...]) -> Flush:
        verified_state = self._store.verified_state(target.backend.name, self._family)
        return flush.find(target.wanted, target.desired, verified_state, observed, changes)

    def _write(
        self,
        target: Target,
        seen_at: int | None,
        observed: Observation,
        changes: tuple[Change, ...],
    ) -> None:
        """Replace what was `observed` in the generation `seen_at`, read it back and remember the read-back.

        The read-back is trusted if no other program committed since the observation, or if it equals what the write
        before left. Otherwise the next try starts from it. Some programs commit without end, so for the last try it
        is enough that the tags are right. An observation of an incomplete generation may have missed its last commit,
        which matters only if the write keeps some of the objects observed.
        """
        problem = ""
        for tries_left in reversed(range(WRITE_TRIES)):
            with self._commits.own_turn():
                before = target.backend.generation()
                complete = not observed.items or self.complete(seen_at)
                current = complete and self._commits.made_all(seen_at, before)
                transactions = self._replace(target, observed, changes)
                seen_at = target.backend.generation()
                observed = self._observe(target)
                after = target.backend.generation()
                unmixed = before is None or after == following(before, transactions)
                if unmixed and before is not None:
                    self._commits.note(before, transactions)
            changes = self._differences(target, observed)
            problem = diff.unmet(target.wanted, observed)
            moved = any(change.kind is ChangeKind.MOVED for change in changes)
            trusted = not changes or (current and unmixed and not moved)
            if not problem and (trusted or not tries_left):
                self._remember(target, observed)
                self.confirm(before, after if trusted and unmixed else before)
                return
        raise RulesetError(
            f"{self._family}: {target.backend.name} wrote the rules {WRITE_TRIES} times, but each read-back "
            f"differed: {problem}; see `flanneld-masq plan`"
        )

    def _replace(self, target: Target, observed: Observation, changes: tuple[Change, ...]) -> int:
        """Replace the rules. If that fails with RulesetError and no rule is wanted, forget the verified state: a chain
        that a foreign rule keeps is then empty."""
        try:
            return target.backend.replace(target.desired, observed, changes)
        except RulesetError:
            if not target.wanted:
                self._store.forget(target.backend.name, self._family)
            raise

    def _remember(self, target: Target, observed: Observation) -> None:
        if target.wanted:
            verified_state = diff.verified_state_of(target.wanted, target.desired, observed)
            self._store.remember(target.backend.name, self._family, verified_state)
        else:
            self._store.forget(target.backend.name, self._family)


def _has_forward(target: Target) -> bool:
    return any(group.group is Group.FORWARD for group in target.desired.groups)


def _without_forward(target: Target, changes: tuple[Change, ...]) -> tuple[Target, tuple[Change, ...]]:
    """Return the target without the forward group, and the changes that are left to it."""
    groups = tuple(group for group in target.desired.groups if group.group is not Group.FORWARD)
    wanted = tuple(item for group in groups for item in flush.items_of(group, target.wanted))
    places = {item.place for item in wanted}
    desired = replace(target.desired, groups=groups)
    return Target(target.backend, desired, wanted), tuple(change for change in changes if change.place in places)
