"""Waiting: for a condition with a deadline, or for the end of a window in which something is counted."""

from __future__ import annotations

import ctypes
import select
import sys
import time
from typing import Callable

from flanneld_masq.errors import MasqError

DEADLINE = 120.0  # seconds, for all that has no limit of its own
LOOK_SECONDS = 50e-6  # between two looks at the kernel
_PR_SET_TIMERSLACK = 29

now = time.monotonic
_began = now()


class BenchError(MasqError):
    """Something that the bench waited for did not come about."""


def precise() -> None:
    """Let short pauses be short: the kernel otherwise adds 50 microseconds to each."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000), 0, 0, 0)


def pause(seconds: float) -> None:
    select.select((), (), (), max(0.0, seconds))


def until(
    condition: Callable[[], bool], what: str, *, deadline: float = DEADLINE, every: float = 1e-3
) -> tuple[float, float]:
    """Ask again and again. The moments of the last look that said no (or the start) and of the one that said yes."""
    before = started = now()
    while True:
        asked = now()
        if condition():
            return before, now()
        before = asked
        if asked - started > deadline:
            raise BenchError(f"{what}: not within {deadline:g} s")
        pause(every)


def progress(text: str) -> None:
    print(f"bench {now() - _began:6.1f} s  {text}", file=sys.stderr, flush=True)
