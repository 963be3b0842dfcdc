"""`status --watch`, beside a daemon that this process stands in for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.cli import watch
from flanneld_masq.state_directory import StateDirectory

from .program import Done, Program
from .test_output import Terminal

CULPRIT = {"name": "nft", "pid": 8426, "unit": "x.service"}
REPAIR = {"time": "then", "backend": "nft", "reason": "why", "drift": True, "duration_us": 1, "changes": []}
REPAIRED = {"state": "synced", "groups": {}, "repairs": 1, "last_repair": {**REPAIR, "culprits": [CULPRIT]}}


def report(store: StateDirectory, state: str, **more: Any) -> None:
    store.write_status({"state": state, "pid": os.getpid(), "families": {}, **more})


@pytest.fixture
def watched(masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return a function that runs the command, and calls one function after the other until the last, as Ctrl-C."""

    def run(*calls: Callable[[], object], line: str = "status --watch") -> Done:
        def moments(file: Path) -> Iterator[None]:
            assert file == store.status_file
            for call in calls:
                call()
                yield
            raise KeyboardInterrupt

        monkeypatch.setattr(watch, "moments", moments)
        with store.instance():
            return masq(line)

    return run


def test_each_new_status_is_shown_once(watched: Callable[..., Done], store: StateDirectory) -> None:
    states = ("waiting", "synced", "synced", "degraded")
    done = watched(*((lambda state=state: report(store, state)) for state in states))
    assert done.status == 130
    lines = [f"flanneld-masq: {state}, pid {os.getpid()}\n" for state in ("waiting", "synced", "degraded")]
    assert done.out == "\n".join(lines)


def test_json_has_a_line_for_each(watched: Callable[..., Done], store: StateDirectory) -> None:
    done = watched(
        *((lambda state=state: report(store, state)) for state in ("waiting", "synced")), line="status --watch --json"
    )
    assert [json.loads(line)["state"] for line in done.out.splitlines()] == ["waiting", "synced"]


def test_a_terminal_is_redrawn_in_colour(
    watched: Callable[..., Done], store: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    watched(lambda: report(store, "synced", since="2026-07-08T09:10:11.012+00:00", troubles=["x"]))
    assert terminal.getvalue() == (
        f"\033[H\033[2Jflanneld-masq: \033[32msynced\033[0m, pid {os.getpid()}\n"
        "\033[33m  trouble: x\033[0m\n  since: 2026-07-08T09:10:11.012+00:00\n"
    )


def test_a_daemon_that_ends_and_a_configuration_that_is_wrong(
    watched: Callable[..., Done], store: StateDirectory, masq: Program
) -> None:
    def end() -> None:
        report(store, "stopped", families={"ipv4": {"state": "stopped"}})
        masq.configure("colour = 1\n")

    done = watched(lambda: report(store, "synced", families={"ipv4": {"state": "synced"}}), end)
    first, second = done.out.split("\n\n")
    assert "ipv4: synced" in first
    assert "ipv4: unknown" in second, "it says stopped, and still holds the lock"
    assert "colour: unknown key" in second


def test_watch_and_check_exclude_each_other(masq: Program) -> None:
    assert masq("status --watch --check").status == 2


@pytest.mark.parametrize("owner", [True, False], ids=["root", "another user"])
def test_the_command_line_is_for_root(
    owner: bool, watched: Callable[..., Done], store: StateDirectory, masq: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repair() -> None:
        store.write_authors({"ipv4": {"time": "then", "commands": ["nft --token SECRET"]}})
        report(store, "synced", families={"ipv4": REPAIRED})

    if not owner:
        monkeypatch.setattr(StateDirectory, "authors", lambda _: None)
    done = watched(repair)
    assert (store.status_file.with_name("authors.json").stat().st_mode & 0o777) == 0o600
    line = "    changed by nft (pid 8426) x.service"
    assert f"{line}: nft --token SECRET\n" in done.out if owner else f"{line}\n" in done.out
    assert "SECRET" not in watched(repair, line="status --watch --json").out
