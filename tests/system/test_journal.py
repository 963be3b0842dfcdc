"""The journal has ids, fields, priorities and explanations. While nothing happens, the daemon logs nothing."""

from __future__ import annotations

import os
import re
import tarfile
import time
from typing import Any

import pytest

from flanneld_masq.model import BackendName, Family
from flanneld_masq.service.journal import MESSAGE_IDS

from ..common import Tell, eventually, patience
from .machine import UNIT, Machine
from .rules import BACKENDS
from .site import SUBNET_FILE

ERROR, WARNING, INFO = "3", "4", "6"
LOCK = "/run/xtables.lock"
# An hour has sixty resyncs, and none may be shorter than a second.
RESYNCS = 60 if os.environ.get("LONG") == "1" else 8
_FLUSHES = {
    "nft": ("nft", "flush", "chain", "ip", "flanneld-masq", "postrouting"),
    "iptables-nft": ("iptables-nft", "-t", "nat", "-F", "FLANNELD-MASQ"),
    "iptables-legacy": ("iptables-legacy", "-t", "nat", "-F", "FLANNELD-MASQ"),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    found: BackendName = request.param
    return found


def of_kind(machine: Machine, kind: str, *arguments: str) -> list[dict[str, Any]]:
    return machine.journal(f"MESSAGE_ID={MESSAGE_IDS[kind]}", *arguments)


def told(machine: Machine, kind: str) -> dict[str, Any]:
    """Wait for an entry of that kind; the first."""
    return eventually(lambda: of_kind(machine, kind))[0]


def fields(entry: dict[str, Any]) -> dict[str, str]:
    return {key[14:]: value for key, value in entry.items() if key.startswith("FLANNELD_MASQ_")}


def start(machine: Machine, backend: str = "nft", text: str = "") -> None:
    machine.configure(text, backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")


def test_a_life_by_its_message_ids(machine: Machine) -> None:
    machine.configure(backend="nft")
    machine.systemctl("start", UNIT)
    machine.write_subnet()
    machine.reached("synced")
    machine.write(SUBNET_FILE, "FLANNEL_NETWORK=nonsense\n")
    told(machine, "lease-refused")
    machine.write_subnet()
    machine.write("/etc/flanneld-masq/config.toml", "nonsense = 1\n")
    machine.run("kill", "-HUP", machine.show("MainPID"))
    told(machine, "reload-refused")
    machine.configure(backend="iptables-nft")
    machine.systemctl("reload", UNIT)
    eventually(lambda: len(of_kind(machine, "backend-chosen")) == 8)  # each family's two groups, twice
    machine.systemctl("restart", UNIT)
    machine.systemctl("stop", UNIT)
    expected = {
        "started": INFO,
        "waiting": INFO,
        "lease-changed": INFO,
        "lease-refused": ERROR,
        "backend-chosen": INFO,
        "rules-applied": INFO,
        "verified": INFO,
        "reloaded": INFO,
        "reload-refused": ERROR,
        "stopped": INFO,
    }
    assert {kind: {each["PRIORITY"] for each in of_kind(machine, kind)} for kind in expected} == {
        kind: {priority} for kind, priority in expected.items()
    }
    assert not [kind for kind in MESSAGE_IDS.keys() - expected.keys() if of_kind(machine, kind)]


def test_a_report_has_the_journal_without_command_lines(machine: Machine) -> None:
    start(machine)
    machine.run("nft", "flush chain ip flanneld-masq postrouting # hunter2")
    culprit = fields(told(machine, "drift-repaired"))
    done = machine.masq("report", "/root/report.tar.gz")
    assert "Read it before you send it" in done.stdout
    with tarfile.open(machine.path("/root/report.tar.gz")) as archive:
        members = {member.name.split("/", 1)[1]: archive.extractfile(member) for member in archive.getmembers()}
        parts = {name: file.read().decode() for name, file in members.items() if file is not None}
    assert "hunter2" not in "".join(parts.values())
    assert f"FLANNELD_MASQ_CULPRIT={culprit['CULPRIT']}" in parts["journal.txt"]
    assert ("CULPRIT_COMMAND=(redacted)" in parts["journal.txt"]) is ("CULPRIT_COMMAND" in culprit)
    assert f"Id={UNIT}\n" in parts["systemd.txt"]
    assert "ActiveState=active" in parts["systemd.txt"]
    assert not [line for line in parts["problems.txt"].splitlines() if "journal" in line or "systemctl" in line]


def test_every_line_of_ours_has_an_id(machine: Machine) -> None:
    start(machine)
    machine.systemctl("stop", UNIT)
    entries = machine.journal("--identifier=flanneld-masq")
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {UNIT}
    assert {entry["MESSAGE_ID"] for entry in entries} <= set(MESSAGE_IDS.values())


def test_a_drift_shows_what_and_who(machine: Machine, backend: BackendName) -> None:
    start(machine, backend, "[forward]\nenabled = false\n")
    machine.run(*_FLUSHES[backend])
    entry = told(machine, "drift-repaired")
    found = fields(entry)
    place = "ip flanneld-masq postrouting" if backend == "nft" else "nat FLANNELD-MASQ"
    head, *lines = found.pop("DIFF").splitlines()
    assert head == f"@@ ipv4 {backend}: {place} @@"
    assert lines[::2] == ["# missing"] * 5
    assert all(line.startswith("+ ") and "flanneld-masq:" in line for line in lines[1::2])
    assert entry["PRIORITY"] == WARNING
    assert 0 < int(found.pop("DURATION_US")) < 10_000_000
    reason = "legacy tables changed" if backend == "iptables-legacy" else "ruleset changed"
    assert (found.pop("FAMILY"), found.pop("BACKEND"), found.pop("REASON")) == ("ipv4", backend, reason)
    if backend == "iptables-legacy":
        # on a busy machine the program may end before the daemon has read its name
        named = found.get("CULPRIT") == "iptables-legacy" and int(found["CULPRIT_PID"]) > 0
        by = ", by iptables-legacy (pid " if named else "the kernel does not report by which program"
        assert by in entry["MESSAGE"]
    else:
        # the machine has a pid namespace of its own, so the name is all that is known
        assert found == {"CULPRIT": _FLUSHES[backend][0][:15]}
        assert entry["MESSAGE"].endswith(f", by {_FLUSHES[backend][0]} (pid not known in a pid namespace)")


def test_what_was_written_first_is_shown_too(machine: Machine) -> None:
    start(machine)
    for entry in of_kind(machine, "rules-applied"):
        family = Family(entry["FLANNELD_MASQ_FAMILY"]).data.nft
        assert f"+ table {family} flanneld-masq" in entry["FLANNELD_MASQ_DIFF"]
        assert entry["FLANNELD_MASQ_REASON"] == "start"


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (
            "C.UTF-8",
            {"Another program changed the rules of ipv4; they were put back", "with\nnft", "An occasional repair"},
        ),
        ("zh_CN.UTF-8", {"ipv4 规则曾被其他程序改动", "通过 nft 写入", "偶尔出现属于正常情况"}),
    ],
)
def test_the_catalog_explains(machine: Machine, language: str, words: set[str]) -> None:
    start(machine)
    machine.run(*_FLUSHES["nft"])
    entry = told(machine, "drift-repaired")
    environ = {"LANG": language, "LC_ALL": language}
    query = f"MESSAGE_ID={MESSAGE_IDS['drift-repaired']}"
    said = machine.run("journalctl", "--no-pager", "-x", query, environ=environ).stdout
    explained = "\n".join(line.removeprefix("░░ ") for line in said.splitlines())
    assert {word for word in words if word not in explained} == set()
    assert f"{entry['FLANNELD_MASQ_DURATION_US']} " in explained
    assert "man:flanneld-masq(8)" in explained
    everything = machine.run("journalctl", "--no-pager", "-x", f"--unit={UNIT}", environ=environ).stdout
    assert "@FLANNELD" not in everything
    ours = machine.journal("--identifier=flanneld-masq")
    assert everything.count("Defined-By: flanneld-masq") == len(ours) > 5


