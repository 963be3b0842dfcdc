"""The queue of calls: bounded, and fair to each sender."""

from __future__ import annotations

import pytest

from flanneld_masq.dbus.call_queue import MAX_OF_ONE, MAX_WAITING, CallQueue


def drained(queue: CallQueue[str]) -> list[str]:
    return [queue.take() for _ in range(len(queue))]


def test_each_sender_has_its_turn() -> None:
    queue: CallQueue[str] = CallQueue()
    for sender, call in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")):
        assert queue.put(sender, call)
    assert drained(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_flood_is_cut_and_delays_another_sender_by_one_call() -> None:
    queue: CallQueue[str] = CallQueue()
    assert [queue.put("flood", str(number)) for number in range(1000)].count(True) == MAX_OF_ONE
    assert queue.put("other", "mine")
    assert [queue.take(), queue.take()] == ["0", "mine"]
    assert queue.put("flood", "again")


def test_many_senders_have_smaller_shares() -> None:
    queue: CallQueue[str] = CallQueue()
    for _ in range(MAX_OF_ONE):
        for sender in range(MAX_WAITING):
            queue.put(str(sender), "call")
    assert len(queue) == MAX_WAITING
    assert not queue.put("one more", "call")
    assert len(drained(queue)) == MAX_WAITING


def test_an_empty_queue_has_no_call() -> None:
    with pytest.raises(KeyError):
        CallQueue[str]().take()
