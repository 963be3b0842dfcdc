"""`report` and `explain --html`, with a node of values instead of this machine's."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.cli import backends, doctor_facts, explain_node, report, status
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.errors import CommandError
from flanneld_masq.model import Settings
from flanneld_masq.packet_path import snapshot as snapshots
from flanneld_masq.report import gather

from ...common import is_root
from ..packet_path.nodes import chain, rule, snapshot, table
from ..report.hostile import Form
from .program import Program

SNAPSHOT = snapshot([table(), chain("p", "postrouting", "nat", prio=100), rule("p", {"masquerade": None})])


class NoPrograms:
    """Starts no program."""

    def __call__(self, argv: tuple[str, ...], **_: Any) -> None:
        raise CommandError(argv, "could not be started: No such file or directory")


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of which SNAPSHOT and the answers of other commands are known, and no program."""

    def answer(options: argparse.Namespace) -> int:
        given = {name: getattr(options, name) for name in ("config", "backend", "subnet_file")}
        print(json.dumps(given) if options.json else "an answer")
        print("flanneld-masq: a warning", file=sys.stderr)
        return 1

    for module in (report, explain_node):
        monkeypatch.setattr(module, "collect", lambda run, root: SNAPSHOT)
    monkeypatch.setattr(report, "ProcessRunner", NoPrograms)
    monkeypatch.setattr(backends, "backends", answer)
    monkeypatch.setattr(status, "status", answer)
    monkeypatch.setattr(doctor_facts, "gather", lambda *_: Facts(Settings()))


def parts_of(path: Path) -> dict[str, str]:
    """Return the members by their names below the one directory."""
    with tarfile.open(path) as read:
        names = {member.name.split("/", 1)[1]: member for member in read.getmembers()}
        assert len({member.name.split("/")[0] for member in names.values()}) == 1
        return {name: str(read.extractfile(member).read(), "utf-8") for name, member in names.items()}  # type: ignore[union-attr]


def test_the_archive_holds_what_is_known(masq: Program) -> None:
    path = masq.directory / "r.tar.gz"
    drop_in = masq.directory / "config.d" / "10-a.toml"
    drop_in.parent.mkdir()
    drop_in.write_text("log.level = 'debug'\n")
    done = masq(f"report {path}")
    assert (done.status, done.err) == (0, "")
    parts = parts_of(path)
    assert parts["config.d/1.toml"] == f"# {drop_in}\nlog.level = 'debug'\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert snapshots.from_json(parts["snapshot.json"]) == SNAPSHOT
    assert json.loads(parts["status.json"])["config"] == str(masq.config_file)
    (finding,) = json.loads(parts["doctor.json"])["findings"]
    assert finding["what"] in parts["doctor.txt"]
    assert "backends.json" in parts
    assert {flow["family"] for flow in json.loads(parts["flows.json"])} == {"ipv4", "ipv6"}
    assert "pod to world" in Form(parts["node.html"]).text
    assert parts["config.toml"] == f"# {masq.config_file}\n{masq.config_file.read_text()}"
    assert parts["subnet-files/1.env"] == f"# {masq.subnet_file}\n{masq.subnet_file.read_text()}"
    assert "net.ipv4.ip_forward = 1" in parts["sysctls.txt"]
    for name in parts:
        assert name in done.out


def test_what_could_not_be_read_is_named(masq: Program) -> None:
    path = masq.directory / "r.tar.gz"
    done = masq(f"report {path}")
    problems = parts_of(path)["problems.txt"].splitlines()
    assert "backends.json: flanneld-masq: a warning" in problems
    assert any(line.startswith("journal.txt: CommandError: `journalctl") for line in problems)
    assert f"{len(problems)} things could not be read; problems.txt says which" in done.out


def test_the_user_is_told_what_to_do_with_it(masq: Program) -> None:
    out = masq(f"report {masq.directory}/r.tar.gz").out
    assert "Read it before you send it" in out
    assert report.ISSUES in out
    assert "security/advisories/new" in out


