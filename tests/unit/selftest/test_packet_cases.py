"""The packets that the self-test sends, and the source that it expects of each."""

from __future__ import annotations

import pytest

from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Lease, Settings
from flanneld_masq.selftest.packet_cases import Expectation, cases, excepted, expect
from flanneld_masq.selftest.topology import IPV4, IPV6, Addresses

BOTH = pytest.mark.parametrize("of", [IPV4, IPV6], ids=["ipv4", "ipv6"])

# Which row of the design decides each case, by default; "" for none. Written out, for the policy is no judge of itself.
ROWS = {
    "pod to outside": "6",
    "pod to the node's neighbour": "6",
    "pod to remote pod": "2",
    "node's pod address to remote pod": "2",
    "outside to local pod": "3",
    "node to local pod": "3",
    "remote pod to local pod": "3",
    "outside to remote pod": "7",
    "node's other address to remote pod": "7",
    "node to outside": "",
    "remote pod to outside, through here": "6",
    "outside to a pod of another subnet": "7",
    "pod of another subnet to outside": "6",
    "marked 0x4000 to outside": "1",
    "marked 0x4001 to outside": "1",
    "marked 0x8000 to outside": "6",
    "marked 0x4000 to remote pod": "1",
    "link-local": "6",
    "multicast": "",
}


def leases(of: Addresses, *, changed: bool = False) -> tuple[Lease, ...]:
    text = of.subnet_lines(of.next_subnet if changed else None)
    return (subnet_env.parse(text.encode(), "subnet.env"),)


def settings(of: Addresses, *, exceptions: bool = False) -> Settings:
    text = f'non_masquerade_cidrs = ["{excepted(of)}"]\nmasquerade_link_local = false' if exceptions else ""
    return config.parse(f"[masquerade]\n{text}\n", "config.toml")


@BOTH
def test_each_case_is_decided_by_the_designs_row(of: Addresses) -> None:
    rows = {case.name: expect(settings(of), leases(of), of, case.packet).row for case in cases(of)}
    assert rows == ROWS


@BOTH
def test_exceptions_make_rows_4_and_5_decide(of: Addresses) -> None:
    rows = {
        case.name: expect(settings(of, exceptions=True), leases(of), of, case.packet).row
        for case in cases(of)
        if case.packet.src in of.networks[0]
    }
    assert rows["pod to outside"] == rows["marked 0x8000 to outside"] == "4"
    assert rows["link-local"] == "5"
    assert rows["pod to the node's neighbour"] == "6"
    assert {"1", "2", "3", "4", "5", "6"} <= set(rows.values())


@BOTH
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pod to outside", "node"),
        ("pod to remote pod", "pod"),
        ("outside to local pod", "far"),
        ("outside to remote pod", "overlay"),
        ("node's other address to remote pod", "overlay"),
        ("marked 0x4001 to outside", "gateway"),
        ("marked 0x8000 to outside", "node"),
        ("multicast", "gateway"),
        ("outside to a pod of another subnet", "next_gateway"),
    ],
)
def test_the_source_that_arrives(of: Addresses, name: str, source: str) -> None:
    case = next(case for case in cases(of) if case.name == name)
    assert expect(settings(of), leases(of), of, case.packet).source == getattr(of, source)


@BOTH
def test_a_changed_subnet_changes_who_is_a_local_pod(of: Addresses) -> None:
    expected = {case.name: expect(settings(of), leases(of, changed=True), of, case.packet) for case in cases(of)}
    assert expected["outside to a pod of another subnet"] == Expectation(of.far, "3")
    assert expected["outside to local pod"] == Expectation(of.gateway, "7")


def test_multicast_goes_by_udp_alone() -> None:
    assert [case.transports for case in cases(IPV4) if case.name in ("multicast", "pod to outside")] == [
        ("UDP", "TCP"),
        ("UDP",),
    ]
