"""Tests in several processes at once (pytest-xdist): what the processes share, and what each has for itself."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from .common import FIGURE, Tell, measure_patience

_numbers = count()


def pytest_configure() -> None:
    """Be no service of the systemd that started it all: systemd-nspawn passes NOTIFY_SOCKET on, and a daemon of a test
    would wait 30 s for another instance to end.
    """
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        os.environ.pop(name, None)
    os.environ["LANGUAGE"] = "C"  # else argparse looks for translations, in 16,000 files for the unit tests
    measure_patience()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Give the workers of an ordinary user namespaces now: later they have threads, and the kernel refuses."""
    if os.geteuid() != 0:
        for spec in specs:
            spec.python = f"{sys.executable} -m tests.worker {sys.executable}"


def pytest_sessionfinish() -> None:
    """Save what `make coverage` measures in this process: one of pytest-xdist ends without doing so."""
    if "COVERAGE_PROCESS_START" in os.environ:
        measured = importlib.import_module("coverage").Coverage.current()
        measured.stop()
        measured.save()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Takes a line with a figure, for the end of the run."""
    return partial(record_property, FIGURE)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory. pytest's own fixture reads the names of all earlier ones to find a number that is free."""
    name = re.sub(r"\W", "_", request.node.name)[:26]
    return tmp_path_factory.mktemp(f"{name}-{next(_numbers)}", numbered=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the figures that tests have told, from whichever process."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [value for report in reports for name, value in report.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.line(str(line))
