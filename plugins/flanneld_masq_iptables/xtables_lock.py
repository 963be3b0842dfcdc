"""The lock that the programs of iptables-legacy hold while they read and write tables.

The daemon never takes it, not even for a moment: a program without --wait would fail. /proc/locks shows who holds it,
but its reader waits up to 10 ms for the kernel. So it is read only if a program may have the lock file open.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flanneld_masq.inputs.lock_events import LockEvents, LockState, Use
from flanneld_masq.lock_files import flock_users
from flanneld_masq.printable import printable
from flanneld_masq.process import xtables_lock

PATIENCE_SECONDS = 5.0  # a restore of 80,000 rules takes less, also on a busy machine
_LOOK_SECONDS = 0.01


class XtablesLock:
    """Tells if another program holds the lock. `root` is the root directory of all files."""

    def __init__(
        self,
        root: Path = Path("/"),
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = xtables_lock(root, environ)
        self._locks = root / "proc/locks"
        self._processes = root / "proc"
        self._events: LockEvents | None = None
        self._state = LockState()
        self._clock = clock
        self._sleep = sleep
        self._seen: tuple[int, float] | None = None  # the pid that holds it, and since when that is known

    def busy(self) -> bool:
        """Return True if a program holds the lock, unless it has done so for longer than PATIENCE_SECONDS."""
        pid = None if self._certainly_free() else self._pid()
        if pid is None:
            self._seen = None
            self._found_free()
            return False
        now = self._clock()
        if self._seen is None or self._seen[0] != pid:
            self._seen = (pid, now)
        return now - self._seen[1] < PATIENCE_SECONDS

    def wait(self, cancelled: Callable[[], bool]) -> None:
        """Wait until the lock is free, at most PATIENCE_SECONDS."""
        deadline = self._clock() + PATIENCE_SECONDS
        while self.busy() and self._clock() < deadline and not cancelled():
            self._sleep(_LOOK_SECONDS)

    def holder(self) -> str:
        """Return name and pid of the program that holds the lock, for people."""
        pid = self._pid()
        if pid is None:
            return "a program that has ended or is in another pid namespace"
        try:
            name = (self._processes / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return f"pid {pid}"
        return f"{printable(name)} (pid {pid})"

    def _certainly_free(self) -> bool:
        if self._events is None:
            self._events = LockEvents(self.path)
        self._note(self._events.read())
        return self._state.free and self._events.watching

    def _found_free(self) -> None:
        """No program holds the lock, unless one opened it meanwhile."""
        uses = self._events.read() if self._events is not None else ()
        self._note(uses)
        if self._events is not None and not uses:
            self._state.found_free()

    def _note(self, uses: tuple[Use, ...]) -> None:
        for use in uses:
            self._state.note(use)

    def _pid(self) -> int | None:
        """Return the pid of the program that holds the lock; None if no program of this pid namespace holds it."""
        return next(iter(flock_users(self.path, self._locks).holding), None)
