"""The command `status`, with and without a daemon."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanneld_masq.cli import status as status_command
from flanneld_masq.cli.session import Session
from flanneld_masq.controller.status import State, Status
from flanneld_masq.errors import MasqError
from flanneld_masq.inputs import processes
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, FamilyLease, Holder, Lease, Plan
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.service.service_user import Unreadable
from flanneld_masq.state_directory import StateDirectory

from ...common import is_root
from .program import Program

NAMED = (Lease("/x", FamilyLease((ip_network("10.0.0.0/8"),), ip_network("10.1.0.0/16"), ip_address("10.1.0.1"))),)


@pytest.mark.parametrize(
    ("status", "health"),
    [
        (Status(State.SYNCED, leases=NAMED), 0),
        (Status(State.SYNCED, leases=NAMED, troubles=("/m.prom cannot be written",)), 0),
        (Status(State.WAITING, troubles=("waiting for /x, which flannel has not written yet",)), 0),
        (Status(State.WAITING, troubles=("waiting for /x", "/m.prom cannot be written")), 0),
        (Status(State.WAITING, troubles=("/x: is empty; no rules follow from it",)), 1),
        (Status(State.WAITING, leases=NAMED), 1),
        (Status(State.DEGRADED, leases=NAMED), 1),
        (Status(State.CONTENDED, leases=NAMED), 1),
        (Status(State.STOPPED, leases=NAMED), 2),
        (Status(State.UNKNOWN), 2),
    ],
    ids=lambda value: value.state.value if isinstance(value, Status) else str(value),
)
def test_the_exit_status_of_a_check_says_health(status: Status, health: int) -> None:
    assert status_command.health(status) == health


class TestStatus:
    """The status without a bus."""

    def test_a_running_daemon_whose_lock_is_for_root_alone(
        self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.write_status({"state": "synced", "pid": os.getpid(), "families": {}})
        monkeypatch.setattr(StateDirectory, "holder", lambda _: Holder(True, os.getpid(), "status.json says so"))
        assert masq("status").out == f"flanneld-masq: synced, pid {os.getpid()}\n"

    def test_it_cannot_tell(self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StateDirectory, "holder", lambda _: Holder(None, 0, "the lock is for root"))
        done = masq("status")
        assert (done.status, done.out.splitlines()[0]) == (0, "flanneld-masq: unknown")
        assert "it is not known whether the daemon runs: the lock is for root; " in done.out

    @pytest.mark.parametrize(
        "left", [None, {"state": "stopped", "pid": 7, "families": {}}, {"state": "synced", "pid": 7}]
    )
    def test_a_daemon_that_has_said_nothing_yet(self, left: Any, masq: Program, store: StateDirectory) -> None:
        if left is not None:  # by the daemon before
            store.write_status(left)
        with store.instance():
            done = masq("status")
        assert (done.status, done.out.splitlines()[0]) == (0, f"flanneld-masq: unknown, pid {os.getpid()}")
        assert f"trouble: the daemon reports no status: {masq.directory}/state/lock is held; " in done.out

    def test_a_wrong_configuration_is_a_trouble_of_a_running_daemon(self, masq: Program, store: StateDirectory) -> None:
        lines = [f"flanneld-masq: synced, pid {os.getpid()}", f"  trouble: {masq.config_file}: colour: unknown key"]
        status = {"state": "synced", "pid": os.getpid(), "troubles": [], "families": {}}
        masq.configure("colour = 1\n")
        with store.instance():
            store.write_status(status)
            done = masq("status")
            assert (done.status, done.err) == (2, "")
            assert [line.split(";")[0] for line in done.out.splitlines()] == lines
            refused = f"{masq('plan').err.partition(': ')[2].strip()}; the running settings stay"
            store.write_status({**status, "troubles": [refused]})
            assert masq("status").out.splitlines()[1:] == [f"  trouble: {refused}"], "one line for one trouble"
            assert masq("status --json").json["troubles"] == [refused]

    def test_a_wrong_configuration_and_no_daemon(self, masq: Program, store: StateDirectory) -> None:
        masq.configure("colour = 1\n")
        done = masq("status")
        assert (done.status, done.err, done.out.splitlines()[0]) == (2, "", "flanneld-masq: stopped")
        assert f"  trouble: {masq.config_file}: colour: unknown key" in done.out

    @pytest.mark.usefixtures("store")
    def test_a_wrong_command_line_is_no_trouble_of_the_daemon(self, masq: Program) -> None:
        done = masq("status --backend ipfw")
        assert (done.status, done.out) == (2, "")

    def test_what_a_daemon_did_is_told_after_its_end(self, masq: Program, store: StateDirectory) -> None:
        culprit = {"name": "nft", "pid": 8426, "unit": "nftables.service"}
        last = {"time": "then", "backend": "nft", "reason": "ruleset changed", "drift": True, "duration_us": 1000}
        family = {"state": "synced", "last_error": "", "groups": {}, "repairs": 3}
        family["last_repair"] = {**last, "changes": [], "culprits": [culprit]}
        store.write_status({"state": "synced", "pid": 99999999, "families": {"ipv4": family}})  # it was killed
        done = masq("status")
        assert done.status == 0
        assert "ipv4: stopped\n  repairs: 3\n  last repair: then, nft in 1.0 ms (ruleset changed)\n" in done.out
        assert "    changed by nft (pid 8426) nftables.service\n" in done.out
        assert masq("status --json").json["families"]["ipv4"]["last_repair"] == family["last_repair"]

    @pytest.mark.parametrize(("state", "health"), [("synced", 0), ("degraded", 1), ("contended", 1), ("waiting", 0)])
    def test_a_check_of_a_running_daemon(self, state: str, health: int, masq: Program, store: StateDirectory) -> None:
        masq.configure("colour = 1\n")  # the daemon keeps the settings from before
        with store.instance():
            store.write_status({"state": state, "pid": os.getpid(), "families": {}})
            assert (masq("status --check").status, masq("status --check --json").json["state"]) == (health, state)

    def test_a_check_without_a_daemon(self, masq: Program, store: StateDirectory) -> None:
        store.write_status({"state": "synced", "pid": 99999999, "families": {}})
        done = masq("status --check")
        assert (done.status, done.out.splitlines()[0]) == (2, "flanneld-masq: stopped")

    def test_a_daemon_that_keeps_its_state_directory(
        self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This process stands in for the daemon: it holds the lock in the directory that the file named before."""
        monkeypatch.setattr(processes, "_PROGRAM", b"py")
        status = {"state": "synced", "pid": os.getpid(), "config": str(masq.config_file), "families": {}}
        with store.instance():
            store.write_status(status)
            masq.config_file.write_text(masq.config_file.read_text().replace("/state", "/elsewhere"))
            assert masq("status").out == f"flanneld-masq: synced, pid {os.getpid()}\n"
            assert "the daemon runs" in masq("cleanup").err
            store.write_status({**status, "config": "/etc/another.toml"})
            assert masq("status").out.startswith("flanneld-masq: stopped\n"), "the daemon of another configuration"

    def test_files_that_the_service_cannot_read_are_troubles(
        self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = Unreadable("flanneld-masq", str(masq.config_file), str(masq.directory), "x")
        monkeypatch.setattr(Session, "unreadable", lambda _: (closed,))
        assert f"  trouble: {closed}\n" in masq("status").out
        (finding,) = (one for one in masq("doctor --json").json["findings"] if "may not read" in one["what"])
        assert finding["remedy"] == f"`setfacl -m u:flanneld-masq:x {masq.directory}` or `chmod o+x {masq.directory}`"


class TestComparison:
    """A daemon that says synced, beside a kernel that holds something else."""

    @pytest.fixture
    def synced(self, masq: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        monkeypatch.setattr("flanneld_masq.cli.comparison.REPAIR_SECONDS", 0.1)
        if not is_root():
            pytest.skip("only root compares the kernel")
        StateDirectory(masq.directory / "state").write_status(
            {"state": "synced", "pid": os.getpid(), "families": {"ipv4": {"state": "synced", "repairs": 3}}}
        )
        monkeypatch.setattr(StateDirectory, "holder", lambda _: Holder(True, os.getpid(), "it is held"))
        return masq

    def kernel(self, monkeypatch: pytest.MonkeyPatch, *answers: object) -> None:
        """Let the comparisons of IPv4 find these in turn, the last one for ever."""
        left = list(answers)

        def plan(reconciler: Reconciler, desired: object) -> tuple[Plan, ...]:
            if reconciler.family is not Family.IPV4:
                return ()
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, MasqError):
                raise answer
            changes = (Change(ChangeKind.EXTRA, "nat FLANNELD-MASQ", found="an old rule"),) if answer else ()
            return (Plan(reconciler.family, BackendName("iptables-legacy"), changes),)

        monkeypatch.setattr(Reconciler, "plan", plan)

    def test_nothing_to_say(self, synced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel(monkeypatch, False)
        assert "kernel:" not in synced("status").out

    def test_what_is_repaired_at_once_is_not_said(self, synced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel(monkeypatch, True, False)
        assert "kernel:" not in synced("status").out

    def test_what_plan_says(self, synced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel(monkeypatch, True)
        done = synced("status")
        assert (
            "  kernel: object is not wanted in nat FLANNELD-MASQ: an old rule; see `flanneld-masq plan`\n" in done.out
        )
        assert synced("plan").status == 3
        assert synced("status --check").status == 1
        assert "object is not wanted in nat FLANNELD-MASQ" in synced("status --json").json["families"]["ipv4"]["kernel"]

    def test_what_cannot_be_compared(self, synced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel(monkeypatch, MasqError("nft said no"))
        assert "  kernel: cannot be compared: nft said no; see" in synced("status").out

    def test_an_ordinary_user_gets_what_the_daemon_says(self, synced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel(monkeypatch, True)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr("flanneld_masq.state_directory._is_trusted", lambda uid: True)
        assert "kernel:" not in synced("status").out
