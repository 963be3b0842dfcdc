"""A part that cannot be had is a problem, and the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.report import gather, saved_node
from flanneld_masq.report.gather import Gatherer, sysctls


class Programs(ProcessRunner):
    """Prints what a test gives for the name of a program; the others cannot be started."""

    def __init__(self, printed: dict[str, str]) -> None:
        super().__init__()
        self.printed = printed

    def __call__(
        self, argv: tuple[str, ...], *, executable: Optional[str] = None, stdin: str = "", timeout: float = 1.0
    ) -> Completed:
        if argv[0] not in self.printed:
            raise CommandError(argv, "could not be started: No such file or directory")
        return Completed(argv, self.printed[argv[0]], "")


def test_a_part_that_raises_is_a_problem() -> None:
    gatherer = Gatherer(Programs({}))

    def fail() -> str:
        raise RuntimeError("a\nb password=x")

    assert gatherer.part("x.txt", fail) == ""
    assert gatherer.problems == ["x.txt: RuntimeError: a; b password=(redacted)"]


def test_no_part_is_begun_after_the_time_limit() -> None:
    now = 0.0
    gatherer = Gatherer(Programs({}), clock=lambda: now)
    assert gatherer.part("a", lambda: "text") == "text"
    now = gather.SECONDS + 1
    assert gatherer.part("b", lambda: "text") == ""
    assert gatherer.problems == ["b: left out, because the report took longer than 120 s already"]


def test_a_part_is_cut_off_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_PART", 3)
    gatherer = Gatherer(Programs({}))
    assert gatherer.part("a", lambda: "12345") == "123"
    assert gatherer.problems == ["a: cut off after 3 characters"]


def test_json_that_is_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "MAX_PART", 3)
    monkeypatch.setattr(saved_node, "MAX_SNAPSHOT", 5)
    gatherer = Gatherer(Programs({}))
    assert gatherer.part("flows.json", lambda: "1234") == ""
    assert gatherer.part("snapshot.json", lambda: "12345") == "12345"
    assert gatherer.part("snapshot.json", lambda: "123456") == ""
    assert gatherer.problems == [
        "flows.json: left out, because it is longer than 3 characters",
        "snapshot.json: left out, because it is longer than 5 characters",
    ]


def test_programs_show_their_command_lines() -> None:
    gatherer = Gatherer(Programs({"ip": "10.244.0.0/16 dev cni0\n"}))
    assert gatherer.rules() == "# ip -4 rule\n10.244.0.0/16 dev cni0\n\n# ip -6 rule\n10.244.0.0/16 dev cni0\n"
    assert gatherer.problems == []


def test_without_systemd_the_rest_goes_on() -> None:
    gatherer = Gatherer(Programs({}))
    assert "(failed, see problems.txt)" in gatherer.part("systemd.txt", gatherer.units)
    assert gatherer.part("journal.txt", gatherer.journal) == ""
    assert len(gatherer.problems) == 3
    assert gatherer.problems[-1].startswith("journal.txt: CommandError: `journalctl ")


def test_the_journal_has_no_command_lines() -> None:
    entry = '{"MESSAGE": "x", "_CMDLINE": "hunter2", "FLANNELD_MASQ_CULPRIT_COMMAND": "hunter2"}\n'
    found = Gatherer(Programs({"journalctl": entry})).journal()
    assert found == "(no time) <> ?[]: x\n    FLANNELD_MASQ_CULPRIT_COMMAND=(redacted)\n"
    assert "holds no entry" in Gatherer(Programs({"journalctl": ""})).journal()


def test_versions_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('NAME=x\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    gatherer = Gatherer(Programs({"nft": "nftables v1.0.6\nmore\n"}), tmp_path)
    found = gatherer.versions().split("\n")
    assert "distribution: Debian GNU/Linux 12" in found
    assert "nft --version: nftables v1.0.6" in found
    assert "ipset --version: (`ipset --version` could not be started: No such file or directory)" in found
    assert gatherer.problems == []


def test_modules_are_those_of_rules(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("nf_tables 1 0 - Live 0x0\next4 1 0 - Live 0x0\nbridge 1 0\n")
    assert Gatherer(Programs({}), tmp_path).modules() == "bridge\nnf_tables\n"


def test_files_lose_their_secrets_and_missing_ones_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    path.write_text('{"Backend": {"PSK": "hunter2"}}')
    gatherer = Gatherer(Programs({}))
    assert gatherer.file(path) == '{"Backend": {"PSK": "(redacted)"}}'
    assert gatherer.file(tmp_path / "none") == ""
    assert gatherer.problems == [f"{tmp_path}/none: No such file or directory"]


def test_sysctls_are_printed_in_order() -> None:
    assert sysctls(Snapshot(sysctls={"b": "1", "a": "0"})) == "a = 0\nb = 1\n"
