"""What more than one layer of tests needs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

_PAUSE_SECONDS = 0.005
_TURN_SECONDS = 0.001
_Result = TypeVar("_Result")
_pause = threading.Event()


def unable(reason: str) -> NoReturn:
    """Skip, or fail where CI promises that the machine is able."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def eventually(condition: Callable[[], _Result], seconds: float = 10.0) -> _Result:
    """Ask until the answer is true, and return it; fail where that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        _pause.wait(_PAUSE_SECONDS)
    return answer


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """The same in an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        await asyncio.sleep(_TURN_SECONDS)


def lasting(seconds: float, long: float) -> float:
    """How long something is kept up: `long` with LONG=1 in the environment, else enough to show the same."""
    return long if os.environ.get("LONG") == "1" else seconds
