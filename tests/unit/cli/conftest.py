"""Fixtures of the command line: the program, and a state directory without a daemon on a bus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.service import journal
from flanneld_masq.state_directory import StateDirectory

from .program import Program


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """Restore the logger after a test of `run`."""
    logger = journal.LOGGER
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture
def masq(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


@pytest.fixture
def store(masq: Program, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    """The state directory of a host without a bus; without a lease, so that no command looks at the kernel."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    masq.subnet_file.unlink()
    return StateDirectory(masq.directory / "state")
