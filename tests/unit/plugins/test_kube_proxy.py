"""When the legacy backend reads kube-proxy's mark again."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import pytest
from flanneld_masq_iptables.kube_proxy import READ_SECONDS, STALE_SECONDS, LegacyMarkReader
from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.model import Family, Mark


class Table:
    """A nat table of the given size, whose chain sets these marks."""

    def __init__(self) -> None:
        self.size = 1 << 20
        self.values: list[tuple[int, int]] = [(1, 1)]
        self.reads = 0

    def shape(self) -> bytes:
        return struct.pack("=13I", *[0] * 12, self.size)

    def marks(self, chain: str) -> Iterator[tuple[int, int]]:
        assert chain == "KUBE-MARK-MASQ"
        return iter(self.values)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()

    @contextlib.contextmanager
    def entries(self: TableInfo, name: str) -> Iterator[Table]:
        assert name == "nat"
        table.reads += 1
        yield table

    monkeypatch.setattr(TableInfo, "read", lambda self, name: table.shape())
    monkeypatch.setattr(TableInfo, "entries", entries)
    return table


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reader(clock: Clock) -> LegacyMarkReader:
    return LegacyMarkReader(TableInfo(Family.IPV4), clock)


def mark(reader: LegacyMarkReader) -> Mark | None:
    evidence = reader.read()
    assert evidence is None or evidence.where == "chain KUBE-MARK-MASQ of legacy table nat"
    return None if evidence is None else evidence.mark


def test_large_table_of_the_same_shape_is_read_once(table: Table, clock: Clock, reader: LegacyMarkReader) -> None:
    for _ in range(3):
        assert mark(reader) == Mark(1, 1)
        clock.now += STALE_SECONDS / 3 - 1
    assert table.reads == 1
    table.values = [(2, 2)]
    clock.now = STALE_SECONDS
    assert (mark(reader), table.reads) == (Mark(2, 2), 2)


def test_changed_table_is_read_again_after_a_pause(table: Table, clock: Clock, reader: LegacyMarkReader) -> None:
    mark(reader)
    for _ in range(100):
        table.size += 1
        table.values = [(2, 2)]
        mark(reader)
        clock.now += READ_SECONDS / 10
    assert (mark(reader), table.reads) == (Mark(2, 2), 11)


def test_small_table_is_read_again_without_a_change(table: Table, clock: Clock, reader: LegacyMarkReader) -> None:
    table.size = 1000
    mark(reader)
    table.values = []
    clock.now += READ_SECONDS
    assert mark(reader) is None


def test_entries_that_were_read_anyway_are_enough(table: Table, clock: Clock, reader: LegacyMarkReader) -> None:
    with TableInfo(Family.IPV4).entries("nat") as entries:
        reader.note(table.shape(), entries)
    assert (mark(reader), table.reads) == (Mark(1, 1), 1)


def test_marks_that_no_test_can_find_are_passed_over(table: Table, reader: LegacyMarkReader) -> None:
    table.values = [(1, 0), (0, 1), (4, 4)]
    assert mark(reader) == Mark(4, 4)
