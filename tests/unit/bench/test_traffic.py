"""Which flows the bench counts as wrong, and that no flow is like another."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from ...bench.flannel import spread
from ...bench.traffic_program import POD, Ledger, endpoint, payload

NODE = IPv4Address("192.0.2.1")


def packet(flow: int, source: IPv4Address, *, again: bool = False) -> bytes:
    """Return an IPv4 packet with a UDP datagram of the flow; only the fields that the ledger reads are filled."""
    return bytes(12) + source.packed + bytes(12) + payload(flow, again=again)


def test_a_flow_with_the_pods_address_is_wrong() -> None:
    ledger = Ledger()
    for flow, source in enumerate((NODE, POD, NODE, POD)):
        ledger.enter(packet(flow, source))
    assert (ledger.arrived, ledger.wrong) == (4, {1, 3})


def test_a_flow_that_is_wrong_twice_is_stuck() -> None:
    ledger = Ledger()
    for flow in (1, 2):
        ledger.enter(packet(flow, POD))
    ledger.enter(packet(1, POD, again=True))
    ledger.enter(packet(2, NODE, again=True))
    assert (ledger.arrived, ledger.arrived_again, ledger.stuck) == (2, 2, {1})


@pytest.mark.parametrize("content", [b"", b"E" * 20, bytes(28) + b"bench", bytes(60)])
def test_a_packet_of_another_program_is_ignored(content: bytes) -> None:
    ledger = Ledger()
    ledger.enter(content)
    assert (ledger.arrived, ledger.wrong) == (0, set())


def test_each_flow_has_its_own_endpoint() -> None:
    numbers = (0, 1, 59_999, 60_000, 60_001, 600_000)
    assert len({endpoint(number) for number in numbers}) == len(numbers)
    assert all(1024 <= endpoint(number)[1] < 65536 for number in numbers)


@pytest.mark.parametrize("number", [1, 2, 10])
def test_damages_are_spread_over_flannels_resync(number: int) -> None:
    moments = spread(number, 0.5)
    assert sum(moments) / number == pytest.approx(2.5)
    assert [int(moment * number / 5) for moment in moments] == list(range(number))
