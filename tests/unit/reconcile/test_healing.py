"""A search through connections: what it deletes, and when it pauses and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.conntrack import Entry
from flanneld_masq.model import Address, Family, FamilyLease, Flow, Lease, MasqueradeSettings, Settings
from flanneld_masq.reconcile import healing
from flanneld_masq.reconcile.healing import Healed, Search
from flanneld_masq.reconcile.values import DesiredState

V4 = Family.IPV4
LEASE = Lease("/x", FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")))
STATE = DesiredState(Settings(), (LEASE,))
POD, REMOTE, WORLD, NODE = map(ip_address, ("10.244.1.5", "10.244.2.5", "203.0.113.9", "192.0.2.1"))


def entry(dst: Address = WORLD, *, source_nat: bool = False, number: int = 0) -> Entry:
    return Entry(Flow(POD, dst, source_nat), b"key", bytes([number]))


@dataclass
class Table:
    """Connections in memory. Each batch takes a second."""

    batches: Sequence[Sequence[Entry]]
    answered: Sequence[Entry] = ()
    error: KernelError | None = None
    now: float = 0.0
    deleted: list[Entry] = field(default_factory=list)
    opened: int = 0
    closed: int = 0

    def open(self, family: Family) -> Table:
        self.opened += 1
        return self

    def unanswered(self) -> Iterator[Iterator[Entry]]:
        for batch in self.batches:
            self.now += 1.0
            yield iter(batch)

    def delete_unanswered(self, entry: Entry) -> bool:
        if self.error is not None:
            raise self.error
        if entry in self.answered:
            return False
        self.deleted.append(entry)
        return True

    def close(self) -> None:
        self.closed += 1


def search_in(table: Table, state: DesiredState = STATE) -> Search:
    return Search(V4, state, table.open, local=lambda address: address == NODE, clock=lambda: table.now)


def test_wrong_connections_are_deleted_and_counted_by_cause() -> None:
    slipped, masqueraded = entry(), entry(REMOTE, source_nat=True)
    table = Table([[slipped, entry(REMOTE)], [masqueraded, entry(source_nat=True)]])
    search = search_in(table)
    assert not search.step(10)
    assert table.deleted == [slipped, masqueraded]
    assert search.healed == Healed(1, 1, 2_000_000)
    assert (search.healed.flows, table.opened, table.closed) == (2, 1, 1)


def test_one_that_was_answered_meanwhile_is_not_counted() -> None:
    table = Table([[entry()]], answered=[entry()])
    search = search_in(table)
    assert not search.step(10)
    assert search.healed.flows == 0


def test_packets_that_end_on_the_node_pass_no_masquerade_rule() -> None:
    table = Table([[entry(NODE), entry(NODE), entry(WORLD)]])
    search_in(table).step()
    assert table.deleted == [entry(WORLD)]


def test_each_destination_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Address] = []
    table = Table([[entry(WORLD), entry(WORLD), entry(WORLD + 1), entry(WORLD)]])

    def local(address: Address) -> bool:
        asked.append(address)
        return False

    Search(V4, STATE, table.open, local=local).step()
    assert asked == [WORLD, WORLD + 1]
    monkeypatch.setattr(healing, "_MAX_REMEMBERED", 1)
    Search(V4, STATE, table.open, local=local).step()
    assert asked[2:] == [WORLD, WORLD + 1, WORLD], "but memory is bounded"


def test_a_step_ends_in_time_and_the_next_goes_on() -> None:
    table = Table([[entry(number=number)] for number in range(5)])
    search = search_in(table)
    assert search.step(2)
    assert (len(table.deleted), table.closed) == (2, 0)
    assert search.step(2)
    assert not search.step(2)
    assert (len(table.deleted), table.opened, table.closed) == (5, 1, 1)
    assert search.healed == Healed(5, 0, 5_000_000)


def test_a_search_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healing, "MAX_SECONDS", 3.0)
    table = Table([[entry(number=number)] for number in range(9)])
    search = search_in(table)
    assert search.step(2)
    assert not search.step(2)
    assert (search.healed.flows, search.healed.complete, table.closed) == (3, False, 1)


@pytest.mark.parametrize(
    "state",
    [
        DesiredState(Settings()),
        DesiredState(Settings(masquerade=MasqueradeSettings(enabled=False)), (LEASE,)),
        DesiredState(Settings(masquerade=MasqueradeSettings(families=(Family.IPV6,))), (LEASE,)),
    ],
    ids=["no lease", "switched off", "another family"],
)
def test_without_masquerade_rules_nothing_is_read(state: DesiredState) -> None:
    table = Table([[entry()]])
    search = search_in(table, state)
    assert not search.step()
    assert (search.healed, table.opened) == (Healed(), 0)


def test_an_error_ends_the_search() -> None:
    table = Table([[entry()]], error=KernelError("deleting", "no"))
    with pytest.raises(KernelError):
        search_in(table).step()
    assert table.closed == 1
