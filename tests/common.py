"""Helpers for more than one layer of tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Optional, TypeVar

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.daemon import program
from flanneld_masq.selftest.speed import Speed, measure

# A limit ends only tests that hang and costs nothing while they pass, so it suits a machine that is six times as slow.
_USUAL_PATIENCE = 6.0
_SLOW_PATIENCE = 3.0  # times how slow this machine was found to be
_VARIABLE = "PATIENCE"
FIGURE = "figure"  # the property of a test that is shown at the end
_PAUSE_SECONDS = 0.005
_TURN_SECONDS = 0.001
Tell = Callable[[str], None]
_Result = TypeVar("_Result")
_Amount = TypeVar("_Amount", int, float)
_pause = threading.Event()
_one_line = threading.Lock()


def say(config: pytest.Config, line: str) -> None:
    """Print a line of progress at once, also from a process of pytest-xdist and whatever is captured."""
    with _one_line, config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{line}", file=sys.stderr, flush=True)


def needs_long_messages() -> None:
    """Leave a test to root whose netlink messages are longer than net.core.wmem_max lets an ordinary user send."""
    if not is_root():
        unable("an ordinary user cannot send such long netlink messages")


def unable(reason: str) -> NoReturn:
    """Skip, or fail where CI promises that the machine is able."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def patience(seconds: float) -> float:
    """Return the limit for something that takes less than `seconds` on an idle machine. PATIENCE is the factor."""
    return seconds * float(os.environ.get(_VARIABLE, _USUAL_PATIENCE))


def measure_patience() -> None:
    """Set PATIENCE by the speed of this machine, before anything loads it; processes inherit it.

    Leave it if it was given, or set by the process that started this one.
    """
    if _VARIABLE not in os.environ:
        with contextlib.suppress(CommandError):  # there is no `ip`
            set_patience(measure(program(), ProcessRunner(), samples=1))


def set_patience(speed: Speed) -> None:
    """Have the limits of this process and of those that it starts suit a slow machine, unless PATIENCE is given."""
    os.environ.setdefault(_VARIABLE, f"{max(_USUAL_PATIENCE, _SLOW_PATIENCE * speed.limits.factor):g}")


def is_root() -> bool:
    """Return True if this process is root, and not only in a namespace of an ordinary user."""
    users = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return os.geteuid() == 0 and int(users[2]) > 1


def eventually(condition: Callable[[], Optional[_Result]], seconds: float = 10.0) -> _Result:
    """Ask until the answer is true, and return it; fail where that takes longer than `patience` with `seconds`."""
    limit = patience(seconds)
    deadline = time.monotonic() + limit
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not so within {limit:g} s"
        _pause.wait(_PAUSE_SECONDS)
    return answer


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """The same in an event loop, which goes on meanwhile."""
    limit = patience(seconds)
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not so within {limit:g} s"
        await asyncio.sleep(_TURN_SECONDS)


def as_from_a_terminal() -> None:
    """For preexec_fn: have a program end by SIGINT and SIGHUP, although nohup or a shell made the tests ignore them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def lasting(seconds: float, long: float) -> float:
    """How long something is kept up: `long` with LONG=1 in the environment, else enough to show the same."""
    return long if every_time() else seconds


def every_time() -> bool:
    """LONG=1 in the environment: do all of what a usual run does in part."""
    return os.environ.get("LONG") == "1"


def amount(usual: _Amount, quick: _Amount) -> _Amount:
    """How much of a thing a test does: `quick` with QUICK=1 in the environment, as `make check` sets it."""
    return quick if os.environ.get("QUICK") == "1" else usual
