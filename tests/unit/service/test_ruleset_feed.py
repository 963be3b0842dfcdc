"""The feed of commits: queued for each family, delivered by the event loop and by nothing else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NoReturn, cast

import pytest

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.ruleset_events import RulesetEvents, Transaction
from flanneld_masq.model import Family
from flanneld_masq.service.ruleset_feed import RulesetFeed

from ...common import until

NFT = Transaction(7, 42, "nft")
V4, V6 = Family


class Kernel:
    """Reports transactions as the kernel's socket does, over a pair of sockets."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._pending: list[Transaction] = []
        self._lost = False
        self.failure: KernelError | None = None

    def commit(self, *transactions: Transaction, lost: bool = False) -> None:
        self._pending += transactions
        self._lost = self._lost or lost
        self._theirs.send(b"x")

    def fileno(self) -> int:
        return self._ours.fileno()

    def read(self) -> tuple[tuple[Transaction, ...], bool]:
        self._ours.recv(100, socket.MSG_DONTWAIT) if self._pending or self._lost or self.failure else b""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        pending, self._pending = tuple(self._pending), []
        lost, self._lost = self._lost, False
        return pending, lost

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@dataclass
class Stage:
    kernel: Kernel
    delivered: list[tuple[Transaction, ...]] = field(default_factory=list)
    logged: list[LogEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = RulesetFeed(self.deliver, self.logged.append, lambda: cast(RulesetEvents, self.kernel))

    def deliver(self) -> None:
        self.delivered.append(self.feed.take(V4)[0])


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage(Kernel())
        stage.feed.start()
        try:
            await scene(stage)
        finally:
            stage.feed.stop()

    asyncio.run(run())


def test_an_event_is_delivered_and_queued_for_each_family() -> None:
    async def scene(stage: Stage) -> None:
        stage.kernel.commit(NFT)
        await until(lambda: stage.delivered)
        assert stage.delivered == [(NFT,)]
        assert stage.feed.take(V6) == ((NFT,), False), "the other family takes it when it wants"
        assert stage.feed.take(V6) == ((), False)
        assert stage.feed.heard == NFT.generation

    play(scene)


def test_drain_queues_at_once_and_delivers_in_the_next_turn() -> None:
    async def scene(stage: Stage) -> None:
        stage.kernel.commit(NFT, lost=True)
        stage.feed.drain()
        assert stage.delivered == []
        assert stage.feed.take(V6) == ((NFT,), True)
        await until(lambda: stage.delivered)
        assert stage.feed.take(V4) == ((), False)

    play(scene)


def test_drain_of_nothing_delivers_nothing() -> None:
    async def scene(stage: Stage) -> None:
        stage.feed.drain()
        await asyncio.sleep(0)
        assert stage.delivered == []

    play(scene)


def test_an_event_that_cannot_be_read_is_logged_and_not_the_end() -> None:
    async def scene(stage: Stage) -> None:
        stage.kernel.failure = KernelError("reading ruleset events", "no")
        stage.kernel.commit()
        await until(lambda: stage.logged)
        (entry,) = stage.logged
        assert entry.event.message == "reading ruleset events: no; the resync finds what was missed"
        stage.kernel.commit(NFT)
        await until(lambda: (NFT,) in stage.delivered)

    play(scene)


def test_without_a_socket_the_resync_is_named() -> None:
    def refuse() -> NoReturn:
        raise KernelError("listening for ruleset events", "no")

    logged: list[LogEntry] = []
    feed = RulesetFeed(lambda: pytest.fail("nothing to deliver"), logged.append, refuse)
    feed.start()
    feed.drain()
    feed.stop()
    assert [entry.event.message for entry in logged] == [
        "listening for ruleset events: no; drift is found at the resync only"
    ]