def test_the_catalog_has_all_in_the_machines_own_format(machine: Machine) -> None:
    """`journalctl --update-catalog` took every entry of both files."""
    for language in ("C.UTF-8", "zh_CN.UTF-8"):
        environ = {"LANG": language, "LC_ALL": language}
        for message_id in MESSAGE_IDS.values():
            said = machine.run("journalctl", "--no-pager", "--dump-catalog", message_id, environ=environ).stdout
            assert "Defined-By: flanneld-masq" in said
            # where there is none in the language, the English one is shown
            assert bool(re.search("[\u4e00-\u9fff]", said)) == (language == "zh_CN.UTF-8"), said


@pytest.mark.parametrize("state", ["synced", "waiting"])
def test_idle_is_silent(machine: Machine, state: str) -> None:
    machine.configure("[reconcile]\nresync_seconds = 1\n", backend="nft")
    if state == "synced":
        machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached(state)
    process = f"/proc/{machine.show('MainPID')}/status"

    def wakings() -> int:
        lines = machine.path(process).read_text().splitlines()
        return int(dict(line.split(":\t") for line in lines)["voluntary_ctxt_switches"])

    machine.logged("started" if state == "waiting" else "ipv6: rules applied")
    cursor, before, end = machine.cursor(), wakings(), time.monotonic() + RESYNCS + 0.5
    eventually(lambda: time.monotonic() > end, RESYNCS + 10.0)
    assert wakings() - before >= RESYNCS
    assert machine.journal(f"--unit={UNIT}", f"--after-cursor={cursor}") == []


