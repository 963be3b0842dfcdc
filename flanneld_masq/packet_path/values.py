"""Compares the values of packets with those of rules: numbers, interface names, sets and maps of these.

Addresses, ports, marks and protocols are numbers. A value that is not known is `UNKNOWN`; one that the packet does not
have is `MISSING`, for example a TCP port in a UDP packet: no test of it holds, not even an inequality.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Generic, Optional, TypeVar, Union

from flanneld_masq.model import SLOTS

_Data = TypeVar("_Data")


class Special(enum.Enum):
    UNKNOWN = "unknown"
    MISSING = "missing"


UNKNOWN, MISSING = Special.UNKNOWN, Special.MISSING


@dataclass(frozen=True, **SLOTS)
class Choices:
    """One of these values: a number that the kernel draws, or the name of a port."""

    values: frozenset[Union[int, str]]


@dataclass(frozen=True, **SLOTS)
class Interval:
    """All numbers from `low` to `high`."""

    low: int
    high: int

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


@dataclass(frozen=True, **SLOTS)
class Wildcard:
    """All names with this beginning."""

    prefix: str

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value.startswith(self.prefix)


class Anything(enum.Enum):
    """Every value: the catch-all element of a set."""

    ANYTHING = "*"


ANYTHING = Anything.ANYTHING
Value = Union[int, str, Special, Choices]
Element = Union[int, str, Interval, Wildcard, Special, Anything]


def network(text: str) -> Element:
    """Return the addresses of a network, host bits or not. Raises ValueError."""
    found = ip_network(text, strict=False)
    return between(int(found.network_address), int(found.broadcast_address))


def between(low: int, high: int) -> Element:
    """Return all numbers between two, the one if they are the same."""
    return low if low == high else Interval(low, high)


def masked(text: str) -> Element:
    """Return the addresses that `ADDRESS`, `ADDRESS/LENGTH` or `ADDRESS/MASK` names; UNKNOWN for an odd mask."""
    try:
        return network(text)
    except ValueError:
        return UNKNOWN


def addresses(low: str, high: str) -> Element:
    """Return the addresses between two. Raises ValueError."""
    return between(int(ip_address(low)), int(ip_address(high)))


def holds(element: Element, value: Value) -> Optional[bool]:
    """Tell if a value is this element, or lies in it; None if that is not known."""
    if element is ANYTHING:
        return True
    if isinstance(element, Special) or isinstance(value, Special):
        return None
    if isinstance(value, Choices):
        answers = {holds(element, one) for one in value.values}
        return answers.pop() if len(answers) == 1 else None
    if isinstance(element, (Interval, Wildcard)):
        return value in element
    return element == value


def both(answers: Iterable[Optional[bool]]) -> Optional[bool]:
    """Return False if any answer is False, otherwise None if any is None, otherwise True."""
    unknown = False
    for answer in answers:
        if answer is False:
            return False
        unknown |= answer is None
    return None if unknown else True


class Elements(Generic[_Data]):
    """The elements of a set or map, each a tuple of as many parts as its key has, with data.

    Exact elements are found by hash, intervals of one part by bisection, the others one by one. Intervals of ipset and
    of the match multiport may overlap; they are merged where their data are equal. nft allows no others.
    """

    def __init__(self, elements: Iterable[tuple[tuple[Element, ...], _Data]], *, complete: bool = True) -> None:
        self.complete = complete  # False for a set whose elements change with the traffic
        self._exact: dict[tuple[Element, ...], _Data] = {}
        self._others: list[tuple[tuple[Element, ...], _Data]] = []
        intervals: list[tuple[Interval, _Data]] = []
        for key, data in elements:
            if all(type(part) in (int, str) for part in key):
                self._exact[key] = data
            elif len(key) == 1 and isinstance(key[0], Interval):
                intervals.append((key[0], data))
            else:
                self._others.append((key, data))
        # A set keeps its catch-all for keys that no other element holds.
        self._others.sort(key=lambda element: all(part is ANYTHING for part in element[0]))
        self._intervals = _merged(intervals)
        self._lows = [interval.low for interval, _ in self._intervals]

    def __len__(self) -> int:
        return len(self._exact) + len(self._others) + len(self._intervals)

    def all(self) -> Iterator[tuple[tuple[Element, ...], _Data]]:
        """Yield every element."""
        yield from self._exact.items()
        yield from (((interval,), data) for interval, data in self._intervals)
        yield from self._others

    def find(self, key: Sequence[Value]) -> Iterator[tuple[bool, _Data]]:
        """Yield the data of elements that hold the key: each with True, or with False if it only may.

        After the first that certainly does, no other follows. All elements that may hold it come before.
        """
        known = all(type(part) in (int, str) for part in key)
        if known:
            exact: Any = tuple(key)
            if exact in self._exact:
                yield True, self._exact[exact]
                return
            if len(key) == 1 and isinstance(key[0], int):
                position = bisect_right(self._lows, key[0]) - 1
                if position >= 0 and key[0] in self._intervals[position][0]:
                    yield True, self._intervals[position][1]
                    return
        for element, data in self._others if known else self.all():
            answer = both(holds(part, value) for part, value in zip(element, key))
            if answer is not False:
                yield bool(answer), data
            if answer:
                return

    def contains(self, key: Sequence[Value]) -> Optional[bool]:
        """Tell if an element holds the key; None if that is not known."""
        if any(part is MISSING for part in key):
            return False
        unknown = not self.complete
        for certain, _ in self.find(key):
            if certain:
                return True if self.complete else None
            unknown = True
        return None if unknown else False


def _merged(intervals: list[tuple[Interval, _Data]]) -> list[tuple[Interval, _Data]]:
    """Return the intervals in order, those that overlap and have equal data as one."""
    merged: list[tuple[Interval, _Data]] = []
    for interval, data in sorted(intervals, key=lambda pair: pair[0].low):
        if merged and interval.low <= merged[-1][0].high and data == merged[-1][1]:
            last = merged[-1][0]
            merged[-1] = (Interval(last.low, max(last.high, interval.high)), data)
        else:
            merged.append((interval, data))
    return merged
