"""Method calls that wait for their answer: bounded, and one of each sender in turn. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

MAX_WAITING = 512  # calls of all senders
MAX_OF_ONE = 32  # of one sender; a program that waits for each answer has one
_Call = TypeVar("_Call")


class CallQueue(Generic[_Call]):
    """A sender's second call waits until each other sender's first one was taken. So a flood delays the calls of others
    by one answer for each sender that takes part, and what exceeds a sender's share is refused."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_Call]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, sender: str, call: _Call) -> bool:
        """Let the call wait. Return False if the sender has its share of calls waiting already: drop the call."""
        calls = self._waiting.get(sender)
        if calls is None:
            if len(self._waiting) >= MAX_WAITING:
                return False
            self._waiting[sender] = deque((call,))
        elif len(calls) >= self._share():
            return False
        else:
            calls.append(call)
        self._count += 1
        return True

    def take(self) -> _Call:
        """Return the next call. Raises KeyError if none waits."""
        sender, calls = self._waiting.popitem(last=False)
        call = calls.popleft()
        if calls:
            self._waiting[sender] = calls
        self._count -= 1
        return call

    def _share(self) -> int:
        return max(1, min(MAX_OF_ONE, MAX_WAITING // len(self._waiting)))
