"""How the bench times an outage, and what it takes for a damage without effect."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

import pytest

from flanneld_masq.errors import KernelError

from ...bench.clock import BenchError
from ...bench.damage import committed
from ...bench.watch import Watch, outage

WHOLE, GONE = "whole", "gone"
Item = TypeVar("Item")


class Looks(Watch):
    """Sees one thing after the other, and the last one for ever."""

    wanted = WHOLE

    def __init__(self, seen: Iterable[str], generations: Iterable[int] = (0,)) -> None:
        self._seen, self._generations = _lasting(seen), _lasting(generations)

    def look(self) -> Hashable:
        return next(self._seen)

    def generation(self) -> int:
        return next(self._generations)


def _lasting(items: Iterable[Item]) -> Iterator[Item]:
    *first, last = items
    return itertools.chain(first, itertools.repeat(last))


def refuse(error: Exception) -> None:
    raise error


def test_rules_that_are_gone_and_back_are_an_outage() -> None:
    found = outage(Looks([WHOLE, WHOLE, GONE, GONE, WHOLE]), lambda: None, "flush")
    assert found.seen
    assert found.seconds > 0


def test_two_transactions_between_two_looks_are_an_outage() -> None:
    assert outage(Looks([WHOLE], [7, 7, 9]), lambda: None, "flush").seen


def test_a_damage_that_ends_without_effect_is_none() -> None:
    assert not outage(Looks([WHOLE]), lambda: None, "flush", ended=lambda: True).seen


def test_rules_that_are_gone_before_the_damage_are_an_error() -> None:
    with pytest.raises(BenchError, match="not in order before"):
        outage(Looks([GONE]), lambda: None, "flush")


def test_a_commit_to_a_protected_table_is_refused() -> None:
    assert committed(lambda: None)
    assert not committed(lambda: refuse(BenchError("Error: Could not process rule: Operation not permitted")))
    assert not committed(lambda: refuse(KernelError("writing chains ip t c", "Operation not permitted", 1)))


def test_another_failure_of_a_commit_is_an_error() -> None:
    with pytest.raises(BenchError, match="No such file"):
        committed(lambda: refuse(BenchError("No such file or directory")))
