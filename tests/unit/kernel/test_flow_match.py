"""The rule that marks a flow; tests/kernel/test_trace.py proves that the kernel matches what it says."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import decision
from flanneld_masq.kernel.flow_match import Flow, guard_rule, trace_rule
from flanneld_masq.kernel.netlink_wire import attributes, u32
from flanneld_masq.model import Family

IPV4 = Flow(ip_address("10.244.1.5"), ip_address("192.0.2.7"))
IPV6 = Flow(ip_address("fd00::5"), ip_address("2001:db8::7"))


def names(flow: Flow, *, arriving: bool = False) -> list[str]:
    return [each.name for each in trace_rule(flow, "output", rate=5, burst=7, arriving=arriving).expressions]


def test_both_addresses_are_compared() -> None:
    assert names(IPV4) == ["payload", "cmp", "payload", "cmp", "limit", "immediate", "meta"]


def test_any_destination_is_not_compared() -> None:
    assert names(Flow(IPV4.src, None)) == ["payload", "cmp", "limit", "immediate", "meta"]


def test_protocol_and_port_are_compared() -> None:
    flow = Flow(IPV4.src, None, 6, 443)
    assert names(flow)[2:6] == ["meta", "cmp", "payload", "cmp"]
    data = trace_rule(flow, "output", rate=5, burst=7, arriving=False).expressions[5].data
    assert data.endswith(b"\1\xbb\0\0")


def test_arriving_packets_are_not_those_of_loopback() -> None:
    assert names(IPV4, arriving=True)[:2] == ["meta", "cmp"]


def test_a_guard_drops_what_leaves_elsewhere() -> None:
    rule = guard_rule(IPV4.src, "postrouting", (3, 4))
    assert [each.name for each in rule.expressions] == ["payload", "cmp", "meta", "cmp", "meta", "cmp", "immediate"]
    assert decision(rule).verdict == "drop"


@pytest.mark.parametrize(("flow", "offsets"), [(IPV4, [12, 16]), (IPV6, [8, 24])], ids=["ipv4", "ipv6"])
def test_offsets_are_those_of_the_family(flow: Flow, offsets: list[int]) -> None:
    loads = [
        each for each in trace_rule(flow, "x", rate=5, burst=7, arriving=False).expressions if each.name == "payload"
    ]
    assert [u32(dict(attributes(load.data))[uapi.NFTA_PAYLOAD_OFFSET]) for load in loads] == offsets
    assert flow.family is (Family.IPV4 if flow is IPV4 else Family.IPV6)
