"""The command `status`, with and without a daemon."""

from __future__ import annotations

import os
from typing import Any

import pytest

from flanneld_masq.model import Holder
from flanneld_masq.state_directory import StateDirectory

from .program import Program


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
        assert "whether the daemon runs cannot be told: the lock is for root; " in done.out

    @pytest.mark.parametrize(
        "left", [None, {"state": "stopped", "pid": 7, "families": {}}, {"state": "synced", "pid": 7}]
    )
    def test_a_daemon_that_has_said_nothing_yet(self, left: Any, masq: Program, store: StateDirectory) -> None:
        if left is not None:  # by the daemon before
            store.write_status(left)
        with store.instance():
            done = masq("status")
        assert (done.status, done.out.splitlines()[0]) == (0, f"flanneld-masq: unknown, pid {os.getpid()}")
        assert f"trouble: the daemon says nothing of itself: {masq.directory}/state/lock is held; " in done.out

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
        culprit = {"name": "nft", "pid": 8426, "command": "nft flush ruleset", "unit": "nftables.service"}
        last = {"time": "then", "backend": "nft", "reason": "ruleset changed", "drift": True, "duration_us": 1000}
        family = {"state": "synced", "last_error": "", "groups": {}, "repairs": 3}
        family["last_repair"] = {**last, "changes": [], "culprits": [culprit]}
        store.write_status({"state": "synced", "pid": 99999999, "families": {"ipv4": family}})  # it was killed
        done = masq("status")
        assert done.status == 0
        assert (
            "ipv4: stopped\n  repairs: 3\n  last write: then, drift repaired in 1.0 ms (ruleset changed)\n" in done.out
        )
        assert "    changed by nft (pid 8426) nftables.service\n" in done.out
        assert masq("status --json").json["families"]["ipv4"]["last_repair"] == family["last_repair"]
