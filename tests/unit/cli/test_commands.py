"""Commands that need neither root nor a kernel, and the end of the daemon."""

from __future__ import annotations

import logging
import os
from unittest import mock

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.cli import apply
from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.dbus import client
from flanneld_masq.errors import KernelError
from flanneld_masq.model import BackendName, Family, Plan, Settings
from flanneld_masq.reconcile.healing import Healed
from flanneld_masq.reconcile.values import DesiredState, Outcome, Repair
from flanneld_masq.service import journal
from flanneld_masq.state_directory import StateDirectory

from .program import USER, Done, Program


class TestRender:
    @pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
    def test_both_families_of_each_backend(self, backend: str, masq: Program) -> None:
        done = masq(f"render --backend {backend}")
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"# ipv4, {backend}\n")
        assert f"\n# ipv6, {backend}\n" in done.out
        for network in ("10.244.0.0/16", "fd00:10:244::/56"):
            assert network in done.out
        assert done.out.endswith("\n") and not done.out.endswith("\n\n")
        as_json = masq(f"render --backend {backend} --json").json
        assert done.out == "".join(f"# {family}, {backend}\n{texts[backend]}" for family, texts in as_json.items())

    def test_a_family_that_the_lease_does_not_name(self, masq: Program) -> None:
        masq.subnet_file.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n")
        assert list(masq("render --backend nft --json").json) == ["ipv4"]

    def test_groups_in_different_backends(self, masq: Program) -> None:
        masq.configure('backend = "nft"\n[forward]\nbackend = "iptables-legacy"\n')
        texts = masq("render --json").json["ipv4"]
        assert list(texts) == ["nft", "iptables-legacy"]
        assert "forward" not in texts["nft"] and "*nat" not in texts["iptables-legacy"]

    def test_auto_takes_the_preferred_one_without_asking_the_machine(self, masq: Program) -> None:
        assert list(masq("render --json").json["ipv4"]) == ["nft"]

    def test_nothing_is_written_anywhere(self, masq: Program) -> None:
        masq("render")
        assert sorted(path.name for path in masq.directory.iterdir()) == ["config.toml", "subnet.env"]


class TestHealing:
    """After a pass of `apply`."""

    REPAIR = Repair(Plan(Family.IPV4, BackendName("nft")), 1000)

    def reconciled(self, repairs: tuple[Repair, ...], settings: Settings = Settings()) -> list[DesiredState]:  # noqa: B008
        """Return what was healed for."""
        healed: list[DesiredState] = []

        def heal(family: Family, state: DesiredState) -> Healed:
            healed.append(state)
            if settings.log_level == "error":
                raise KernelError("reading", "no")
            return Healed(slipped=2, duration_us=1500)

        class Pass:
            family = Family.IPV4

            def reconcile(self, state: DesiredState) -> Outcome:
                return Outcome({}, repairs, {})

        with mock.patch.object(apply, "heal", heal):
            outcome = apply._reconcile(Pass(), DesiredState(settings))  # type: ignore[arg-type]
        assert outcome.repairs == repairs
        return healed

    def test_follows_a_write(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert len(self.reconciled((self.REPAIR,))) == 1
        assert capsys.readouterr().err == (
            "flanneld-masq: ipv4: 2 flows healed in 1.5 ms: 2 had begun without masquerade\n"
        )

    def test_follows_nothing_else(self) -> None:
        assert self.reconciled(()) == []
        assert self.reconciled((self.REPAIR,), Settings(conntrack_heal=False)) == []

    def test_that_fails_is_no_failure_of_the_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.reconciled((self.REPAIR,), Settings(log_level="error"))
        assert "ipv4: connections that began without masquerade are not healed: reading: no" in capsys.readouterr().err


class TestExplain:
    def test_a_packet_to_the_world(self, masq: Program) -> None:
        done = masq("explain --ours --src 10.244.1.5 --dst 1.1.1.1")
        assert (done.status, done.err) == (0, "")
        first, second, third = done.out.splitlines()
        assert first == "10.244.1.5 -> 1.1.1.1: masqueraded"
        assert second.startswith("  decided by row 6 (masquerade, flanneld-masq:")
        assert third.startswith("  because pods (10.244.0.0/16) reach the world")

    @pytest.mark.parametrize(
        ("packet", "row", "masquerade"),
        [
            ("--src 10.244.1.5 --dst 1.1.1.1", "6", True),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 0x4000", "1", False),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 16384", "1", False),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 0x8000", "6", True),
            ("--src 10.244.1.5 --dst 10.244.2.5", "2", False),
            ("--src 1.1.1.1 --dst 10.244.1.5", "3", False),
            ("--src 192.0.2.1 --dst 10.244.2.5", "7", True),
            ("--src 10.244.1.5 --dst 224.0.0.1", None, False),
            ("--src fd00:10:244:1::5 --dst 2001:db8::1", "6", True),
        ],
    )
    def test_as_json(self, packet: str, row: str | None, masquerade: bool, masq: Program) -> None:
        done = masq(f"explain --ours --json {packet}")
        assert (done.status, done.err) == (0, "")
        assert (done.json["row"], done.json["masquerade"]) == (row, masquerade)
        assert done.json["family"] == ("ipv6" if "fd00" in packet else "ipv4")
        assert done.json["why"]
        assert set(done.json) == {"family", "masquerade", "row", "verdict", "tag", "why", "flannel", "kube_proxy_mark"}

    def test_no_rule(self, masq: Program) -> None:
        out = masq("explain --ours --src 192.0.2.1 --dst 1.1.1.1 --mark 5").out
        assert "192.0.2.1 -> 1.1.1.1, mark 0x5: keeps its source address" in out
        assert "decided by no rule" in out and "nothing to do with pods" in out

    def test_no_rules(self, masq: Program) -> None:
        masq.configure("[masquerade]\nenabled = false\n")
        assert "there are no masquerade rules for ipv4" in masq("explain --ours --src 10.244.1.5 --dst 1.1.1.1").out

    def test_the_rule_is_the_one_that_is_written(self, masq: Program) -> None:
        tag = masq("explain --ours --src 10.244.1.5 --dst 1.1.1.1 --json").json["tag"]
        assert masq("render --backend iptables-nft").out.count(f'"flanneld-masq:{tag}"') == 1

    def test_settings_count(self, masq: Program) -> None:
        masq.configure('[masquerade]\nnon_masquerade_cidrs = ["192.168.0.0/16"]\n')
        assert masq("explain --ours --src 10.244.1.5 --dst 192.168.1.1 --json").json["row"] == "4"

    def test_two_families(self, masq: Program) -> None:
        done = masq("explain --ours --src 10.244.1.5 --dst ::1")
        assert (done.status, done.out) == (2, "")
        assert "::1 is not of the same family as 10.244.1.5" in done.err


