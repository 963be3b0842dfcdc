"""Fixtures of the tests of D-Bus: a bus, a scene on it, and a log without complaints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.service.journal import LOGGER

from ...bus import Bus
from .scene import Scene


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    bus = Bus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    yield bus
    bus.stop()


@pytest.fixture
def scene(bus: Bus) -> Scene:
    bus.start()
    return Scene(bus)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check the log: the library and asyncio report there what went wrong."""
    propagates, LOGGER.propagate = LOGGER.propagate, True
    yield
    LOGGER.propagate = propagates
    messages = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    expected = ("internal error in Reconcile", "signal Repaired cannot be sent")
    assert [message for message in messages if not any(part in message for part in expected)] == []
