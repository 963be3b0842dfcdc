"""Whatever others commit, and whenever in a pass, the rules come back. With events as the kernel sends them."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from flanneld_masq.controller.family_loop import FamilyLoop
from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.status import State
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel.objects import following
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    Lease,
    MasqueradeSettings,
    Position,
    ReconcileSettings,
    Settings,
)
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.reconcile.writer import OwnCommits
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryKernel, memory_backend_type
from flanneld_masq.testing.fake_backend import Chains, MemoryRule

from ...common import amount, lasting, until

DEADLINE = 10.0  # seconds
LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
    FamilyLease((ip_network("fd00:244::/56"),), ip_network("fd00:244:0:1::/64"), ip_address("fd00:244:0:1::1")),
)
SETTINGS = Settings(
    masquerade=MasqueradeSettings(position=Position.FIRST), reconcile=ReconcileSettings(resync_seconds=60.0)
)
DESIRED = DesiredState(SETTINGS, (LEASE,))
MASQUERADES, FORWARDS = BackendName("masquerades"), BackendName("forwards")
OURS = ("masquerades masquerade", "forwards forward")
BASES = ("postrouting", "forward")


@dataclass(frozen=True)
class Step:
    """Change of a chain by another program, during the call of a backend that comes after `calls` others.

    The kernel counts the transaction then, shows its rules `lag` calls later, and reports it last. The event is heard
    as soon as may be, before that call goes on, or never, because it is one of too many.
    """

    family: Family
    act: str  # flush, append or prepend
    chain: str
    calls: int
    event: str  # soon, at once or lost
    lag: int = 0


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(Family),
        st.sampled_from(("flush", "append", "prepend")),
        st.sampled_from((*OURS, *BASES, "elsewhere")),
        st.integers(0, 8),
        st.sampled_from(("soon", "at once", "lost")),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=5,
)


class Kernel(MemoryKernel):
    """Lets other programs commit in the middle of a pass, and has an event for each transaction.

    One program commits at a time: until the rules of a transaction are visible, the next one waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drops[FORWARDS] = "docker drops"
        self.steps: list[Step] = []
        self.tell: Callable[[bool], None] = lambda at_once: None
        self._events: list[Transaction] = []
        self._lost = self._losing = False
        self._calls = self._lag = 0
        self._half_done: Step | None = None  # its generation is counted, its rules are not visible
        self._committing, self._counting = threading.RLock(), threading.Lock()

    @property
    def at_rest(self) -> bool:
        return not self.steps and self._half_done is None

    def commit(self, family: Family, chains: Chains) -> None:
        self.finish()
        with self._committing:
            super().commit(family, chains)
            self._report()
        self.tell(False)

    def events(self) -> tuple[list[Transaction], bool]:
        with self._committing:
            (found, self._events), (lost, self._lost) = (self._events, []), (self._lost, False)
        return found, lost

    def called(self, method: str, backend: BackendName, family: Family) -> None:
        super().called(method, backend, family)
        with self._counting:
            self._calls += 1
            self._lag -= 1
            visible = self._lag <= 0
            due = bool(self.steps) and self._half_done is None and self.steps[0].calls < self._calls
            step = self.steps.pop(0) if due else None
            self._calls = 0 if due else self._calls
        if visible:
            self.finish()
        if step is not None:
            self.do(step)

    def do(self, step: Step) -> None:
        self.finish()
        with self._committing:
            self.generation = following(self.generation)
            self._half_done, self._lag = step, step.lag
        if not step.lag:
            self.finish()

    def finish(self) -> None:
        """Show the rules of the transaction that was counted, then report it."""
        with self._committing:
            step, self._half_done = self._half_done, None
            if step is None:
                return
            rules = self.chain(step.family, step.chain) or ()
            added = MemoryRule("rule")
            acts = {"flush": (), "append": (*rules, added), "prepend": (added, *rules)}
            self.change(step.family, {step.chain: acts[step.act]})
            self._losing = step.event == "lost"
            self._report()
            self._losing = False
        self.tell(step.event == "at once")

    def _report(self) -> None:
        if self._losing:
            self._lost = True
        else:
            self._events.append(Transaction(self.generation, 4_000_000, "another"))

    def ours(self, family: Family) -> list[tuple[str, ...]]:
        """Return what a repair must restore: the daemon's chains, the first postrouting rule, the last of forward."""
        found = self.chains(family)
        return [*(found.get(name, ()) for name in OURS), found["postrouting"][:1], found["forward"][-1:]]


