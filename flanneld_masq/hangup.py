"""Keeps SIGHUP, which asks the daemon to read its configuration again, from ending it.

Without a handler the signal ends a process, so `run` takes it from its first line, long before everything is imported,
until its last. Import this module before all others; it imports little by itself.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class Hangup:
    """Passes SIGHUP on to the daemon. One that comes before the daemon listens is passed on then.

    Signals that come before the daemon has answered the last one by `forget` are one request: however many come, they
    queue nothing.
    """

    def __init__(self) -> None:
        self._came = False
        self._call: Callable[[], None] | None = None

    def hold(self) -> None:
        """Take the signal from now on."""
        signal.signal(signal.SIGHUP, self._on_signal)

    def forget(self) -> None:
        """The configuration is about to be read, so no signal before asks for more."""
        self._came = False

    def pass_on(self, call: Callable[[], None]) -> None:
        """Call for the first signal after each `forget`, and at once if it has come already. In the main thread."""
        self.hold()
        self._call = call
        if self._came:
            call()

    def ignore(self) -> None:
        """Ignore the signal from now on. Python resets a handler before the process has ended, but not this."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._call = None

    def _on_signal(self, number: int, frame: object) -> None:
        first, self._came = not self._came, True
        if first and self._call is not None:
            self._call()


HANGUP = Hangup()

if "run" in sys.argv[1:]:
    HANGUP.hold()
