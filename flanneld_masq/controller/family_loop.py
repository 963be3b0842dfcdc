"""The loop of one family: dirty marks in, a pass over the kernel out, and when to look again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from flanneld_masq.controller.attribution import Culprit, SuspectTracker
from flanneld_masq.controller.backoff import LAST_DELAY, RepairBackoff
from flanneld_masq.controller.log_throttle import LogThrottle
from flanneld_masq.controller.worker import Worker
from flanneld_masq.errors import MasqError, RulesetError
from flanneld_masq.hookspecs import Event
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import BackendName, Family, Settings
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import remove_flannel_rules, survey_backends
from flanneld_masq.reconcile.values import DesiredState, Outcome, Removed, Repair, Surveys, describe
from flanneld_masq.ruleset.diff import diff_text
from flanneld_masq.service import journal

FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 60.0
MAX_HELD_BY_FAILURE = 5.0  # seconds that an event waits, for it may tell of the end of the trouble
# Who commits several times in a row, and after how many seconds without that is over. firewalld flushes and then
# rebuilds, and would flush ours again. iptables-restore, which goes from table to table, fails if it has to read the
# ruleset again in between: "CHAIN_DEL failed (No such file or directory)". Of a name the kernel tells 15 characters.
SETTLE_SECONDS = {
    "firewalld": 0.03,
    **{
        f"{tools}{flavour}-restore"[:15]: 0.006
        for tools in ("iptables", "ip6tables", "ebtables", "arptables")
        for flavour in ("", "-nft")
    },
}
MAX_SETTLE_SECONDS = 0.05
POLL_GRID_SECONDS = 0.5
POLL_TOLERANCE = 0.1  # of the grid: a poll that came a little early is that of its turn
LONGEST_STEP_SECONDS = 120.0  # of a pass: twice the time that the slowest tool is given
LISTING_PAUSE = 3.0  # times the work of a pass: listing may take a quarter of our time, however busy the tables are


def retry_delay(failures: int) -> float:
    """Seconds until the next try after so many failures in a row: doubling, then slow for ever."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(max(failures - 1, 0), 16), LAST_RETRY_SECONDS)


_RULESET_CHANGED, _EVENTS_LOST, _TABLES_MOVED = "ruleset changed", "ruleset events lost", "legacy tables changed"
RESYNC, _RETRY = "resync", "retry"
_CHANGES_BY_OTHERS = frozenset({_RULESET_CHANGED, _EVENTS_LOST, _TABLES_MOVED, RESYNC})


class _Flag:
    """Raised and lowered by the event loop's thread; who waits for it goes on in the next turn of the event loop.

    `asyncio.Event` under a time limit takes four turns, in each of which a rule is missing; and `wait_for` before
    Python 3.12 can swallow a cancellation that comes with the event.
    """

    def __init__(self) -> None:
        self.up = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self.up = True
        _resolve(self._waiter)

    def clear(self) -> None:
        self.up = False

    async def within(self, seconds: float) -> bool:
        """Whether it is up, now or before so many seconds have passed. For one waiter at a time."""
        if not self.up:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, _resolve, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self.up


