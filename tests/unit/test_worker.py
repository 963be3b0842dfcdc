"""The thread that makes the calls of an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from flanneld_masq.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("ipv4")
    yield made
    made.close()
    assert made.close() is None  # once more does no harm


def test_calls_are_made_by_its_thread_in_their_order(worker: Worker) -> None:
    made: list[int] = []

    async def scene() -> list[str]:
        asked = [
            worker.call(lambda number=number: made.append(number) or threading.current_thread().name)
            for number in range(9)
        ]
        return await asyncio.gather(*asked)

    assert asyncio.run(scene()) == ["ipv4"] * 9
    assert made == list(range(9))


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_exception_is_for_who_asked_and_ends_nothing(worker: Worker, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("no")

    async def scene() -> object:
        with pytest.raises(kind, match="no"):
            await worker.call(fail)
        return await worker.call(lambda: "goes on")

    assert asyncio.run(scene()) == "goes on"


def test_the_answer_to_who_is_gone_is_dropped(worker: Worker) -> None:
    """Cancelled, or with the event loop closed."""
    begun, release = threading.Event(), threading.Event()

    def slow() -> bool:
        begun.set()
        return release.wait(10)

    async def cancelled() -> object:
        asked = worker.call(slow)
        await asyncio.to_thread(begun.wait, 10)
        asked.cancel()
        release.set()
        return await worker.call(lambda: "goes on")

    async def gone() -> None:
        worker.call(slow)
        await asyncio.to_thread(begun.wait, 10)

    assert asyncio.run(cancelled()) == "goes on"
    begun.clear()
    release.clear()
    asyncio.run(gone())
    release.set()

    async def scene() -> object:
        return await worker.call(lambda: "goes on")

    assert asyncio.run(scene()) == "goes on"


def test_closing_waits_for_the_last_call() -> None:
    worker, ended = Worker("ipv4"), threading.Event()

    async def scene() -> None:
        worker.call(lambda: threading.Event().wait(0.05) or ended.set())
        worker.close()
        assert ended.is_set()

    asyncio.run(scene())
