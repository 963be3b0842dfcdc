"""The daemon logs each trouble of its own as the kind of entry whose explanation fits."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq.errors import KernelError, StateError
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import Settings
from flanneld_masq.plugin_loader import Plugins, load
from flanneld_masq.service import journal
from flanneld_masq.service.daemon import Daemon
from flanneld_masq.state_directory import StateDirectory

Told = list[tuple[str, int, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    found: Told = []

    def emit(event: Event, level: int = logging.INFO) -> None:
        found.append((event.kind, level, event.message))

    monkeypatch.setattr(journal, "emit", emit)
    yield found


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load()


def daemon(state: Path, plugins: Plugins, metrics: str = "") -> Daemon:
    settings = Settings(state_directory=str(state), metrics_textfile=metrics, dbus_enabled=False)
    return Daemon(lambda: settings, plugins)


def test_a_pass_that_hangs(tmp_path: Path, plugins: Plugins, told: Told) -> None:
    daemon(tmp_path, plugins)._on_hung("ipv4", 30.0)
    ((kind, level, message),) = told
    assert (kind, level) == ("hanging", logging.ERROR)
    assert "watchdog kills the daemon in 30 s" in message


def test_rules_that_could_not_be_removed(
    tmp_path: Path, plugins: Plugins, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = daemon(tmp_path, plugins)._loops[0]
    monkeypatch.setattr(loop._reconciler, "remove_everything", lambda: ((), [KernelError("removing", "no")]))
    asyncio.run(loop.remove())
    loop.close()
    assert told == [("rules-left", logging.ERROR, "ipv4: rules not removed: removing: no")]


def test_rules_that_another_instance_keeps_from_being_removed(
    tmp_path: Path, plugins: Plugins, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> NoReturn:
        raise StateError("ipv4.lock was held")

    loop = daemon(tmp_path, plugins)._loops[0]
    monkeypatch.setattr(loop._reconciler, "remove_everything", held)
    asyncio.run(loop.remove())
    loop.close()
    assert told == [("rules-left", logging.ERROR, "ipv4: rules not removed: ipv4.lock was held")]


def test_an_unwritable_file_and_its_end_are_logged_once(tmp_path: Path, plugins: Plugins, told: Told) -> None:
    metrics = tmp_path / "collector" / "metrics"
    publisher = daemon(tmp_path / "state", plugins, str(metrics))._publisher
    publisher._bus._tried = True
    for state in ("one", "one", "another"):
        publisher.refused = state  # so that there is something new to write
        publisher.publish()
    (message,) = (message for kind, level, message in told if (kind, level) == ("unwritable", logging.ERROR))
    assert message == f"{metrics} cannot be written: No such file or directory"
    metrics.parent.mkdir()
    publisher.publish()
    publisher.publish()
    assert told[1:] == [("notice", logging.INFO, "state directory, status and metrics are written again")]
    shutil.rmtree(metrics.parent)
    publisher.refused = "a third"
    publisher.publish()
    publisher.close()
    assert told[2:] == [("unwritable", logging.ERROR, message)]


def test_a_file_that_cannot_be_written_is_a_trouble(tmp_path: Path, plugins: Plugins, told: Told) -> None:
    metrics = tmp_path / "collector" / "metrics"
    store = StateDirectory(tmp_path / "state")
    publisher = daemon(tmp_path / "state", plugins, str(metrics))._publisher
    publisher._bus._tried = True
    publisher.publish()
    message = f"{metrics} cannot be written: No such file or directory"
    assert publisher.status().troubles == (message,)
    assert (store.status() or {})["troubles"] == [message], "status.json says so at once"
    metrics.parent.mkdir()
    publisher.publish()
    publisher.close()
    assert (publisher.status().troubles, (store.status() or {})["troubles"]) == ((), [])