def _resolve(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Owner(Protocol):
    """The daemon, as a loop sees it. All of it is called from the event loop's thread."""

    settings: Settings

    def desired_state(self) -> DesiredState | None:
        """What is to hold now; None until there is a lease."""

    def resync(self, family: Family) -> None:
        """The resync of the family is due."""

    def hear(self) -> None:
        """Tell the loops at once of what was committed until now. Raises KernelError."""

    def event(self, event: Event, level: int = logging.INFO) -> None:
        """Log it, and tell the plugins."""

    def publish(self) -> None:
        """Something in the status changed."""


class FamilyLoop:
    """Reconciles one family when it is dirty, when the resync is due, and again after a failure.

    The kernel and the tools are touched by a thread of its own, so that a tool which hangs for one family
    holds up neither the other one nor a signal.
    """

    def __init__(self, family: Family, reconciler: Reconciler, owner: Owner) -> None:
        self.family = family
        self.state = "waiting"
        self.last_error = ""
        self.outcome: Outcome | None = None
        self.last_repair: dict[str, Any] | None = None
        self.repairs = 0
        self.settled = False  # whether a pass has followed the start, or the last reload
        self._due = math.inf  # when the loop goes on at the latest, unless it hangs
        self._reconciler = reconciler
        self._owner = owner
        self._reasons: dict[str, None] = {}
        self._dirty = _Flag()
        self._urgent = _Flag()  # a new desired state does not wait for the end of a contention
        self._failures = 0
        self._error: MasqError | None = None  # of the last pass
        self._asked: list[asyncio.Future[Outcome]] = []  # who waits for the next pass
        self._throttle = LogThrottle()
        self._failed_at = float("-inf")
        self._desired_state: DesiredState | None = None  # the one that last held
        self._reprobe = False
        self._worker = Worker(str(family))
        self._suspects = SuspectTracker(self._is_ours)
        self._seen: tuple[bytes | None, ...] = ()  # by the last fingerprint
        self._backoff = RepairBackoff()
        self._contention_told = False
        self._flannel: list[BackendName] = []
        self._cni_masquerade: list[str] = []
        self._blindness = ""  # why the last look around came to nothing
        self._passing = False
        self._worked = 0.0  # seconds of CPU time that the last pass took, its tools included
        self._poll_timer: asyncio.TimerHandle | None = None

    def look(self, reason: str) -> asyncio.Future[Outcome]:
        """Mark, and what comes of the next pass; or the MasqError that it ended with."""
        asked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self.mark(reason)
        return asked

    def mark(self, reason: str, *, reprobe: bool = False, urgent: bool = True) -> None:
        """Note that something happened; the loop looks at once, or what is not urgent as soon as a contention allows.
        From the event loop's thread."""
        self._reasons[reason] = None
        self._reprobe = self._reprobe or reprobe
        self.settled = self.settled and not reprobe
        self._dirty.set()
        if urgent and reason not in _CHANGES_BY_OTHERS:
            self._urgent.set()

    def ruleset_changed(self, transactions: Iterable[Transaction], lost: bool) -> None:
        """Somebody committed to nf_tables. Our own commits, and what came before them, are known already."""
        if self._owner.desired_state() is None:
            return
        reason = _EVENTS_LOST if lost else _RULESET_CHANGED
        if self._passing or self._failures or self.outcome is None:
            self._suspects.hear(transactions)
            self.mark(reason)  # what of it the pass has not seen is known at its end; or it is the end of the trouble
            return
        verified = self.outcome.generation
        if verified is None:
            return
        self._suspects.hear(found for found in transactions if found.after(verified))
        if (self._suspects.heard or lost) and not self._no_concern():
            self.mark(reason)

    def _no_concern(self) -> bool:
        """Whether what was heard has changed nothing that a pass would read, since that was last seen. Where it cannot
        be told, it may have."""
        before = self._seen
        if not before:
            return False
        try:
            self._seen = self._reconciler.detector.fingerprint_again(before)
        except MasqError:
            return False  # a pass meets the same error, and reports it
        if self._seen == before:
            self._suspects.harmless()
            return True
        self._suspects.broke(self._reconciler.detector.generation())
        return False

    def _is_over(self) -> bool:
        """Whether what was heard was our own commits, or is of no concern, or seen by the pass before. Then it is
        forgotten."""
        if all(self._reconciler.detector.made(found.generation) for found in self._suspects.heard):
            self._suspects.heard.clear()
            return True
        return self._no_concern()

    def _is_ours(self, transaction: Transaction) -> bool:
        """Made by a reconciler of this process, in a write that ended well or in one that did not."""
        return (
            self._reconciler.detector.made(transaction.generation)
            or Path(f"/proc/self/task/{transaction.pid}").exists()
        )

    async def run(self) -> None:
        while True:
            self._expect(0)
            asked, self._asked = self._asked, []
            await self._pass()
            self._answer(asked)
            delay = self._delay()
            self._expect(delay)
            if not await self._dirty.within(delay):
                self._owner.resync(self.family)
            self._expect(LAST_DELAY)
            await self._hold_back()

    def _answer(self, asked: Iterable[asyncio.Future[Outcome]]) -> None:
        """Tell those who wait what came of the pass; some may have gone."""
        for each in (each for each in asked if not each.done()):
            if self._error is not None:
                each.set_exception(self._error)
            elif self.outcome is None or self._owner.desired_state() is None:
                each.set_exception(MasqError("there is no subnet file yet, so there is nothing to do"))
            else:
                each.set_result(self.outcome)

    def _expect(self, seconds: float) -> None:
        """What comes next takes so long at the most, and the steps of a pass."""
        self._due = self._now() + seconds + LONGEST_STEP_SECONDS

    def hangs(self, moved: float) -> bool:
        """Whether it should have gone on by now. A pass of many steps goes on with each: `moved` is when a tool of
        the family last started or ended."""
        return self._now() > max(self._due, moved + LONGEST_STEP_SECONDS)

    async def remove(self) -> None:
        """Remove all our rules of the family."""
        try:
            _, errors = await self._worker.call(self._reconciler.remove_everything)
        except MasqError as failure:  # another flanneld-masq holds the lock, say
            errors = (failure,)
        for error in errors:
            self._event("rules-left", f"{self.family}: rules not removed: {error}", level=logging.ERROR)

    def close(self) -> None:
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        self._worker.close()

    def status(self) -> dict[str, Any]:
        """For status.json and the `status` command."""
        groups = {}
        for group, chosen in (self.outcome.choices if self.outcome else {}).items():
            rules = self.outcome.rules.get(group, 0) if self.outcome else 0
            groups[str(group)] = {"backend": chosen.backend, "why": chosen.why, "rules": rules}
        return {
            "state": self.state,
            "last_error": self.last_error,
            "groups": groups,
            "repairs": self.repairs,
            "last_repair": self.last_repair,
            "flannel_rules": self._flannel,
            "cni_masquerade": self._cni_masquerade,
        }

    def _delay(self) -> float:
        """Seconds until the next look without any event."""
        if self._failures:
            return retry_delay(self._failures)
        resync = self._owner.settings.reconcile.resync_seconds
        quiet = self._backoff.due(self._now())
        return resync if quiet is None else min(quiet, resync)

    async def _hold_back(self) -> None:
        """Let a rebuild by others come to its end, and do not fight."""
        settled = self._now() + MAX_SETTLE_SECONDS
        while self._now() < settled and (rest := max(map(_rest_after, self._suspects.suspected()), default=0.0)):
            count = self._suspects.count
            await asyncio.sleep(rest)
            with contextlib.suppress(MasqError):  # then it is over as far as we know
                self._owner.hear()
            if self._suspects.count == count:
                break
        held = max(self._backoff.not_before, self._failed_at + min(retry_delay(self._failures), MAX_HELD_BY_FAILURE))
        if held > self._now():
            await self._urgent.within(held - self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _pass(self) -> None:
        desired_state = self._owner.desired_state()
        reasons, self._reasons = list(self._reasons), {}
        self._dirty.clear()
        self._urgent.clear()
        if desired_state is None:
            self._suspects.forget(None)
            return
        if self.outcome is not None and not self._failures:
            self._suspects.forget(self.outcome.generation)
            if reasons == [_RULESET_CHANGED] and not self._suspects.broken and self._is_over():
                return
        anew = self._reprobe or desired_state != self._desired_state
        reprobe, self._reprobe = self._reprobe or self._failures > 0, False
        if self._poll_timer is not None:
            self._poll_timer.cancel()
        self._passing = True
        try:
            outcome = await self._worker.call(lambda: self._reconcile(desired_state, reprobe))
            polls = self._reconciler.detector.polls()
        except MasqError as error:
            self._failed(error, self._because(reasons))
        except Exception as error:  # the top of the loop: a bug must not take the daemon down, nor be hidden
            if self._failed(MasqError(f"internal error: {error!r}"), self._because(reasons)):
                journal.LOGGER.exception("%s: internal error", self.family)
        else:
            self._held(desired_state, outcome, self._because(reasons))
            if anew or RESYNC in reasons:
                await self._look_around(desired_state, anew)
            if polls:
                self._poll_later(LISTING_PAUSE * self._worked)
        finally:
            self._passing = False

    def _poll_later(self, pause: float = 0.0) -> None:
        every = self._owner.settings.reconcile.legacy_poll_seconds
        self._poll_timer = asyncio.get_running_loop().call_at(next_turn(self._now(), pause, every), self._poll)

    def _poll(self) -> None:
        """Look at what has no events: cheap, and a full look only if it moved. Never while a pass runs."""
        try:
            moved = self._reconciler.detector.poll()
        except MasqError:
            moved = True  # the pass that follows meets the same error, and reports it
        if moved:
            self.mark(_TABLES_MOVED)
        else:
            self._poll_later()

    def _reconcile(self, desired_state: DesiredState, reprobe: bool) -> Outcome:
        if reprobe:
            self._reconciler.selector.reprobe()
        started = _worked()
        try:
            return self._reconciler.reconcile(desired_state)
        finally:
            self._worked = _worked() - started

    async def _look_around(self, desired_state: DesiredState, anew: bool) -> None:
        """What flannel left, and who else masquerades. Ours are in place by now, so flannel's may go. What could not be
        done is told once, and removing is not tried again but `anew`."""
        take_over = desired_state.settings.takeover_remove_flannel_rules and (anew or not self._blindness)
        try:
            removed, surveys = await self._worker.call(lambda: self._survey(desired_state, take_over))
        except MasqError as error:
            message = f"{self.family}: what others keep cannot be seen, or flannel's of it not be removed: {error}"
            if message != self._blindness:
                self._event("notice", message, level=logging.WARNING)
            self._blindness = message
            return
        self._blindness = ""
        for backend, items in removed:
            what = f"{len(items)} objects that flannel had written"
            self._event("notice", f"{self.family}: {what} removed from {backend}", backend=backend)
        found = {backend.name: survey for backend, survey in surveys}
        self._flannel = [name for name, survey in found.items() if survey.flannel]
        cni = [survey.cni_masquerade for survey in found.values() if survey.cni_masquerade]
        if cni and not self._cni_masquerade:  # pods come and go, and the rule that is named with them
            message = (
                f"{self.family}: the CNI bridge plugin masquerades too ({', '.join(cni)}), and so NATs pod-to-pod "
                f'traffic; set "ipMasq": false in the delegate of the flannel CNI configuration'
            )
            self._event("notice", message, level=logging.WARNING)
        self._cni_masquerade = cni
        self._owner.publish()

    def _survey(self, desired_state: DesiredState, take_over: bool) -> tuple[Removed, Surveys]:
        usable = self._reconciler.selector.usable()
        removed = remove_flannel_rules(usable, desired_state.leases) if take_over else ()
        return removed, survey_backends(usable, desired_state.leases)

    def _because(self, reasons: list[str]) -> str:
        again = _RETRY if self._failures else RESYNC
        return ", ".join(again if reason == RESYNC else reason for reason in reasons) or again

    def _failed(self, error: MasqError, reason: str) -> bool:
        """Whether the log tells of it."""
        self._report_repairs(reason)  # of the other backend, say
        found_at = self._drift_found_at()
        if found_at is not None:
            self._suspects.forget(found_at)  # that was told, and all is looked at anew
        message = str(error)
        self._error = error
        self._failures += 1
        self._failed_at = self._now()
        line = self._throttle.line(message, self._failed_at)
        if line is not None:
            who = self._in_the_way(error)
            by = f"; meanwhile changed by {' or '.join(map(str, who))}" if who else ""
            retry = f"; next try in {retry_delay(self._failures):.1f} s, then ever more slowly"
            self._event("degraded", f"{self.family}: {line}{by}{retry}", level=logging.ERROR, **_blame(who))
        self.state, self.last_error, self.settled = "degraded", message, not self._reprobe
        self._owner.publish()
        return line is not None

    def _in_the_way(self, error: MasqError) -> tuple[Culprit, ...]:
        """Who may have made what keeps our rules from taking effect."""
        if not isinstance(error, RulesetError):
            return ()
        with contextlib.suppress(MasqError):  # then nobody is named
            self._owner.hear()
        return self._suspects.culprits()

    def _held(self, desired_state: DesiredState, outcome: Outcome, reason: str) -> None:
        self._report_choices(outcome)
        culprits = self._report_repairs(reason)
        self._suspects.forget(outcome.generation)
        if self._desired_state is None and not outcome.repairs and outcome.choices:
            self._event("verified", f"{self.family}: the kernel already holds the right rules; nothing written")
        quiet = not outcome.repairs and self._backoff.in_order(self._now())
        over = self._throttle.over() or quiet
        contended = self._backoff.contended and not self._contention_told
        self._failures, self._error, self._desired_state, self.outcome = 0, None, desired_state, outcome
        self._seen = outcome.fingerprint
        self.state, self.last_error = "contended" if self._backoff.contended else "synced", ""
        self._contention_told = self._backoff.contended
        self.settled = not self._reprobe
        self._owner.publish()  # a line that tells of a state comes when the status says the same
        if contended:
            self._report_contention(culprits)
        elif over and self.state == "synced":
            self._event("recovered", f"{self.family}: in sync again", reason=reason)

    def _report_repairs(self, reason: str) -> tuple[Culprit, ...]:
        """Tell of what the pass repaired, also if it failed in the end; who may have made that needed."""
        repairs = self._reconciler.repairs
        culprits: tuple[Culprit, ...] = ()
        found_at = self._drift_found_at()
        if found_at is not None:
            with contextlib.suppress(MasqError):  # then nobody is named
                self._owner.hear()  # a pass may see what was done before the event of it is read
            culprits = self._suspects.culprits(found_at)
        for repair in repairs:
            self._report_repair(repair, reason, culprits if repair.drift and repair.found_at is not None else ())
        if any(repair.drift for repair in repairs):
            self._backoff.repaired(self._now())
        return culprits

    def _drift_found_at(self) -> int | None:
        """The generation in which the last pass has found the last of what others did; None if nothing."""
        found = [repair.found_at for repair in self._reconciler.repairs if repair.drift and repair.found_at is not None]
        return found[-1] if found else None

    def _report_repair(self, repair: Repair, reason: str, culprits: tuple[Culprit, ...]) -> None:
        what = "drift repaired" if repair.drift else "rules applied"
        by = f", by {' or '.join(map(str, culprits))}" if culprits else ""
        if repair.drift and repair.found_at is None:
            by = "; the kernel does not tell by whom"
        message = (
            f"{self.family}: {what} with {repair.plan.backend} in {repair.duration_us / 1000:.1f} ms "
            f"({reason}): {describe(repair.plan.changes)}{by}"
        )
        self._event(
            "drift-repaired" if repair.drift else "rules-applied",
            message,
            level=logging.WARNING if repair.drift else logging.INFO,
            backend=repair.plan.backend,
            reason=reason,
            duration_us=repair.duration_us,
            diff=diff_text(repair.plan),
            **_blame(culprits),
        )
        self.repairs += 1 if repair.drift else 0
        self.last_repair = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "backend": repair.plan.backend,
            "reason": reason,
            "drift": repair.drift,
            "duration_us": repair.duration_us,
            "changes": [dataclasses.asdict(change) for change in repair.plan.changes],
            "culprits": [dataclasses.asdict(culprit) for culprit in culprits],
        }

    def _report_contention(self, culprits: tuple[Culprit, ...]) -> None:
        who = " or ".join(map(str, culprits)) or "something that the kernel does not name"
        message = (
            f"{self.family}: {who} keeps undoing our rules; they are put back ever more slowly, at least every "
            f"{LAST_DELAY:.0f} s, until it stops"
        )
        self._event("contended", message, level=logging.WARNING, **_blame(culprits))

    def _report_choices(self, outcome: Outcome) -> None:
        before = self.outcome.choices if self.outcome else {}
        for group, chosen in outcome.choices.items():
            if before.get(group) != chosen:
                message = f"{self.family} {group}: backend {chosen.backend}, {chosen.why}"
                self._event("backend-chosen", message, group=str(group), backend=chosen.backend, reason=chosen.why)
                self._report_random(chosen.backend)

    def _report_random(self, backend: BackendName) -> None:
        wanted = self._owner.settings.masquerade
        if wanted.enabled and wanted.random_fully and not self._reconciler.selector.randomises(backend):
            message = f"{self.family}: {backend} cannot choose fully random ports here; masquerading without"
            self._event("notice", message, backend=backend)

    def _event(self, kind: str, message: str, *, level: int = logging.INFO, **fields: Any) -> None:
        self._owner.event(Event(kind, message, family=str(self.family), **fields), level)


def next_turn(now: float, pause: float, every: float) -> float:
    """The moment of the next poll, `pause` from `now` at the earliest, and then not later than `every`. On a grid that
    both families share, so that they wake the process together; who is late for a turn does not skip the next."""
    grid = min(every, POLL_GRID_SECONDS)
    return math.floor((now + pause + every) / grid + POLL_TOLERANCE) * grid


def _worked() -> float:
    """Seconds of CPU time of this thread, and of all tools that have ended. Waiting for a lock is no work."""
    used = os.times()
    return time.thread_time() + used.children_user + used.children_system


def _rest_after(transaction: Transaction) -> float:
    """How long to wait for another one of the same program."""
    return SETTLE_SECONDS.get(transaction.name, 0.0)


def _blame(culprits: tuple[Culprit, ...]) -> dict[str, Any]:
    """The fields of an event that name the last of them."""
    if not culprits:
        return {}
    last = culprits[-1]
    return {
        "culprit": last.name,
        "culprit_pid": last.pid,
        "culprit_command": last.command,
        "culprit_unit": last.unit,
    }
