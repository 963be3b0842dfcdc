"""Makes the calls of a family in its worker's thread, and has the status show one that does not end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.worker import Worker

STUCK_SECONDS = 4.0  # below the time that a tool waits for the xtables lock, so that it is there to be named
_Result = TypeVar("_Result")


class Publisher(Protocol):
    """Receiver of log entries and status."""

    def emit(self, entries: Iterable[LogEntry]) -> None:
        """Log each entry and pass it to the plugins."""

    def publish(self) -> None:
        """Publish the status if it is new."""


class StepWatch:
    """Watches the calls of one worker. All methods are called from the event loop's thread.

    While a call takes more than STUCK_SECONDS, rules may be missing without a sign: the family's state is `degraded`.
    `running` returns the argv of the program that a call waits for; empty for none.
    """

    def __init__(
        self, report: FamilyReport, publisher: Publisher, running: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        self._worker = Worker(str(report.family))
        self._report = report
        self._publisher = publisher
        self._running = running

    async def call(self, call: Callable[[], _Result]) -> _Result:
        """Return the result of the call. Raises what it raises, and RuntimeError after `close`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer: asyncio.Future[_Result] = self._worker.call(call)
        timer = _Repeated(loop, lambda: self._on_stuck(loop.time() - began))
        try:
            return await answer
        finally:
            timer.cancel()
            if self._report.stuck and not answer.cancelled():
                self._publisher.emit(self._report.step_ended(loop.time() - began))
                loop.call_soon(self._publisher.publish)  # with the result of the pass

    def close(self) -> None:
        """Wait for the end of the last call."""
        self._worker.close()

    def _on_stuck(self, seconds: float) -> None:
        self._publisher.emit(self._report.step_is_stuck(seconds, self._running()))
        self._publisher.publish()


class _Repeated:
    """Calls every STUCK_SECONDS until cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._timer = loop.call_later(STUCK_SECONDS, self._again)

    def cancel(self) -> None:
        self._timer.cancel()

    def _again(self) -> None:
        self._timer = self._loop.call_later(STUCK_SECONDS, self._again)
        self._call()