def test_a_failure_is_told_once_and_so_is_its_end(machine: Machine) -> None:
    """Another program makes the legacy lock file again, with access for root alone."""
    machine.path(LOCK).unlink()
    machine.configure("[reconcile]\nresync_seconds = 1\n", backend="iptables-legacy")
    machine.write_subnet()
    machine.run("install", "-m", "600", "/dev/null", LOCK)
    machine.systemctl("start", UNIT)
    assert machine.show("StatusText").startswith("degraded: ipv4: `iptables-restore --noflush")
    machine.reached("degraded")
    tries = time.monotonic() + 3.5  # after 0.2, 0.6, 1.4 and 3.0 seconds
    eventually(lambda: time.monotonic() > tries)
    entries = of_kind(machine, "degraded")
    assert [(entry["PRIORITY"], entry["FLANNELD_MASQ_FAMILY"]) for entry in sorted(entries, key=fields_text)] == [
        (ERROR, "ipv4"),
        (ERROR, "ipv6"),
    ]
    assert f"can't open lock file {LOCK}: Permission denied" in entries[0]["MESSAGE"]
    machine.run("systemd-tmpfiles", "--create", "flanneld-masq.conf")  # as the explanation says
    machine.reached("synced")
    assert [entry["PRIORITY"] for entry in of_kind(machine, "recovered")] == [INFO, INFO]
    assert {entry["FLANNELD_MASQ_REASON"] for entry in of_kind(machine, "rules-applied")} == {"retry"}
    machine.site.assert_masqueraded()


def fields_text(entry: dict[str, Any]) -> str:
    return str(fields(entry))


def test_a_program_that_does_not_stop_is_named_once(machine: Machine) -> None:
    start(machine)
    machine.write("/opt/fight", "#!/bin/sh\nwhile nft delete table ip flanneld-masq || :; do sleep 0.02; done\n").chmod(
        0o755
    )
    machine.start("timeout", f"{patience(4):g}", "/opt/fight")
    entry = told(machine, "contended")
    assert machine.show("StatusText").startswith("contended: ipv4 nft 10.244.1.0/24 contended, ipv6 nft ")
    assert (entry["PRIORITY"], entry["FLANNELD_MASQ_FAMILY"], entry["FLANNELD_MASQ_CULPRIT"]) == (
        WARNING,
        "ipv4",
        "nft",
    )
    assert len(of_kind(machine, "contended")) == 1


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
def test_bad_configuration_leaves_few_entries_in_the_journal(machine: Machine, tell: Tell) -> None:
    """With systemd's own entries: what a fleet's journals get when it reaches every node."""
    start(machine)
    machine.configure('[masquerade]\nposition = "middle"\n')
    for verb in ("reload", "restart"):
        cursor = machine.cursor()
        machine.systemctl(verb, UNIT, check=False)
        entries = machine.journal("--after-cursor", cursor)
        size = sum(len(key) + len(str(value)) for entry in entries for key, value in entry.items())
        tell(f"{verb} with a bad configuration: {len(entries)} entries, {size} bytes with the fields of journald")
        messages = [str(entry["MESSAGE"]) for entry in entries]
        assert any("position" in message for message in messages), messages
        assert len(messages) <= 12, messages
