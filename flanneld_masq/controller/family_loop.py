"""The loop of one family: events and timers in, passes over the kernel out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from typing import NamedTuple, Protocol

from flanneld_masq.controller.attribution import Culprit, EventFilter
from flanneld_masq.controller.departure import Departure
from flanneld_masq.controller.flush_hold import FlushHold, patience_with
from flanneld_masq.controller.healer import Healer
from flanneld_masq.controller.legacy_poller import LegacyPoller, cpu_seconds
from flanneld_masq.controller.report import Failure, FamilyReport, Repaired
from flanneld_masq.controller.schedule import (
    CHANGES_BY_OTHERS,
    EVENTS_LOST,
    MAX_SETTLE_SECONDS,
    RESYNC,
    RULESET_CHANGED,
    TABLES_CHANGED,
    Begun,
    Schedule,
    settle_seconds,
)
from flanneld_masq.controller.step_watch import Publisher, StepWatch
from flanneld_masq.controller.surveyor import Found, Surveyor
from flanneld_masq.controller.worker import Wakeup
from flanneld_masq.errors import LockHeld, MasqError, RulesetError
from flanneld_masq.inputs.processes import Process
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import BackendName, Family, Group, Protection, Settings, Traffic
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState, FlushSeen, Outcome
from flanneld_masq.ruleset.flush import FlushPolicy

DROP_GONE = "nothing drops any more"

_LOGGER = logging.getLogger("flanneld_masq")


class DesiredStates(Protocol):
    """Source of the desired state. Read from the event loop's thread."""

    settings: Settings

    def current(self) -> DesiredState | None:
        """Return what is to hold now; None until there is a lease."""


class Feed(Protocol):
    """The commits to nf_tables, queued for each family. `heard` is the generation of the last one; None for none."""

    heard: int | None

    def drain(self) -> None:
        """Queue what was committed until now. Calls nothing back. Raises KernelError."""

    def take(self, family: Family) -> tuple[Sequence[Transaction], bool]:
        """Return what is queued, and whether events were lost."""


class _Pass(NamedTuple):
    outcome: Outcome
    polls: bool
    leaving: bool
    missed_drop: bool
    cpu: float
    ended: float  # when the rules were right, by the clock of the event loop
    surveyed: Found | None  # by a resync that repaired nothing, which so wakes the event loop once
    traffic: Mapping[BackendName, Traffic] | None  # None if it was not read


