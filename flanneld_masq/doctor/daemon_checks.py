"""Examines the configuration, the daemon and its service. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind, Severity
from flanneld_masq.inputs.saved_rulesets import TABLE
from flanneld_masq.model import Family

_KINDS = {State.DEGRADED: Kind.DAEMON_DEGRADED, State.CONTENDED: Kind.DAEMON_CONTENDED}


def configuration(facts: Facts) -> Iterator[Finding]:
    if facts.wrong:
        yield finding(Kind.CONFIGURATION_INVALID, facts.wrong)


def net_conf(facts: Facts) -> Iterator[Finding]:
    if facts.net_conf:
        yield finding(Kind.NET_CONF_UNUSABLE, facts.net_conf)


def plugins(facts: Facts) -> Iterator[Finding]:
    reported = facts.daemon.status.plugin_failures if facts.daemon.status is not None else ()
    for failure in dict.fromkeys((*facts.plugins, *reported)):
        yield finding(Kind.PLUGIN_FAILED, failure)


def saved_rulesets(facts: Facts) -> Iterator[Finding]:
    for saved in facts.daemon.saved if any(family.protected for family in facts.families) else ():
        yield finding(Kind.SAVED_RULESET, f"{saved.path}, line {saved.line}", table=TABLE, path=saved.path)


def running(facts: Facts) -> Iterator[Finding]:
    holder, unit = facts.daemon.holder, facts.daemon.unit
    if facts.daemon.status is None and not holder.runs:
        if unit is not None and unit.failed:
            yield finding(Kind.SERVICE_FAILED, str(unit))
        elif holder.runs is None:
            yield finding(Kind.DAEMON_UNKNOWN, holder.why)
        else:
            yield finding(Kind.DAEMON_NOT_RUNNING, "; ".join(map(str, filter(None, (holder.why, unit)))))
    for file in facts.daemon.unreadable:
        yield finding(Kind.SERVICE_CANNOT_READ, str(file), remedy=file.remedy)


def reported(facts: Facts) -> Iterator[Finding]:
    """Yield what the running daemon reports. It may meet troubles that this command, as another user, does not."""
    status = facts.daemon.status
    if status is None:
        return
    for trouble in status.troubles:
        if not _is_known(facts, trouble):
            severity = Severity.NOTICE if status.state is State.SYNCED else Severity.PROBLEM
            yield replace(finding(Kind.DAEMON_TROUBLE, trouble), severity=severity)
    for name, family in status.families.items():
        yield from _reported_of(status, name, family)
        if facts.unread.rules and family.cni_masquerade:  # otherwise the rules themselves were read
            yield finding(Kind.CNI_MASQUERADES, ", ".join(family.cni_masquerade), name)


def _is_known(facts: Facts, trouble: str) -> bool:
    """Return True if another finding says the same."""
    return trouble in (*facts.troubles, facts.net_conf) or bool(facts.wrong and trouble.startswith(facts.wrong))


def _reported_of(status: Status, name: Family, family: FamilyStatus) -> Iterator[Finding]:
    if family.flannel.takeover_stopped:
        yield finding(Kind.FLANNEL_RULES_RETURN, family.flannel.takeover_stopped, name)
    if family.state in _KINDS:
        asked_for = status.names(name) or not status.leases
        severity = Severity.PROBLEM if asked_for else Severity.NOTICE
        found = finding(_KINDS[family.state], family.last_error or "the daemon says so", name)
        yield replace(found, severity=severity)