class Stage:
    """Both families with their groups in two backends, and the inputs and outputs of their loops."""

    settings = SETTINGS

    def __init__(self, directory: Path) -> None:
        self.kernel = Kernel()
        types = [memory_backend_type(name, kernel=self.kernel) for name in (MASQUERADES, FORWARDS)]
        commits = OwnCommits()
        self.queues: dict[Family, tuple[list[Transaction], bool]] = {family: ([], False) for family in Family}
        self.heard: int | None = None
        self.loops = []
        for family in Family:
            backends = {each.name: each.create(family, Host(ProcessRunner())) for each in types}
            reconciler = Reconciler(family, backends, StateDirectory(directory), commits=commits)
            self.loops.append(FamilyLoop(FamilyReport(family), reconciler, self, self, self))

    def current(self) -> DesiredState:
        return DESIRED

    def drain(self) -> None:
        if self.read():
            asyncio.get_running_loop().call_soon(self.deliver)

    def read(self) -> bool:
        events, lost = self.kernel.events()
        self.heard = events[-1].generation if events else self.heard
        for family, (queue, lost_before) in self.queues.items():
            self.queues[family] = ([*queue, *events], lost or lost_before)
        return bool(events) or lost

    def take(self, family: Family) -> tuple[list[Transaction], bool]:
        queued, self.queues[family] = self.queues[family], ([], False)
        return queued

    def deliver(self) -> None:
        for loop in self.loops:
            loop.receive()

    def hear(self) -> None:
        """The socket is readable."""
        self.read()
        self.deliver()

    def emit(self, entries: Iterable[LogEntry]) -> None:
        for _ in entries:
            pass

    def publish(self) -> None: ...

    async def play(self, steps: Sequence[Step]) -> None:
        here = asyncio.get_running_loop()

        def tell(at_once: bool) -> None:
            heard = threading.Event()

            def hear() -> None:
                self.hear()
                heard.set()

            here.call_soon_threadsafe(hear)
            if at_once and threading.current_thread() is not threading.main_thread():
                assert heard.wait(DEADLINE)

        self.kernel.tell = tell
        tasks = [asyncio.create_task(loop.run()) for loop in self.loops]
        try:
            await until(lambda: self.synced() and self.at_rest())
            wanted = list(map(self.kernel.ours, Family))
            self.kernel.steps = list(steps)
            await until(self.all_done)
            await until(lambda: list(map(self.kernel.ours, Family)) == wanted and self.synced() and self.at_rest())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for loop in self.loops:
                loop.close()

    def all_done(self) -> bool:
        """A step that no call comes for, because there is nothing to repair, is done now."""
        if self.at_rest():
            self.kernel.finish()
            if self.kernel.steps:
                self.kernel.do(self.kernel.steps.pop(0))
        return self.kernel.at_rest

    def synced(self) -> bool:
        return all(loop.report.state is State.SYNCED for loop in self.loops)

    def at_rest(self) -> bool:
        return not any(loop._schedule.dirty or loop._schedule.passing for loop in self.loops)


@settings(deadline=None, max_examples=int(lasting(amount(100, quick=25), 5000)))
@example(
    [
        Step(Family.IPV4, "prepend", "elsewhere", 7, "soon", 2),
        Step(Family.IPV4, "prepend", "forwards forward", 7, "soon", 2),
        Step(Family.IPV4, "append", "masquerades masquerade", 1, "soon", 4),
    ],
    14,
)
@given(steps=STEPS, before=st.integers(0, 15))
def test_whatever_others_commit_and_whenever_the_rules_come_back(steps: list[Step], before: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stage = Stage(Path(directory))
        stage.kernel.generation = following(0, -before)  # it overflows somewhere in between
        asyncio.run(stage.play(steps))