class FamilyLoop:
    """Reconciles one family when it is dirty, when the resync is due, and again after a failure.

    It is one class because the order of a pass must be readable in one place; each decision is made elsewhere.

    Each family has its own thread for the kernel and the tools, so a tool that hangs for one family does not delay the
    other family or a signal. `running` returns the argv of the tool that runs for the family, `ports` has the netlink
    ports of this process and of the programs that it runs. All methods are called from the event loop's thread.
    """

    def __init__(
        self,
        report: FamilyReport,
        reconciler: Reconciler,
        desired: DesiredStates,
        feed: Feed,
        publisher: Publisher,
        running: Callable[[], tuple[str, ...]] = tuple,
        ports: Container[int] = (),
    ) -> None:
        self.report = report
        self._reconciler = reconciler
        self._desired = desired
        self._feed = feed
        self._publisher = publisher
        self._schedule = Schedule()
        self._filter = EventFilter(reconciler.detector, ports=ports)
        self._poller = LegacyPoller(reconciler.detector.poll, lambda: self.mark(TABLES_CHANGED), ports)
        self._departure = Departure(lambda: self._filter.suspects.count, lambda: self.mark(DROP_GONE, urgent=False))
        self._worker = StepWatch(report, publisher, running)
        self._surveyor = Surveyor(report.survey, reconciler)
        self._healer = Healer(report, publisher)
        self._wakeup = Wakeup()
        self._asked: list[asyncio.Future[Outcome]] = []  # each waits for the next pass

    @property
    def family(self) -> Family:
        return self.report.family

    def look(self, reason: str) -> asyncio.Future[Outcome]:
        """Mark the family; return the future outcome of the next pass, or the MasqError that it ends with."""
        asked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.mark(reason)
        return asked

    def mark(self, reason: str, *, reprobe: bool = False, urgent: bool = True) -> None:
        """Have a pass begin at once, or if it is not urgent as soon as a contention allows."""
        self._schedule.mark(reason, reprobe=reprobe, urgent=urgent)
        if reason in CHANGES_BY_OTHERS or not urgent:
            self._schedule.gap.noticed(self._now())
        self.report.settled = self.report.settled and not reprobe
        self._wakeup.notify()

    def receive(self) -> None:
        """Take the queued commits, and mark the family if they may concern it."""
        transactions, lost = self._feed.take(self.family)
        if (not transactions and not lost) or self._desired.current() is None:
            return
        reason, outcome = EVENTS_LOST if lost else RULESET_CHANGED, self.report.outcome
        if self._schedule.passing or self._schedule.failures or outcome is None:
            self._filter.suspects.add(transactions)
            self.mark(reason)  # the end of the pass shows which of them it has not seen; or the trouble is over
        elif outcome.generation is not None and self._filter.needs_pass(transactions, lost, outcome.generation):
            self.mark(reason)

    def lock_released(self, programs: Sequence[Process]) -> None:
        """These programs are done with the lock of iptables-legacy: they may have changed tables, or made some."""
        self._poller.lock_released(programs)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._schedule.expect(self._now())
            asked, self._asked = self._asked, []
            await self._pass()
            self._answer(asked)
            delay = self._schedule.next(self._now(), self._desired.settings.reconcile.resync_seconds)
            self._schedule.expect(self._now(), delay)
            if not await self._wakeup.until(lambda: self._schedule.dirty, delay):
                self._schedule.mark(RESYNC)
            self._schedule.expect_hold(self._now())
            await self._hold_back()

    def hangs(self, moved: float) -> bool:
        """Return True if the loop should have gone on by now.

        `moved` is the time when a tool of the family last started or ended.
        """
        return self._schedule.hangs(self._now(), moved)

    async def remove(self) -> None:
        """Remove all rules of the daemon for this family."""
        errors: Sequence[MasqError]
        try:
            _, errors = await self._worker.call(self._reconciler.remove_everything)
        except MasqError as failure:  # another flanneld-masq holds the lock, for example
            errors = (failure,)
        self._publisher.emit(map(self.report.rules_left, errors))

    async def release(self) -> None:
        """Write rules that would end with this process once more, so that they stay."""
        if self.report.outcome is None or self.report.outcome.protection is not Protection.OWNER:
            return
        try:
            await self._worker.call(self._reconciler.release)
        except MasqError as failure:
            self._publisher.emit((self.report.not_released(failure),))

    def close(self) -> None:
        self._poller.stop()
        self._departure.stop()
        self._healer.close()
        self._worker.close()

    def _answer(self, asked: Iterable[asyncio.Future[Outcome]]) -> None:
        """Give the result of the pass to those who wait for it; some may have gone."""
        for future in (future for future in asked if not future.done()):
            if self.report.error is not None:
                future.set_exception(self.report.error)
            elif self.report.outcome is None or self._desired.current() is None:
                future.set_exception(MasqError("there is no subnet file yet, so there is nothing to do"))
            else:
                future.set_result(self.report.outcome)

    async def _hold_back(self) -> None:
        """Let a rebuild by another program end, and keep to the back-off."""
        suspects, settled = self._filter.suspects, self._now() + MAX_SETTLE_SECONDS
        while self._now() < settled and (pause := settle_seconds(suspects.suspected())):
            count = suspects.count
            await asyncio.sleep(pause)
            self._drain()
            if suspects.count == count:
                break
        held = self._schedule.held_until() - self._now()
        if held > 0:
            await self._wakeup.until(lambda: self._schedule.urgent, held)

    def _drain(self) -> None:
        """Take what was committed until now. An event that cannot be read names nobody."""
        with contextlib.suppress(MasqError):
            self._feed.drain()
        self.receive()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _pass(self) -> None:
        desired, reasons, outcome = self._desired.current(), self._schedule.take(), self.report.outcome
        if desired is None:
            self._schedule.gap.dropped()
            self._filter.suspects.forget(None)
            return
        if outcome is not None and not self._schedule.failures:
            self._filter.suspects.forget(outcome.generation)
            if reasons == (RULESET_CHANGED,) and self._filter.can_be_dropped():
                self._schedule.gap.dropped()
                return
        self._poller.stop()
        begun = self._schedule.begin(reasons)
        self._schedule.gap.begin(self._now())
        changed = begun.asked or desired != self.report.held
        self._healer.due = self._healer.due or desired != self.report.held
        lacking = outcome is not None and bool(outcome.unhelped)  # a program that may have been installed meanwhile
        begun = replace(begun, reprobe=begun.reprobe or (lacking and begun.is_resync))
        try:
            done = await self._carry_out(desired, begun, report_flush=not changed)
        except MasqError as error:
            self._on_failure(error, begun)
        except Exception as error:  # the top of the loop: a bug must not end the daemon, nor be hidden
            if self._on_failure(MasqError(f"internal error: {error!r}"), begun):
                _LOGGER.exception("%s: internal error", self.family)
        else:
            self.report.traffic = self.report.traffic if done.traffic is None else done.traffic
            self._on_success(desired, done.outcome, begun, done.ended)
            if changed or begun.is_resync:
                await self._survey(desired, done.surveyed, changed=changed, reloaded=begun.asked)
            self._healer.begin(desired)  # after the survey, which may have removed rules of flannel that masqueraded
            if done.leaving:
                self._departure.wait()
            else:
                self._departure.stop()
            if done.missed_drop:
                self.mark(TABLES_CHANGED)
            fruitless = begun.reasons == (TABLES_CHANGED,) and not done.outcome.repairs
            every = self._desired.settings.reconcile.legacy_poll_seconds if done.polls else None
            self._poller.start(every, done.cpu, fruitless=fruitless)
        finally:
            self._schedule.end()

    async def _survey(self, desired: DesiredState, found: Found | None, *, changed: bool, reloaded: bool) -> None:
        """Survey foreign rules, unless the pass did. After a change or a repair the pass is reported first."""
        if reloaded:
            self._surveyor.reloaded()
        if found is None:
            found = await self._worker.call(partial(self._surveyor.read, desired, changed=changed))
        self._publisher.emit(self._surveyor.take(desired, found))
        self._publisher.publish()

    async def _carry_out(self, desired: DesiredState, begun: Begun, *, report_flush: bool) -> _Pass:
        """Delay the repair until another program has finished its flush. Its next command may be `iptables -X`, which
        fails while the daemon's jump leads to the daemon's chain."""
        hold = FlushHold(FlushPolicy.REPORT if report_flush else FlushPolicy.REPAIR)
        stay = report_flush and not self._departure.due
        while True:
            with contextlib.suppress(MasqError):  # then fewer events were heard
                self._feed.drain()
            try:
                heard, policy = self._feed.heard, hold.policy
                survey = begun.is_resync and report_flush
                return await self._worker.call(
                    partial(self._reconcile, desired, begun, heard=heard, on_flush=policy, stay=stay, survey=survey)
                )
            except FlushSeen as seen:
                self._on_repairs(begun)  # of another backend, or of the masquerade group alone
                if seen.repair is not None:
                    self._healer.begin(desired)  # the masquerade group holds; forward may wait for seconds
                self._drain()
                suspects = self._filter.suspects
                names = {one.name for one in suspects.suspected()}
                patience = patience_with(seen.flush, names, counted=seen.counted)
                await asyncio.sleep(hold.pause(seen.flush, suspects.count, patience, self._now()))

    def _reconcile(
        self, desired: DesiredState, begun: Begun, *, heard: int | None, on_flush: FlushPolicy, stay: bool, survey: bool
    ) -> _Pass:
        """Do one pass. Runs in the worker's thread."""
        if begun.reprobe:
            self._reconciler.selector.reprobe()
        elif begun.is_resync:
            self._reconciler.selector.recheck()
        started = cpu_seconds()
        outcome = self._reconciler.reconcile(desired, heard, on_flush=on_flush, stay=stay)
        ended = time.monotonic()  # as the event loop counts
        detector = self._reconciler.detector
        leaving = self._reconciler.selector.leaving
        polls, missed_drop, used = detector.polls(), detector.missed_drop(), cpu_seconds() - started
        traffic = self._traffic() if begun.is_resync and desired.settings.exports_metrics else None
        found = self._surveyor.read(desired, changed=False) if survey and not outcome.repairs else None
        return _Pass(outcome, polls, leaving, missed_drop, used, ended, found, traffic)

    def _traffic(self) -> Mapping[BackendName, Traffic] | None:
        """Return what masquerade rules have counted; None if that cannot be read. In the worker's thread."""
        try:
            return self._reconciler.traffic()
        except MasqError:
            return None

    def _on_success(self, desired: DesiredState, outcome: Outcome, begun: Begun, ended: float) -> None:
        masquerade, selector = self._desired.settings.masquerade, self._reconciler.selector
        random = masquerade.enabled and masquerade.random_fully
        backends = {choice.backend for choice in outcome.choices.get(Group.MASQUERADE, ())} if random else ()
        without_random = [backend for backend in backends if not selector.randomises(backend)]
        self._publisher.emit(self.report.chosen(outcome, without_random))
        self._publisher.emit(self.report.protected(outcome, wanted=desired.settings.nft_protect is True))
        self._publisher.emit(self.report.mark_entries(outcome))
        culprits = self._on_repairs(begun)
        self.report.gap(self._schedule.gap.end(ended))
        self._filter.verified(outcome.generation, outcome.fingerprint)
        self._publisher.emit(self.report.verified(outcome))
        quiet = not outcome.repairs and self._schedule.backoff.in_order(self._now())
        self._schedule.succeeded()
        contended, now = self._schedule.backoff.contended, datetime.now(timezone.utc)
        self.report.succeeded(desired, outcome, contended=contended, at=now)
        self._settle()
        self._publisher.emit(self.report.state_entries(begun.because, culprits, quiet=quiet))

    def _on_failure(self, error: MasqError, begun: Begun) -> bool:
        """Return True if the failure was logged."""
        self._on_repairs(begun)  # of the other backend, for example
        seen_in = self._drift_seen_in()
        if seen_in is not None:
            self._filter.suspects.forget(seen_in)  # that was reported, and everything is read again
        self._schedule.failed(self._now(), waits=isinstance(error, LockHeld))
        culprits = self._in_the_way(error)
        retry = self._schedule.retry_delay
        entries = tuple(self.report.failed(Failure(error, culprits, retry, self._now())))
        self._publisher.emit(entries)
        self._settle()
        return bool(entries)

    def _settle(self) -> None:
        """A pass has followed the start or the last reload, unless a reload came meanwhile."""
        self.report.settled = not self._schedule.reprobe_pending
        self._publisher.publish()

    def _in_the_way(self, error: MasqError) -> tuple[Culprit, ...]:
        """Return the programs that may have made the object that disables the daemon's rules."""
        if not isinstance(error, RulesetError):
            return ()
        self._drain()
        return self._filter.suspects.culprits()

    def _on_repairs(self, begun: Begun) -> tuple[Culprit, ...]:
        """Report what the pass repaired; return the programs that may have made that necessary."""
        repairs, seen_in = tuple(self._reconciler.repairs), self._drift_seen_in()
        committers: tuple[Culprit, ...] = ()
        if seen_in is not None:
            self._drain()  # a pass may see a change before the event of it is read
            committers = self._filter.suspects.culprits(seen_in)
        lock_users, at = self._poller.suspects.culprits(), datetime.now(timezone.utc)
        done = Repaired(repairs, begun.because, committers, lock_users, at, self._now())
        self._publisher.emit(self.report.repaired(done))
        self._healer.due = self._healer.due or bool(repairs)
        if any(repair.drift for repair in repairs):
            self._schedule.backoff.repaired(self._now())
            self._schedule.gap.drifted()
        return done.all_culprits

    def _drift_seen_in(self) -> int | None:
        """Return the generation in which the pass saw the last change by another program; None for no change."""
        repairs = self._reconciler.repairs
        seen = [repair.found_at for repair in repairs if repair.drift and repair.found_at is not None]
        return seen[-1] if seen else None
