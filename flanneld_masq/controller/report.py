"""Turns the passes of a family into its status and log entries: outcome or failure in. Pure."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.backoff import LAST_DELAY
from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.log_throttle import DriftThrottle, LogThrottle
from flanneld_masq.controller.status import FamilyStatus, FlannelStatus, GroupStatus, LastWrite, MarkStatus, State
from flanneld_masq.controller.tally import Tally
from flanneld_masq.errors import LockHeld, MasqError
from flanneld_masq.hookspecs import Event
from flanneld_masq.inputs.text import shown
from flanneld_masq.model import SLOTS, BackendName, Family, Group, Protection, Survey, Traffic
from flanneld_masq.reconcile.healing import Healed
from flanneld_masq.reconcile.values import DesiredState, Effects, Outcome, Removed, Repair
from flanneld_masq.reconcile.wording import describe, describe_healed
from flanneld_masq.ruleset.diff import diff_text

MAX_SHOWN_COMMAND = 200


@dataclass(frozen=True, **SLOTS)
class Repaired:
    """The repairs of a pass, also of one that failed in the end, and who may have made them necessary.

    `committers` committed to nf_tables. `lock_users` used the lock of iptables-legacy. `now` are the seconds of a
    monotonic clock at that time.
    """

    repairs: tuple[Repair, ...]
    because: str
    committers: tuple[Culprit, ...]
    lock_users: tuple[Culprit, ...]
    at: datetime
    now: float

    def culprits(self, repair: Repair) -> tuple[Culprit, ...]:
        """Return who may have made a repair necessary. What was found in no generation is not in nf_tables."""
        if not repair.drift:
            return ()
        return self.lock_users if repair.found_at is None else self.committers

    @property
    def all_culprits(self) -> tuple[Culprit, ...]:
        return tuple(dict.fromkeys(culprit for repair in self.repairs for culprit in self.culprits(repair)))


@dataclass(frozen=True, **SLOTS)
class Failure:
    """Failure of a pass. `culprits` may have put the obstacle there; the next try comes in `retry_seconds`."""

    error: MasqError
    culprits: tuple[Culprit, ...]
    retry_seconds: float
    now: float


@dataclass
class WriteHistory:
    """The writes for one family since the daemon's start: how often drift was repaired, how many connections were
    healed, and the last write of each kind. A new lease does not hide who removed rules."""

    tally: Tally = field(default_factory=Tally)
    healed_flows: int = 0
    last_repair: LastWrite | None = None
    last_write: LastWrite | None = None

    def add(self, write: LastWrite) -> None:
        if write.drift:
            self.tally.add(write)
            self.last_repair = write
        else:
            self.last_write = write


@dataclass
class SurveyReport:
    """The results of surveys of foreign rules. `flannel` describes the effect of flannel's rules beside the daemon's;
    `takeover_stopped` is the reason why the daemon no longer removes them."""

    family: Family
    failure: str = ""  # of the last survey
    flannel: tuple[str, ...] = ()
    takeover_stopped: str = ""
    _surveys: Mapping[BackendName, Survey] = field(default_factory=dict)

    @property
    def flannel_rules(self) -> tuple[str, ...]:
        return tuple(name for name, survey in self._surveys.items() if survey.flannel)

    @property
    def cni_masquerade(self) -> tuple[str, ...]:
        return tuple(survey.cni_masquerade for survey in self._surveys.values() if survey.cni_masquerade)

    def failed(self, failure: str) -> Iterator[LogEntry]:
        """Log once that the survey failed."""
        message = f"{self.family}: {failure}; trying again at the next resync"
        if message != self.failure:
            yield _entry(self.family, "notice", message, logging.WARNING)
        self.failure = message

    def surveyed(
        self, removed: Removed, surveys: Mapping[BackendName, Survey], effects: Effects, stopped: str = ""
    ) -> Iterator[LogEntry]:
        """Take a survey into the status. Log the removed objects, the effect of flannel's rules beside the daemon's,
        and that the CNI plugin masquerades. `stopped` is why flannel's rules are not removed any more."""
        self.failure = ""
        for backend, items in removed:
            what = f"{len(items)} objects that flannel had written"
            yield _entry(self.family, "notice", f"{self.family}: {what} removed from {backend}", backend=backend)
        known = bool(self.cni_masquerade)
        self._surveys = surveys
        if self.cni_masquerade and not known:  # pods come and go, and the rule that is named with them
            message = (
                f"{self.family}: the CNI bridge plugin masquerades too ({', '.join(self.cni_masquerade)}), and so NATs "
                f'pod-to-pod traffic; set "ipMasq": false in the delegate of the flannel CNI configuration'
            )
            yield _entry(self.family, "notice", message, logging.WARNING)
        yield from self._flannel_entries(effects)
        if stopped and stopped != self.takeover_stopped:
            yield _entry(self.family, "takeover-stopped", f"{self.family}: {stopped}", logging.WARNING)
        self.takeover_stopped = stopped

    def _flannel_entries(self, effects: Effects) -> Iterator[LogEntry]:
        """Yield an entry for each effect of flannel's rules beside the daemon's that is new."""
        before, self.flannel = self.flannel, ()
        for backend, effect in effects.items():
            overrules = bool(effect.conflicts or effect.unread)
            kind, level = ("flannel-decides", logging.WARNING) if overrules else ("notice", logging.INFO)
            for message in (f"{backend}: {summary}" for summary in effect.summaries()):
                self.flannel += (message,)
                if message not in before:
                    yield _entry(self.family, kind, f"{self.family}: {message}", level, backend=backend)