def test_the_default_name_has_host_and_date(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    (masq.directory / "here").mkdir()
    monkeypatch.chdir(masq.directory / "here")
    done = masq("report --json")
    (path,) = Path().iterdir()
    assert (done.status, done.json["file"]) == (0, str(path))
    assert path.match("flanneld-masq-report-*-*Z.tar.gz")
    assert sorted(done.json["parts"]) == sorted(parts_of(path))


def test_a_file_that_exists_is_refused(masq: Program) -> None:
    path = masq.directory / "r.tar.gz"
    path.write_text("mine")
    done = masq(f"report {path}")
    assert (done.status, path.read_text()) == (1, "mine")
    assert "exists already and is not replaced" in done.err


def test_a_command_with_a_fault_does_not_end_the_report(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Facts:
        raise RuntimeError("a fault")

    monkeypatch.setattr(doctor_facts, "gather", fail)
    path = masq.directory / "r.tar.gz"
    assert masq(f"report {path}").status == 0
    parts = parts_of(path)
    assert "doctor.txt" not in parts
    assert "doctor.txt: RuntimeError: a fault\n" in parts["problems.txt"]


def test_the_node_is_read_and_examined_once(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def once(*arguments: object) -> Facts:
        given.append(arguments[-1])
        return Facts(Settings())

    monkeypatch.setattr(doctor_facts, "gather", once)
    assert masq(f"report {masq.directory}/r.tar.gz").status == 0
    assert given == [SNAPSHOT]


def test_a_wrong_configuration_is_part_of_the_report(masq: Program) -> None:
    masq.configure('[dbus]\npassword = "hunter2"\n')
    path = masq.directory / "r.tar.gz"
    assert masq(f"report {path}").status == 0
    assert 'password = "(redacted)"' in parts_of(path)["config.toml"]
    assert "hunter2" not in "".join(parts_of(path).values())


def test_a_file_that_cannot_be_read_is_a_problem_and_no_part(masq: Program) -> None:
    path, pipe = masq.directory / "r.tar.gz", masq.directory / "other.env"
    os.mkfifo(pipe)
    assert masq(f"--subnet-file {masq.subnet_file} --subnet-file {pipe} report {path}").status == 0
    parts = parts_of(path)
    assert "subnet-files/1.env" in parts and "subnet-files/2.env" not in parts
    assert f"{pipe}: " in parts["problems.txt"]


def test_without_a_subnet_file_there_are_no_flows(masq: Program) -> None:
    masq.subnet_file.unlink()
    path = masq.directory / "r.tar.gz"
    assert masq(f"report {path}").status == 0
    parts = parts_of(path)
    assert json.loads(parts["flows.json"]) == []
    assert "No flow is known" in parts["node.html"]
    assert "no flow is known, because no subnet file can be used" in parts["problems.txt"]


def test_common_options_are_passed_on(masq: Program) -> None:
    path = masq.directory / "r.tar.gz"
    other = masq.directory / "other.env"
    other.write_text(masq.subnet_file.read_text())
    assert masq(f"--backend nft --subnet-file {other} report {path}").status == 0
    parts = parts_of(path)
    expected = {"config": str(masq.config_file), "backend": "nft", "subnet_file": [str(other)]}
    assert json.loads(parts["backends.json"]) == expected
    assert parts["subnet-files/1.env"].startswith(f"# {other}\n")


def test_a_report_ends_in_time(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "SECONDS", -1.0)
    path = masq.directory / "r.tar.gz"
    assert masq(f"report {path}").status == 0
    assert list(parts_of(path)) == ["problems.txt"]


@pytest.mark.skipif(not is_root(), reason="only root reads the rules of the node")
def test_explain_writes_the_page_of_one_packet(masq: Program) -> None:
    path = masq.directory / "one.html"
    done = masq(f"explain --src 10.244.1.5 --dst 8.8.8.8 --dport 443 --html {path}")
    assert (done.status, stat.S_IMODE(path.stat().st_mode)) == (0, 0o600)
    text = Form(path.read_text()).text
    assert "The way of a packet from 10.244.1.5 to 8.8.8.8" in text
    assert "10.244.1.5:40000 -> 8.8.8.8:443 tcp, new, arrives by cni0" in text
    assert "delivered by eth0, from 192.0.2.1" in text
    assert masq(f"explain --src 10.244.1.5 --dst 8.8.8.8 --dport 443 --html {path}").status == 1


@pytest.mark.skipif(not is_root(), reason="only root reads the rules of the node")
def test_explain_follows_a_packet_of_the_node(masq: Program) -> None:
    path = masq.directory / "one.html"
    assert masq(f"explain --src 192.0.2.1 --dst 10.244.2.5 --html {path}").status == 0
    assert "made by the node" in Form(path.read_text()).text


def test_the_daemon_loads_none_of_it() -> None:
    code = (
        "import sys; from flanneld_masq.cli import main; from flanneld_masq.service import daemon; "
        "print([name for name in sys.modules if name.startswith('flanneld_masq.report')])"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
