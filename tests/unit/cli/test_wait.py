"""The command `wait`, beside a daemon that this process stands in for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from flanneld_masq.cli import following
from flanneld_masq.inputs.file_watch import FileWatch
from flanneld_masq.state_directory import StateDirectory

from ...common import patience
from .program import Program


def report(store: StateDirectory, state: str, **more: Any) -> None:
    store.write_status({"state": state, "pid": os.getpid(), "families": {}, **more})


@contextmanager
def meanwhile(*calls: Any) -> Iterator[None]:
    """Do these one after the other as soon as the command waits."""
    waits = threading.Event()
    schedule = FileWatch.start

    def start(watch: FileWatch, paths: tuple[str, ...]) -> None:
        schedule(watch, paths)
        waits.set()

    def act() -> None:
        assert waits.wait(patience(10))
        for call in calls:
            call()

    thread = threading.Thread(target=act)
    with mock.patch.object(FileWatch, "start", start):
        thread.start()
        yield
        thread.join()


def test_a_state_that_is_there(masq: Program, store: StateDirectory) -> None:
    with store.instance():
        report(store, "synced")
        done = masq("wait")
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith("synced after ")
        assert masq("wait --for synced --timeout 0").status == 0


def test_no_daemon(masq: Program, store: StateDirectory) -> None:
    done = masq("wait --timeout 0")
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("flanneld-masq: waited ")
    assert done.err.endswith(" s for the state synced: the state is stopped\n")
    assert masq("wait --for stopped --timeout 0").status == 0


@pytest.mark.parametrize("poll", [1000.0, 0.01], ids=["by the file's event", "by asking"])
def test_a_state_that_comes(poll: float, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", poll)
    states = ("waiting", "degraded", "synced")
    with store.instance(), meanwhile(*((lambda state=state: report(store, state)) for state in states)):
        assert masq("wait --timeout 900").status == 0


def test_a_daemon_that_comes(masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    held = store.instance()
    with meanwhile(held.__enter__, lambda: report(store, "waiting")):
        done = masq("wait --for waiting --json")
    held.__exit__(None, None, None)
    assert (done.status, done.json["reached"], done.json["state"]) == (0, True, "waiting")


def test_what_is_wrong_is_named(masq: Program, store: StateDirectory) -> None:
    families = {"ipv4": {"state": "degraded", "last_error": "nft said no", "groups": {}}}
    with store.instance():
        report(store, "degraded", families=families)
        done = masq("wait --timeout 0.01")
        assert done.status == 1
        assert done.err.endswith(" s for the state synced: the state is degraded; ipv4: nft said no\n")
        found = masq("wait --timeout 0 --json")
    assert (found.status, found.json["reached"], found.json["for"]) == (1, False, "synced")
    assert (found.json["state"], found.json["errors"]) == ("degraded", ["ipv4: nft said no"])


def test_a_wrong_configuration_is_named(masq: Program, store: StateDirectory) -> None:
    masq.configure("colour = 1\n")
    assert f"the state is stopped; {masq.config_file}: colour: unknown key" in masq("wait --timeout 0").err


@pytest.mark.parametrize("line", ["--for unknown", "--for", "--timeout -1", "--timeout nan", "--timeout x"])
def test_wrong_usage(line: str, masq: Program) -> None:
    assert masq(f"wait {line}").status == 2


def test_the_directory_may_come_later(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "state"
    seen = following.moments(directory / "status.json", patience(10))
    next(seen)
    StateDirectory(directory).write_status({})
    next(seen)
    seen.close()  # type: ignore[attr-defined]
