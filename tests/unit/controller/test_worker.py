"""The thread that makes the calls of an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from flanneld_masq.controller.worker import Worker

DEADLINE = 10.0

Scene = Callable[[], Awaitable[object]]


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("ipv4")
    yield made
    made.close()


@pytest.fixture
def play() -> Callable[[Scene], object]:
    """Runs a scene to its end, in which the event loop has nothing to complain of."""

    async def run(scene: Scene) -> object:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        result = await asyncio.wait_for(scene(), DEADLINE)
        assert problems == []
        return result

    return lambda scene: asyncio.run(run(scene))


Play = Callable[[Scene], object]


def test_calls_are_made_by_its_thread_in_their_order(worker: Worker, play: Play) -> None:
    made: list[int] = []

    def call(number: int) -> str:
        made.append(number)
        return threading.current_thread().name

    async def scene() -> object:
        return await asyncio.gather(*[worker.call(partial(call, number)) for number in range(9)])

    assert play(scene) == ["ipv4"] * 9
    assert made == list(range(9))


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_exception_is_for_who_asked_and_ends_nothing(worker: Worker, play: Play, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("no")

    async def scene() -> object:
        asked = worker.call(fail)
        goes_on = await worker.call(lambda: "goes on")
        assert isinstance(asked.exception(), kind)
        return goes_on

    assert play(scene) == "goes on"


class Slow:
    """A call that has begun, and ends when it may."""

    def __init__(self) -> None:
        self._begun, self._may_end = threading.Event(), threading.Event()

    def __call__(self) -> bool:
        self._begun.set()
        return self._may_end.wait(DEADLINE)

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, DEADLINE)

    def release(self) -> None:
        self._may_end.set()


def test_the_answer_to_who_was_cancelled_is_dropped(worker: Worker, play: Play) -> None:
    async def scene() -> object:
        slow = Slow()
        asked = worker.call(slow)
        await slow.begun()
        asked.cancel()
        slow.release()
        return await worker.call(lambda: "goes on")

    assert play(scene) == "goes on"


def test_a_call_that_was_cancelled_before_it_began_is_not_made(worker: Worker, play: Play) -> None:
    made: list[int] = []

    async def scene() -> object:
        slow = Slow()
        worker.call(slow)
        worker.call(lambda: made.append(1)).cancel()
        slow.release()
        return await worker.call(lambda: "goes on")

    assert play(scene) == "goes on"
    assert made == []


def test_an_answer_that_comes_after_the_event_loop_is_dropped(worker: Worker, play: Play) -> None:
    slow = Slow()

    async def gone() -> None:
        worker.call(slow)
        await slow.begun()

    async def scene() -> object:
        return await worker.call(lambda: "goes on")

    play(gone)
    slow.release()
    assert play(scene) == "goes on"


def test_closing_waits_for_the_last_call_and_then_none_is_taken(play: Play) -> None:
    worker, slow = Worker("ipv4"), Slow()
    ended: list[bool] = []

    async def scene() -> None:
        worker.call(lambda: ended.append(slow()))
        await slow.begun()
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
        await asyncio.wait([closing], timeout=0.02)
        assert not closing.done()
        slow.release()
        await closing
        assert ended == [True]
        with pytest.raises(RuntimeError, match="closed"):
            worker.call(slow)
        worker.close()  # once more does no harm

    play(scene)
