"""Report of a family: outcomes and failures in, log entries and status out."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import Failure, FamilyReport, Repaired
from flanneld_masq.controller.status import GroupStatus, MarkStatus, State, group_json
from flanneld_masq.errors import KernelError, LockHeld
from flanneld_masq.model import (
    BackendName,
    Change,
    ChangeKind,
    Family,
    Group,
    Item,
    ItemKind,
    Mark,
    Plan,
    Protection,
    Settings,
    Survey,
    Verdict,
)
from flanneld_masq.reconcile.values import DesiredState, Effects, Outcome, Repair
from flanneld_masq.ruleset.backend_choice import Choice
from flanneld_masq.ruleset.flannel_effect import Conflict, Effect, FlannelRule
from flanneld_masq.ruleset.mark_choice import MarkChoice

V4, NFT = Family.IPV4, BackendName("nft")
AT = datetime(2026, 11, 26, 12, 0, 0, 123456, tzinfo=timezone.utc)
CHOICES = {group: (Choice(NFT, "the first choice of auto"),) for group in Group}
DESIRED = DesiredState(Settings())
EVIL = Culprit("evil", 42, "evil --now", "evil.service")
PLAN = Plan(V4, NFT, (Change(ChangeKind.EXTRA, "ip t", found="accept"),))
DRIFT = Repair(PLAN, 1500, found_at=7, drift=True)


@pytest.fixture
def report() -> FamilyReport:
    return FamilyReport(V4)


def lines(entries: Iterable[LogEntry]) -> list[tuple[str, int, str]]:
    return [(entry.event.kind, entry.level, entry.event.message) for entry in entries]


def failure(text: str, *culprits: Culprit) -> Failure:
    return Failure(KernelError("reading", text), culprits, 0.2, 0.0)


def test_a_new_choice_is_logged_once(report: FamilyReport) -> None:
    outcome = Outcome(CHOICES, (), {Group.MASQUERADE: 5, Group.FORWARD: 2})
    assert [kind for kind, _, _ in lines(report.chosen(outcome, ()))] == ["backend-chosen"] * 2
    report.succeeded(DESIRED, outcome, contended=False)
    assert lines(report.chosen(outcome, (NFT,))) == []
    assert report.status().groups[Group.MASQUERADE].rules == 5


def test_a_backend_without_random_ports_is_reported(report: FamilyReport) -> None:
    outcome = Outcome({Group.MASQUERADE: CHOICES[Group.MASQUERADE]}, (), {})
    assert lines(report.chosen(outcome, (NFT,)))[-1] == (
        "notice",
        logging.INFO,
        "ipv4: nft cannot choose fully random ports here; masquerading without",
    )


def test_tables_that_cannot_be_protected_are_reported_once(report: FamilyReport) -> None:
    outcome = Outcome(CHOICES, (), {}, protection=Protection.NONE)
    assert lines(report.protected(outcome, wanted=False)) == []
    ((kind, level, message),) = lines(report.protected(outcome, wanted=True))
    assert (kind, level) == ("notice", logging.WARNING)
    assert "nft.protect is true, but the kernel cannot protect a table" in message
    report.succeeded(DESIRED, outcome, contended=False)
    assert lines(report.protected(outcome, wanted=True)) == []
    assert report.status().protection is Protection.NONE


def test_mark_of_kube_proxy_is_logged_once_per_change(report: FamilyReport) -> None:
    default = MarkChoice(Mark(0x4000, 0x4000), "the default")
    read = MarkChoice(Mark(1, 1), "chain KUBE-MARK-MASQ of table ip nat", read=True)
    logged = []
    for mark in (default, default, read, read, default, None, default, read):
        outcome = Outcome(CHOICES, (), {}, kube_proxy_mark=mark)
        logged.append([entry.event.message for entry in report.mark_entries(outcome)])
        report.succeeded(DESIRED, outcome, contended=False)
    assert [len(lines) for lines in logged] == [0, 0, 1, 0, 1, 0, 0, 1]
    assert logged[2] == [
        "ipv4: packets with kube-proxy's mark 0x1/0x1 are left to kube-proxy (chain KUBE-MARK-MASQ of table ip nat)"
    ]
    assert report.status().kube_proxy_mark == MarkStatus("0x1/0x1", read.why)


def test_a_repair_names_the_culprit_and_is_counted(report: FamilyReport) -> None:
    (entry,) = report.repaired(Repaired((DRIFT,), "ruleset changed", (EVIL,), (), AT, 0.0))
    assert (entry.event.culprit, entry.event.culprit_pid, entry.event.culprit_unit) == ("evil", 42, "evil.service")
    assert "by evil (pid 42, evil.service)" in entry.event.message
    status = report.status()
    assert status.repairs == 1
    assert status.last_repair is not None
    assert (status.last_repair.time, status.last_repair.culprits) == ("2026-11-26T12:00:00.123+00:00", (EVIL,))


def test_too_many_repairs_of_one_author_are_logged_only_at_debug(report: FamilyReport) -> None:
    done = Repaired((DRIFT,), "ruleset changed", (EVIL,), (), AT, 0.0)
    levels = [level for _ in range(30) for _, level, _ in lines(report.repaired(done))]
    assert levels == [logging.WARNING] * 20 + [logging.DEBUG] * 10
    assert report.status().repairs == 30
    ((_, level, message),) = lines(report.repaired(replace(done, now=60.0)))
    assert level == logging.WARNING
    assert message.endswith(" (repairs of changes by evil before this one that were not logged: 10)")


def test_the_first_write_is_no_drift(report: FamilyReport) -> None:
    (entry,) = report.repaired(Repaired((Repair(PLAN, 1500, found_at=7),), "start", (EVIL,), (EVIL,), AT, 0.0))
    assert (entry.event.kind, entry.level, entry.event.culprit) == ("rules-applied", logging.INFO, "")
    assert report.status().repairs == 0


def test_drift_without_a_generation_names_nobody(report: FamilyReport) -> None:
    (entry,) = report.repaired(
        Repaired((Repair(PLAN, 1500, drift=True),), "legacy tables changed", (EVIL,), (), AT, 0.0)
    )
    assert entry.event.message.endswith("; the kernel does not report by which program")
    assert entry.event.culprit == ""


def test_drift_without_a_generation_names_the_users_of_the_lock(report: FamilyReport) -> None:
    legacy = Repair(PLAN, 1500, drift=True)
    done = Repaired((legacy, DRIFT), "legacy tables changed", (), (EVIL,), AT, 0.0)
    first, second = report.repaired(done)
    assert first.event.message.endswith(", by evil (pid 42, evil.service)")
    assert second.event.culprit == "", "nf_tables has an author of its own"
    assert done.all_culprits == (EVIL,)


def test_a_failure_is_logged_once_and_its_end_too(report: FamilyReport) -> None:
    assert lines(report.failed(failure("no, at 1"))) == [
        ("degraded", logging.ERROR, "ipv4: reading: no, at 1; next try in 0.2 s, then after growing delays")
    ]
    assert lines(report.failed(failure("no, at 2"))) == []
    assert (report.state, report.status().last_error) == (State.DEGRADED, "reading: no, at 2")
    report.succeeded(DESIRED, Outcome(CHOICES, (), {}), contended=False)
    assert [kind for kind, _, _ in lines(report.state_entries("retry", (), quiet=False))] == ["recovered"]
    assert (report.state, report.status().last_error) == (State.SYNCED, "")
    assert lines(report.state_entries("resync", (), quiet=False)) == []


def test_a_held_lock_is_no_error(report: FamilyReport) -> None:
    held = Failure(LockHeld("iptables-restor (pid 42) holds /run/xtables.lock"), (), 0.2, 0.0)
    message = "ipv4: iptables-restor (pid 42) holds /run/xtables.lock; the daemon waits until the lock is free"
    assert lines(report.failed(held)) == [("lock-held", logging.WARNING, message)]
    assert lines(report.failed(held)) == []
    assert (report.state, report.status().last_error) == (State.WAITING, str(held.error))
    report.succeeded(DESIRED, Outcome(CHOICES, (), {}), contended=False)
    assert [kind for kind, _, _ in lines(report.state_entries("retry", (), quiet=False))] == ["recovered"]


def test_a_failure_names_what_is_in_the_way(report: FamilyReport) -> None:
    (entry,) = report.failed(failure("no", EVIL))
    assert "; meanwhile changed by evil (pid 42, evil.service)" in entry.event.message
    assert entry.event.culprit == "evil"


def test_a_contention_is_logged_once(report: FamilyReport) -> None:
    for expected in (["contended"], []):
        report.succeeded(DESIRED, Outcome(CHOICES, (DRIFT,), {}), contended=True)
        assert [kind for kind, _, _ in lines(report.state_entries("", (EVIL,), quiet=False))] == expected
    assert report.state is State.CONTENDED
    report.succeeded(DESIRED, Outcome(CHOICES, (), {}), contended=False)
    assert [kind for kind, _, _ in lines(report.state_entries("", (), quiet=True))] == ["recovered"]


def test_a_drop_that_none_can_help_is_logged_once_and_shown(report: FamilyReport) -> None:
    outcome = Outcome(CHOICES, (), {}, unhelped=("chain FORWARD drops, install iptables",))
    for expected in (["forward-dropped"], []):
        logged = [entry for entry in report.chosen(outcome, ()) if entry.event.kind != "backend-chosen"]
        assert [entry.event.kind for entry in logged] == expected
        assert all(entry.level == logging.WARNING for entry in logged)
        report.succeeded(DESIRED, outcome, contended=False)
        assert lines(report.state_entries("start", (), quiet=False)) == []
    assert (report.state, report.status().last_error) == (State.DEGRADED, "chain FORWARD drops, install iptables")
    over = Outcome(CHOICES, (), {})
    assert [kind for kind, _, _ in lines(report.chosen(over, ()))] == ["recovered"]
    report.succeeded(DESIRED, over, contended=False)
    assert (report.state, report.status().last_error) == (State.SYNCED, "")


def test_a_group_in_two_backends_is_shown_with_both(report: FamilyReport) -> None:
    both = (Choice(NFT, "one"), Choice(BackendName("iptables-legacy"), "two"))
    report.succeeded(DESIRED, Outcome({**CHOICES, Group.FORWARD: both}, (), {Group.FORWARD: 2}), contended=False)
    group = report.status().groups[Group.FORWARD]
    assert [(carrier.backend, carrier.why, carrier.rules) for carrier in group.carriers] == [
        (NFT, "one", 2),
        ("iptables-legacy", "two", 2),
    ]
    assert group_json(group)["also"] == [{"backend": "iptables-legacy", "why": "two", "rules": 2}]
    one = GroupStatus.of(CHOICES[Group.MASQUERADE], 5)
    assert group_json(one) == {"backend": "nft", "why": "the first choice of auto", "rules": 5}


def test_only_a_first_pass_without_repairs_is_verified(report: FamilyReport) -> None:
    outcome = Outcome(CHOICES, (), {})
    assert [kind for kind, _, _ in lines(report.verified(outcome))] == ["verified"]
    assert lines(report.verified(Outcome({}, (), {}))) == []
    assert lines(report.verified(Outcome(CHOICES, (DRIFT,), {}))) == []
    report.succeeded(DESIRED, outcome, contended=False)
    assert lines(report.verified(outcome)) == []


def test_a_survey_shows_in_the_status_and_in_the_log(report: FamilyReport) -> None:
    rule = Item(ItemKind.RULE, "nat FLANNEL-POSTRTG", "a rule")
    surveys = {NFT: Survey((rule,), "chain CNI-1")}
    removed, masquerade = lines(report.survey.surveyed(((NFT, (rule,)),), surveys, {}))
    assert removed == ("notice", logging.INFO, "ipv4: 1 objects that flannel had written removed from nft")
    assert masquerade[1] == logging.WARNING and "(chain CNI-1)" in masquerade[2]
    status = report.status()
    assert (status.flannel.backends, status.cni_masquerade) == (("nft",), ("chain CNI-1",))
    assert lines(report.survey.surveyed((), surveys, {})) == [], "pods come and go"


def test_a_survey_that_fails_is_logged_until_one_succeeds(report: FamilyReport) -> None:
    error = "cannot list foreign rules: no"
    assert lines(report.survey.failed(error)) == [
        ("notice", logging.WARNING, "ipv4: cannot list foreign rules: no; trying again at the next resync")
    ]
    assert lines(report.survey.failed(error)) == [] and report.survey.failure
    assert lines(report.survey.surveyed((), {}, {})) == [] and not report.survey.failure
    assert len(lines(report.survey.failed(error))) == 1


def test_a_step_that_does_not_end_shows_until_it_does(report: FamilyReport) -> None:
    report.succeeded(DESIRED, Outcome(CHOICES, (), {}), contended=False)
    assert lines(report.step_is_stuck(5.0, ("iptables-legacy-restore", "-w"))) == [
        (
            "stuck",
            logging.WARNING,
            "ipv4: a pass has been running for 5 s: 'iptables-legacy-restore -w'; until it ends, the daemon cannot "
            "restore missing rules",
        )
    ]
    assert report.status().state is State.DEGRADED
    assert lines(report.step_is_stuck(10.2, ())) == [], "logged once"
    assert report.status().last_error == "a pass has been running for 10 s: it waits for the kernel or for a lock"
    assert lines(report.step_ended(12.0)) == [
        ("notice", logging.INFO, "ipv4: the delayed pass has continued after 12 s")
    ]
    assert (report.status().state, report.status().last_error) == (State.SYNCED, "")


def test_a_step_that_hangs_hides_the_last_error_until_it_ends(report: FamilyReport) -> None:
    list(report.failed(failure("no")))
    list(report.step_is_stuck(5.0, ()))
    assert report.status().last_error.startswith("a pass has been running for 5 s")
    list(report.step_ended(6.0))
    assert (report.status().state, report.status().last_error) == (State.DEGRADED, "reading: no")


def test_a_command_line_without_end_is_cut(report: FamilyReport) -> None:
    ((_, _, message),) = lines(report.step_is_stuck(5.0, ("x" * 10_000,)))
    assert len(message) < 500


CONFLICT = Conflict(
    FlannelRule(Item(ItemKind.RULE, "nat FLANNEL-POSTRTG", "masquerade"), Verdict.MASQUERADE),
    "packets of pods",
    "masquerade.enabled = false",
)


def test_flannels_rules_are_reported_once_per_change(report: FamilyReport) -> None:
    agreeing, conflicting = {NFT: Effect(5)}, {NFT: Effect(5, (CONFLICT,))}
    effects: tuple[Effects, ...] = (agreeing, agreeing, conflicting, {}, agreeing)
    logged = [lines(report.survey.surveyed((), {}, effect)) for effect in effects]
    assert [[(kind, level) for kind, level, _ in entries] for entries in logged] == [
        [("notice", logging.INFO)],
        [],
        [("flannel-decides", logging.WARNING)],
        [],
        [("notice", logging.INFO)],
    ]
    assert logged[0][0][2] == "ipv4: nft: flannel's 5 masquerade rules were read and agree with the policy"
    assert "masquerade.enabled = false has no effect: packets of pods get the node's address" in logged[2][0][2]
    assert report.status().flannel.effects == ("nft: flannel's 5 masquerade rules were read and agree with the policy",)


def test_takeover_that_stops_is_reported_once(report: FamilyReport) -> None:
    for count in (1, 0):
        entries = lines(report.survey.surveyed((), {}, {}, "it came back"))
        assert entries == [("takeover-stopped", logging.WARNING, "ipv4: it came back")] * count
    assert report.status().flannel.takeover_stopped == "it came back"
    assert lines(report.survey.surveyed((), {}, {})) == []
    assert report.status().flannel.takeover_stopped == ""
