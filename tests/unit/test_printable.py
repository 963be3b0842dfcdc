"""Text that other programs wrote: what a terminal or a log would act on is escaped wherever a value carries it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq import errors
from flanneld_masq.cli.status_lines import status_lines
from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.status import FamilyStatus, LastWrite, State, Status, to_json
from flanneld_masq.doctor.findings import Finding, Kind, Severity, text_of
from flanneld_masq.errors import BackendUnavailable, BusError, CommandError, ConfigError, KernelError, MasqError
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, Observation, Plan, Probe, Survey
from flanneld_masq.printable import MAX_MESSAGE, MAX_TEXT, one_line, printable
from flanneld_masq.ruleset import diff
from flanneld_masq.ruleset.backend_choice import Choice

EVIL = "a\x1b[2J\x1b]0;pwned\x07\nNov 26 node sshd[1]: Accepted\r\x9b2J\u202e\u2028\udcff"
SHOWN = r"a\x1b[2J\x1b]0;pwned\x07\nNov 26 node sshd[1]: Accepted\r\x9b2J\u202e\u2028\udcff"
NFT = BackendName("nft")


def test_what_a_terminal_acts_on_is_escaped() -> None:
    assert printable(EVIL) == SHOWN


def test_plain_text_of_any_script_stays() -> None:
    assert printable('-m comment --comment "naïve \\ 规则"') == '-m comment --comment "naïve \\ 规则"'


@given(st.text(), st.integers(10, 100))
def test_the_result_is_printable_bounded_and_final(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert printable(shown, limit) == shown


def test_the_lines_of_a_tool_become_one() -> None:
    assert one_line("line 1 failed\n\n  line 2\x1b failed \n") == r"line 1 failed; line 2\x1b failed"
    assert len(one_line("x" * 10_000_000)) == MAX_MESSAGE


@pytest.mark.parametrize(
    "error",
    [
        MasqError(EVIL),
        BackendUnavailable("nft", EVIL, EVIL),
        BusError(EVIL, EVIL),
        CommandError(("iptables", EVIL), EVIL, stderr=EVIL * 100_000),
        ConfigError(EVIL, EVIL, EVIL),
        KernelError(EVIL, EVIL),
        errors.PluginError(EVIL, EVIL, EVIL),
        errors.SubnetFileError(EVIL, 1, EVIL),
        errors.StateError(EVIL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_one_printable_line(error: MasqError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) <= MAX_MESSAGE
    assert getattr(error, "reason", "").isprintable()
    assert getattr(error, "remedy", "").isprintable()


# Each field is in it. The kind is one of the daemon's own, and the lines of a diff stay lines.
EVENT: dict[str, Any] = {
    **{field.name: EVIL if field.type == "str" else 1 for field in dataclasses.fields(Event)},
    "kind": "notice",
    "diff": EVIL.replace("\n", ""),
}


@pytest.mark.parametrize(
    "value",
    [
        Change(ChangeKind.EXTRA, EVIL, EVIL, EVIL * 1000),
        Choice(NFT, EVIL),
        Event(**EVENT),
        Observation(obstacle=EVIL),
        Probe(False, EVIL, EVIL, (EVIL,)),
        Survey(cni_masquerade=EVIL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_for_people_is_printable(value: object) -> None:
    content = dataclasses.asdict(value)  # type: ignore[call-overload]
    texts = [text for field in content.values() for text in (field if isinstance(field, tuple) else (field,))]
    assert [
        text for text in texts if isinstance(text, str) and not (text.isprintable() and len(text) <= MAX_TEXT)
    ] == []


def test_a_diff_keeps_its_own_lines_and_no_other() -> None:
    change = Change(ChangeKind.EXTRA, "ip flanneld-masq postrouting", found=f'accept comment "{EVIL}"')
    text = diff.diff_text(Plan(Family.IPV4, NFT, (change,)))
    assert text.splitlines() == [
        "@@ ipv4 nft: ip flanneld-masq postrouting @@",
        "# extra",
        f'- accept comment "{SHOWN}"',
    ]
    assert Event("drift-repaired", "", diff=text).diff == text


def status() -> Status:
    last = LastWrite("then", NFT, EVIL, True, 1, culprits=(Culprit("nft", 8, "nft --token SECRET", "x.service"),))
    family = FamilyStatus(State.DEGRADED, last_error=EVIL, last_repair=last, kernel=EVIL)
    return Status(State.DEGRADED, troubles=(EVIL,), plugin_failures=(EVIL,), families={Family.IPV4: family})


def test_no_command_line_is_in_the_status() -> None:
    assert "SECRET" not in json.dumps(to_json(status()))
    assert "SECRET" not in "".join(status_lines(status()))
    assert "x.service" in json.dumps(to_json(status()))


def test_a_finding_of_doctor_is_printable() -> None:
    lines = list(text_of([Finding(Kind.RULES_DIFFER, Severity.PROBLEM, *[EVIL] * 6)]))
    assert lines and all(line.isprintable() for line in lines)
