"""Records which program changed the ruleset of a namespace, and when. The self-test times repairs with it."""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass

from flanneld_masq.kernel.ruleset_events import RulesetEvents
from flanneld_masq.model import SLOTS


@dataclass(frozen=True, **SLOTS)
class Commit:
    """A transaction. `moment` is in seconds of the monotonic clock; `program` is the kernel's name of the process."""

    moment: float
    program: str


class Commits:
    """Listens, in a thread, to the namespace of the thread that makes it. Legacy iptables sends no events."""

    def __init__(self) -> None:
        self._events = RulesetEvents()
        self._commits: list[Commit] = []
        self._end, self._end_here = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="commits", daemon=True)
        self._thread.start()

    def since(self, moment: float) -> tuple[Commit, ...]:
        return tuple(commit for commit in tuple(self._commits) if commit.moment >= moment)

    def close(self) -> None:
        os.close(self._end_here)
        self._thread.join()
        os.close(self._end)
        self._events.close()

    def _listen(self) -> None:
        poller = select.poll()
        poller.register(self._events, select.POLLIN)
        poller.register(self._end)
        while not any(descriptor == self._end for descriptor, _ in poller.poll()):
            # a flood that overruns the buffer loses records, and these are for people only
            transactions, _ = self._events.read()
            moment = time.monotonic()
            self._commits += [Commit(moment, transaction.name) for transaction in transactions]