class TestApply:
    @pytest.mark.parametrize("option", ["--backend nft", "--subnet-file /run/x"])
    def test_what_the_daemon_would_undo_is_refused(self, option: str, masq: Program, store: StateDirectory) -> None:
        with store.instance():
            done = masq(f"apply {option}")
        assert (done.status, done.out) == (1, "")
        assert f"nothing was changed: the daemon runs (pid {os.getpid()})" in done.err


class TestDoctor:
    def test_doctor_goes_on_with_the_daemon(self, masq: Program, store: StateDirectory) -> None:
        family = {"ipv4": {"state": "degraded", "last_error": "nft said no"}}
        masq.configure("colour = 1\n")
        with store.instance():
            store.write_status({"state": "degraded", "pid": os.getpid(), "families": family})
            done = masq("doctor --json")
        assert (done.status, done.err) == (2, "")
        said = [(finding["what"], finding["seen"]) for finding in done.json["findings"]]
        assert said[0][0].startswith("the configuration file is invalid")
        assert said[0][1].startswith(f"{masq.config_file}: colour: unknown key")
        assert said[1] == ("the daemon is degraded", "nft said no")

    def test_a_daemon_that_answers_on_d_bus_is_believed(self, masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        families = {Family.IPV4: FamilyStatus(State.CONTENDED, last_error="by firewalld")}
        monkeypatch.setattr(client, "status", lambda _: Status(State.CONTENDED, families=families))
        found = {one["id"]: one["seen"] for one in masq("doctor --json").json["findings"]}
        assert found["daemon-contended"] == "by firewalld"
        assert "daemon-not-running" not in found

    def test_an_ordinary_user_learns_what_cannot_be_told(self, masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: USER)
        monkeypatch.setattr(client, "status", lambda _: Status(State.SYNCED))
        done = masq("doctor --json")
        unknown = [one for one in done.json["findings"] if one["severity"] == "unknown"]
        assert [(one["id"], one["seen"]) for one in unknown] == [("rules-unreadable", f"this is user {USER}, not root")]
        assert not any(one["id"].startswith(("rules-differ", "backend")) for one in done.json["findings"])


class Entries(logging.Handler):
    """A handler in the place of the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.append((record.levelno, vars(record)["MESSAGE_ID"], self.format(record)))


class TestTheDaemonEnds:
    """Under the journal the daemon ends with one entry, for alerts; at a terminal with one line, as every command."""

    @pytest.fixture(autouse=True)
    def no_file_behind_stderr(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("faulthandler.enable", lambda: None)

    @pytest.fixture
    def entries(self, monkeypatch: pytest.MonkeyPatch) -> Entries:
        handler = Entries()
        monkeypatch.setattr(journal, "_stderr_is_journal", lambda environ: True)
        monkeypatch.setattr(journal, "_journal_handler", lambda: handler)
        return handler

    def test_by_a_wrong_configuration(self, masq: Program, entries: Entries) -> None:
        masq.configure("colour = 1\n[log]\nlevel = 'error'\n")
        assert masq("run") == Done(2, "", "")
        ((level, message_id, message),) = entries.entries
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert message.startswith(f"{masq.config_file}: colour: ")

    def test_by_another_instance(self, masq: Program, entries: Entries) -> None:
        with StateDirectory(masq.directory / "state").instance():
            assert masq("run") == Done(1, "", "")
        ((level, message_id, message),) = entries.entries
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert f"pid {os.getpid()}" in message

    def test_by_a_state_directory_that_others_can_write(self, masq: Program, entries: Entries) -> None:
        (masq.directory / "state").mkdir()
        (masq.directory / "state").chmod(0o777)
        assert masq("run") == Done(2, "", "")
        ((_, _, message),) = entries.entries
        assert message.startswith(f"{masq.config_file}: state_directory: state directory {masq.directory}/state can be")

    def test_by_a_bug(self, masq: Program, entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin_loader, "load", lambda: 1 / 0)
        assert masq("run") == Done(1, "", "")
        ((level, message_id, message),) = entries.entries
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert message.startswith("internal error: ZeroDivisionError('division by zero')\nTraceback (most recent")

    def test_at_a_terminal(self, masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        with StateDirectory(masq.directory / "state").instance():
            done = masq("run")
        assert (done.status, done.err.count("another flanneld-masq runs")) == (1, 1)
        monkeypatch.setattr(plugin_loader, "load", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masq("run")