@dataclass
class FamilyReport:
    """The status of one family, and what the log says of each change of it; one class because the two must agree."""

    family: Family
    state: State = State.WAITING
    settled: bool = False  # a pass has followed the start, or the last reload
    outcome: Outcome | None = None  # of the last pass that succeeded
    held: DesiredState | None = None  # what that pass made the kernel hold
    error: MasqError | None = None  # of the last pass
    stuck: str = ""  # what a step that does not end waits for
    traffic: Mapping[BackendName, Traffic] = field(default_factory=dict)  # at the last resync
    survey: SurveyReport = field(init=False)
    _verified_at: datetime | None = None  # when a pass last succeeded
    _writes: WriteHistory = field(default_factory=WriteHistory)
    _throttle: LogThrottle = field(default_factory=LogThrottle)
    _drift_throttle: DriftThrottle = field(default_factory=DriftThrottle)
    _contention_logged: bool = False
    _not_healed: str = ""  # why connections could not be healed last; empty if they could

    def __post_init__(self) -> None:
        self.survey = SurveyReport(self.family)

    @property
    def shown_state(self) -> State:
        """The state that the last pass left, unless a step does not end: then nothing is known of the rules."""
        return State.DEGRADED if self.stuck else self.state

    def status(self, *, named: bool = True) -> FamilyStatus:
        """Return the status. A family that no subnet file names (`named`) is never synced, for nothing is wanted."""
        choices = self.outcome.choices if self.outcome else {}
        rules = self.outcome.rules if self.outcome else {}
        mark = self.outcome.kube_proxy_mark if self.outcome else None
        return FamilyStatus(
            State.WAITING if self.shown_state is State.SYNCED and not named else self.shown_state,
            last_error=self.stuck or ("; ".join(self._dropped) if self.error is None else str(self.error)),
            groups={group: GroupStatus.of(chosen, rules.get(group, 0)) for group, chosen in choices.items()},
            repairs=self._writes.tally.repairs,
            last_repair=self._writes.last_repair,
            last_write=self._writes.last_write,
            verified=self._verified_at,
            healed_flows=self._writes.healed_flows,
            cni_masquerade=self.survey.cni_masquerade,
            flannel=FlannelStatus(self.survey.flannel, self.survey.takeover_stopped, self.survey.flannel_rules),
            kube_proxy_mark=None if mark is None else MarkStatus(str(mark.mark or ""), mark.why),
            protection=self.outcome.protection if self.outcome else None,
            totals=self._writes.tally.totals,
            traffic=self.traffic,
        )

    def chosen(self, outcome: Outcome, without_random: Collection[BackendName]) -> Iterator[LogEntry]:
        """Log each new choice of a backend, and each drop that none can help. `without_random` are backends that lack
        the random ports that are wanted."""
        before = self.outcome.choices if self.outcome else {}
        for group, choice in ((group, choice) for group, chosen in outcome.choices.items() for choice in chosen):
            if choice in before.get(group, ()):
                continue
            message = f"{self.family} {group}: backend {choice.backend}, {choice.why}"
            backend, why = choice.backend, choice.why
            yield self._entry("backend-chosen", message, group=str(group), backend=backend, reason=why)
            if choice.backend in without_random:
                message = f"{self.family}: {choice.backend} cannot choose fully random ports here; masquerading without"
                yield self._entry("notice", message, backend=choice.backend)
        yield from self._unhelped(outcome)

    def protected(self, outcome: Outcome, *, wanted: bool) -> Iterator[LogEntry]:
        """Log once that other programs can change the daemon's tables although the settings forbid it."""
        before = self.outcome.protection if self.outcome else None
        if wanted and outcome.protection is Protection.NONE and before is not Protection.NONE:
            message = (
                f"{self.family}: nft.protect is true, but the kernel cannot protect a table (Linux 5.12 can); other "
                f"programs can change the rules, and the daemon repairs them"
            )
            yield self._entry("notice", message, logging.WARNING)

    def _unhelped(self, outcome: Outcome) -> Iterator[LogEntry]:
        """Log each drop of pods' packets once where no accept can be put, and that there is none any more."""
        before = self.outcome.unhelped if self.outcome else ()
        for drop in outcome.unhelped:
            if drop not in before:
                message = f"{self.family}: {drop}"
                yield self._entry("forward-dropped", message, logging.WARNING, group=str(Group.FORWARD))
        if before and not outcome.unhelped:
            yield self._entry(
                "recovered", f"{self.family}: no FORWARD chain without the daemon's accept drops pods' packets any more"
            )

    def mark_entries(self, outcome: Outcome) -> Iterator[LogEntry]:
        """Log a mark that was read from kube-proxy's rules, once per change, and the return to the default."""
        mark, before = outcome.kube_proxy_mark, self.outcome.kube_proxy_mark if self.outcome else None
        if mark is not None and mark != before and (mark.read or (before is not None and before.read)):
            message = f"{self.family}: packets with kube-proxy's mark {mark.mark} are left to kube-proxy ({mark.why})"
            yield self._entry("mark-chosen", message, group=str(Group.MASQUERADE), reason=mark.why)

    def repaired(self, done: Repaired) -> Iterator[LogEntry]:
        """Log and count each repair. Of an author with too many, those beyond the rate limit are logged for debugging
        alone."""
        for repair in done.repairs:
            culprits = done.culprits(repair)
            yield self._repair_entry(repair, done, culprits)
            self._writes.add(
                LastWrite(
                    time=done.at.isoformat(timespec="milliseconds"),
                    backend=repair.plan.backend,
                    reason=done.because,
                    drift=repair.drift,
                    duration_us=repair.duration_us,
                    changes=repair.plan.changes,
                    culprits=culprits,
                )
            )

    def gap(self, seconds: float) -> None:
        """Count the time that rules were not as wanted."""
        self._writes.tally.gap_us += round(seconds * 1_000_000)

    def healed(self, healed: Healed) -> Iterator[LogEntry]:
        """Log and count the connections that were healed after a pass."""
        self._writes.healed_flows += healed.flows
        if healed.flows:
            message = f"{self.family}: {describe_healed(healed)}"
            yield self._entry("flows-healed", message, group=str(Group.MASQUERADE), duration_us=healed.duration_us)
        if healed.complete:
            self._not_healed = ""
        else:
            seconds = healed.duration_us / 1_000_000
            yield from self._cannot_heal(f"the search ended after {seconds:.0f} s, because there are too many")

    def not_healed(self, error: MasqError) -> Iterator[LogEntry]:
        """Log that connections cannot be healed; no more until they could be, or the reason is another one."""
        yield from self._cannot_heal(f"{error}; check that the kernel module nf_conntrack_netlink is loaded")

    def _cannot_heal(self, why: str) -> Iterator[LogEntry]:
        if why != self._not_healed:
            message = f"{self.family}: connections that began without masquerade are not all healed: {why}"
            yield self._entry("notice", message, logging.WARNING, group=str(Group.MASQUERADE))
        self._not_healed = why

    def verified(self, outcome: Outcome) -> Iterator[LogEntry]:
        """Log a first pass that found all right."""
        if self.held is None and not outcome.repairs and outcome.choices:
            message = f"{self.family}: the kernel already holds the right rules; nothing written"
            yield self._entry("verified", message)

    def succeeded(
        self, desired: DesiredState, outcome: Outcome, *, contended: bool, at: datetime | None = None
    ) -> None:
        """Take the outcome of a pass, and the time of its end, into the status."""
        self.error, self.held, self.outcome, self._verified_at = None, desired, outcome, at
        self.state = State.CONTENDED if contended else State.DEGRADED if self._dropped else State.SYNCED

    @property
    def _dropped(self) -> tuple[str, ...]:
        """Return what drops pods' packets where no accept can be put."""
        return () if self.outcome is None else self.outcome.unhelped

    def state_entries(self, because: str, culprits: tuple[Culprit, ...], *, quiet: bool) -> Iterator[LogEntry]:
        """Log a contention that began, or trouble that is over; the status says the same by then.

        `quiet` is True if the pass ended a contention.
        """
        recovered = self._throttle.over() or quiet
        contended = self.state is State.CONTENDED
        if contended and not self._contention_logged:
            names = " or ".join(map(str, culprits)) or "a program that the kernel does not name"
            message = (
                f"{self.family}: {names} keeps undoing the daemon's rules; the daemon repairs them after growing "
                "delays, at least every "
                f"{LAST_DELAY:.0f} s, until it stops"
            )
            self._writes.tally.contentions += 1
            yield self._entry("contended", message, logging.WARNING, **_blame(culprits))
        elif recovered and not contended and not self._dropped:
            yield self._entry("recovered", f"{self.family}: in sync again", reason=because)
        self._contention_logged = contended

    def failed(self, failure: Failure) -> Iterator[LogEntry]:
        """Take a failure into the status; log it unless it was logged already."""
        waits = isinstance(failure.error, LockHeld)
        self.state, self.error = State.WAITING if waits else State.DEGRADED, failure.error
        line = self._throttle.line(str(failure.error), failure.now)
        if line is not None and waits:
            message = f"{self.family}: {line}; the daemon waits until the lock is free"
            yield self._entry("lock-held", message, logging.WARNING)
        elif line is not None:
            names = " or ".join(map(str, failure.culprits))
            by = f"; meanwhile changed by {names}" if names else ""
            retry = f"; next try in {failure.retry_seconds:.1f} s, then after growing delays"
            message = f"{self.family}: {line}{by}{retry}"
            yield self._entry("degraded", message, logging.ERROR, **_blame(failure.culprits))

    def step_is_stuck(self, seconds: float, argv: tuple[str, ...]) -> Iterator[LogEntry]:
        """Take into the status that a step has not ended after so many seconds; log it the first time."""
        logged = bool(self.stuck)
        program = shown(" ".join(argv), MAX_SHOWN_COMMAND) if argv else "it waits for the kernel or for a lock"
        self.stuck = f"a pass has been running for {seconds:.0f} s: {program}"
        if not logged:
            message = f"{self.family}: {self.stuck}; until it ends, the daemon cannot restore missing rules"
            yield self._entry("stuck", message, logging.WARNING)

    def step_ended(self, seconds: float) -> Iterator[LogEntry]:
        """Log that the step goes on; its result is the state now."""
        self.stuck = ""
        yield self._entry("notice", f"{self.family}: the delayed pass has continued after {seconds:.0f} s")

    def rules_left(self, error: MasqError) -> LogEntry:
        """Log rules that could not be removed at a stop."""
        return self._entry("rules-left", f"{self.family}: rules not removed: {error}", logging.ERROR)

    def not_released(self, error: MasqError) -> LogEntry:
        """Log rules that end with the daemon at a stop."""
        return self._entry("notice", f"{self.family}: rules end with the daemon: {error}", logging.ERROR)

    def _repair_entry(self, repair: Repair, done: Repaired, culprits: tuple[Culprit, ...]) -> LogEntry:
        what = "drift repaired" if repair.drift else "rules applied"
        by = f", by {' or '.join(map(str, culprits))}" if culprits else ""
        if repair.drift and repair.found_at is None and not culprits:
            by = "; the kernel does not report by which program"
        message = (
            f"{self.family}: {what} with {repair.plan.backend} in {repair.duration_us / 1000:.1f} ms "
            f"({done.because}): {describe(repair.plan.changes)}{by}"
        )
        level = logging.INFO
        if repair.drift:
            author = culprits[-1].name if culprits else ""
            line = self._drift_throttle.line(message, author, done.now)
            message, level = line or message, logging.WARNING if line else logging.DEBUG
        return self._entry(
            "drift-repaired" if repair.drift else "rules-applied",
            message,
            level,
            backend=repair.plan.backend,
            reason=done.because,
            duration_us=repair.duration_us,
            diff=diff_text(repair.plan),
            **_blame(culprits),
        )

    def _entry(self, kind: str, message: str, level: int = logging.INFO, **fields: Any) -> LogEntry:
        return _entry(self.family, kind, message, level, **fields)


def _entry(family: Family, kind: str, message: str, level: int = logging.INFO, **fields: Any) -> LogEntry:
    return LogEntry(Event(kind, message, family=str(family), **fields), level)


def _blame(culprits: tuple[Culprit, ...]) -> dict[str, Any]:
    """Return the fields of an event that name the most likely author of a change; empty if there is no suspect."""
    if not culprits:
        return {}
    last = culprits[-1]
    return {
        "culprit": last.name,
        "culprit_pid": last.pid,
        "culprit_command": last.command,
        "culprit_unit": last.unit,
    }
