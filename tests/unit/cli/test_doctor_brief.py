"""`doctor --brief`: the line, its length, and what a failure and the time limit become."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest

from flanneld_masq.cli import doctor
from flanneld_masq.cli.doctor_brief import MAX_BYTES, examine_briefly, line_of
from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.findings import Finding, Kind, Severity
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family
from flanneld_masq.packet_path.collect import TIMEOUT, collect
from flanneld_masq.process import ProcessRunner

from .program import Program
from .test_doctor_snapshot import BROKEN, LEASE, OWN, saved

PATIENT = 60.0  # seconds; no test waits for it


def found(kind: Kind, severity: Severity = Severity.PROBLEM, family: Family | str = "") -> Finding:
    return replace(finding(Kind.CONFIGURATION_INVALID, "seen"), kind=kind, severity=severity, family=str(family))


def test_a_healthy_node() -> None:
    notice = found(Kind.FLANNEL_RULES, Severity.NOTICE)
    assert examine_briefly(lambda: (notice,), PATIENT) == (0, "healthy: nothing found that breaks masquerading")


def test_a_problem_outweighs_what_is_unknown() -> None:
    findings = (found(Kind.FLOWS_UNKNOWN, Severity.UNKNOWN), found(Kind.RULES_DIFFER, family=Family.IPV4))
    assert examine_briefly(lambda: findings, PATIENT) == (1, "problem: rules-differ (ipv4)")


def test_what_cannot_be_told() -> None:
    findings = (found(Kind.FLOWS_UNKNOWN, Severity.UNKNOWN),)
    assert examine_briefly(lambda: findings, PATIENT) == (2, "unknown: flows-unknown")


def test_the_same_id_is_named_once() -> None:
    assert line_of([found(Kind.FLOW_DROPPED)] * 9) == "problem: flow-dropped"


def test_more_than_fit_are_counted() -> None:
    counted = f"problem: backend-unusable, bridge-address-differs and {len(Kind) - 2} more"
    assert line_of(list(map(found, Kind))) == counted


def test_each_line_fits() -> None:
    for pair in itertools.combinations(Kind, 2):
        line = line_of([found(kind, family=Family.IPV6) for kind in (*pair, Kind.RULES_DIFFER)])
        assert pair[0].value in line
        assert len(line) <= MAX_BYTES


@pytest.mark.parametrize("error", [MasqError("no \x1b[31m luck"), ValueError("é" * 99), KeyError()])
def test_an_error_is_no_problem_of_the_node(error: Exception) -> None:
    def fail() -> Sequence[Finding]:
        raise error

    status, line = examine_briefly(fail, PATIENT)
    assert (status, line.split(" ")[0]) == (2, "unknown:")
    assert len(line.encode()) <= MAX_BYTES
    assert line.isprintable()


def test_an_endless_examination_is_given_up() -> None:
    def hang() -> Sequence[Finding]:
        while True:
            time.sleep(PATIENT)

    assert examine_briefly(hang, 0.05) == (2, "unknown: the node was not examined within 0.05 s")


def test_programs_that_run_are_ended_with_the_time(tmp_path: Path) -> None:
    """Two threads wait for them, and each for as long as a program may take."""
    tools = {
        "nft": "exit 1",
        **dict.fromkeys(("iptables-nft-save", "ip6tables-nft-save"), f"exec {which('sleep')} 600"),
    }
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    run, begin = ProcessRunner((str(tmp_path),)), time.monotonic()

    def examine() -> Sequence[Finding]:
        collect(run, tmp_path)
        return ()

    assert examine_briefly(examine, 1.0) == (2, "unknown: the node was not examined within 1 s")
    assert run.stopped
    assert time.monotonic() - begin < TIMEOUT - 1


def test_the_limit_ends_with_the_examination() -> None:
    before = signal.getsignal(signal.SIGALRM)
    examine_briefly(tuple, PATIENT)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_the_command_prints_one_line(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    done = masq(f"doctor --brief --snapshot {saved(masq, BROKEN, LEASE)}")
    assert (done.status, done.out, done.err) == (1, "problem: flow-dropped (ipv4)\n", "")
    assert masq(f"doctor --brief --timeout 60 --snapshot {saved(masq, OWN, LEASE)}").status == 0


def test_the_command_as_json(masq: Program) -> None:
    done = masq("doctor --brief --json --snapshot /nonexistent")
    assert done.status == done.json["status"] == 2
    assert done.json["message"].startswith("unknown: ")


def test_an_invalid_configuration_is_a_problem(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "examined", lambda session, options: doctor.Answer((found(Kind.CONFIGURATION_INVALID),))
    )
    masq.configure("wrong = 1\n")
    assert masq("doctor --brief").status == 1
    assert masq("doctor").status == 2
