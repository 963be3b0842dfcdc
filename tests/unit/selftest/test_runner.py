"""The pure parts of the self-test: which packets it sends, what it expects of them, and how it says so."""

from __future__ import annotations

import io
import json
from ipaddress import ip_address, ip_network

import pytest

from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Family, FamilyLease, Lease, Packet, Probe, Settings
from flanneld_masq.selftest import packets, topology
from flanneld_masq.selftest.fault_injection import tools
from flanneld_masq.selftest.packet_cases import (
    Expectation,
    Repaired,
    Result,
    Sent,
    cases,
    excepted,
    expect,
    passed,
    table,
)
from flanneld_masq.selftest.runner import _Progress
from flanneld_masq.selftest.topology import IPV4, IPV6, Addresses, addresses_for

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
USABLE = Probe(True, versions=("nft 1.0.6",))


def leases(of: Addresses, *, changed: bool = False) -> tuple[Lease, ...]:
    text = of.subnet_lines(of.next_subnet if changed else None)
    return (subnet_env.parse(text.encode(), "subnet.env"),)


def settings(of: Addresses, *, exceptions: bool = False) -> Settings:
    text = f'non_masquerade_cidrs = ["{excepted(of)}"]\nmasquerade_link_local = false' if exceptions else ""
    return config.parse(f"[masquerade]\n{text}\n", "config.toml")


@BOTH
def test_every_case_is_decided_by_the_row_that_the_design_says(of: Addresses) -> None:
    found = {case.name: expect(settings(of), leases(of), of, case.packet).row for case in cases(of)}
    assert found == ROWS


@BOTH
def test_exceptions_make_rows_4_and_5_decide(of: Addresses) -> None:
    found = {
        case.name: expect(settings(of, exceptions=True), leases(of), of, case.packet).row
        for case in cases(of)
        if case.packet.src in of.networks[0]
    }
    assert found["pod to outside"] == found["marked 0x8000 to outside"] == "4"
    assert found["link-local"] == "5"
    assert found["pod to the node's neighbour"] == "6"
    assert {"1", "2", "3", "4", "5", "6"} <= set(found.values())


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
    case = next(found for found in cases(of) if found.name == name)
    assert expect(settings(of), leases(of), of, case.packet).source == getattr(of, source)


@BOTH
def test_a_changed_subnet_turns_the_verdicts_on_local_pods_around(of: Addresses) -> None:
    found = {case.name: expect(settings(of), leases(of, changed=True), of, case.packet) for case in cases(of)}
    assert found["outside to a pod of another subnet"] == Expectation(of.far, "3")
    assert found["outside to local pod"] == Expectation(of.gateway, "7")


def test_link_local_destinations_get_a_source_of_their_scope_in_ipv6_alone() -> None:
    assert IPV6.masqueraded(IPV6.link_local) == IPV6.link_local_node
    assert IPV4.masqueraded(IPV4.link_local) == IPV4.node


def test_multicast_goes_by_udp_alone() -> None:
    assert [case.transports for case in cases(IPV4) if case.name in ("multicast", "pod to outside")] == [
        ("UDP", "TCP"),
        ("UDP",),
    ]


def test_the_lab_follows_a_lease() -> None:
    lease = FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.0.0/24"), ip_address("10.42.0.1"))
    of = addresses_for(lease)
    assert (of.subnet, of.remote_subnet, of.next_subnet) == tuple(
        ip_network(each) for each in ("10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24")
    )
    assert str(of.pod) == "10.42.0.5"
    assert of.subnet_lines() == "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\n"


def sent(observed: str | None, problem: str = "") -> Sent:
    case = next(found for found in cases(IPV4) if found.name == "marked 0x8000 to outside")
    seen = None if observed is None else ip_address(observed)
    return Sent(case, "UDP", Expectation(IPV4.node, "6"), seen, problem)


def test_a_wrong_packet_is_told_whole() -> None:
    assert str(sent("10.244.1.1")) == (
        "marked 0x8000 to outside, UDP from 10.244.1.1 to 198.51.100.7, mark 0x8000: "
        "expected from 192.0.2.1 (row 6), arrived as from 10.244.1.1"
    )
    assert str(sent(None, "did not arrive")).endswith("expected from 192.0.2.1 (row 6), did not arrive")


@pytest.mark.parametrize(
    ("result", "ok"),
    [
        (Result("nft", Family.IPV4, USABLE, (sent("192.0.2.1"),), (Repaired("chain flushed", 2.0),)), True),
        (Result("nft", Family.IPV4, USABLE, (sent("10.244.1.1"),)), False),
        (Result("nft", Family.IPV4, USABLE, (sent(None, "lost"),)), False),
        (Result("nft", Family.IPV4, USABLE, (sent("192.0.2.1"),), (Repaired("chain flushed", None, "no"),)), False),
        (Result("nft", Family.IPV4, USABLE, (sent("192.0.2.1"),), problems=("cleanup: left behind",)), False),
        (Result("nft", Family.IPV4, USABLE), False),
        (Result("nft", Family.IPV4, Probe(False, "no python3-nftables")), True),
    ],
    ids=["all well", "wrong source", "lost", "not repaired", "daemon's problem", "nothing sent", "unusable"],
)
def test_whether_a_result_is_good(result: Result, ok: bool) -> None:
    assert result.ok is ok
    assert json.loads(json.dumps(result.document()))["ok"] is ok
    assert passed([result]) is (ok and result.probe.usable)


def test_no_backend_at_all_is_a_failure() -> None:
    assert not passed([])
    assert table([])[0].startswith("no backend was tested")


def test_the_table() -> None:
    good = (sent("192.0.2.1"), sent("192.0.2.1"))
    repaired = (Repaired("chain flushed", 2.0), Repaired("rule deleted", 4.0), Repaired("jump removed", None, "no"))
    legacy = Probe(False, "the kernel has no ip_tables", "load the module ip_tables", ("iptables 1.8.9 (legacy)",))
    results = [
        Result("nft", Family.IPV4, USABLE, good, repaired[:2]),
        Result("nft", Family.IPV6, USABLE, good, repaired),
        Result("iptables-legacy", Family.IPV4, legacy),
    ]
    assert table(results) == [
        "BACKEND          IPV4      IPV6   PACKETS  REPAIRS  MEDIAN  SLOWEST  VERSIONS",
        "nft              ok        FAILS  4/4      4/5      3.0 ms  4.0 ms   nft 1.0.6",
        "iptables-legacy  unusable  -      -        -        -       -        iptables 1.8.9 (legacy)",
        "",
        "iptables-legacy cannot be used for ipv4: the kernel has no ip_tables; load the module ip_tables",
    ]


def test_colours_are_for_terminals() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        _Progress(stream).verdict("nft", False, "2 of 3")
    assert plain.getvalue() == "nft: FAILS, 2 of 3\n"
    assert coloured.getvalue() == "nft: \033[31mFAILS\033[0m, 2 of 3\n"


@pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
def test_each_backend_of_ours_can_be_damaged(backend: str) -> None:
    found = tools(backend, Family.IPV6, topology.ProcessRunner())
    assert found is not None
    assert {"rule deleted", "rule duplicated", "chain flushed", "ruleset flushed"} < set(found.damages)
    assert tools("of-a-plugin", Family.IPV6, topology.ProcessRunner()) is None


@pytest.mark.parametrize(
    ("src", "dst", "carried"),
    [
        ("10.1.2.3", "8.8.8.8", True),
        ("10.1.2.3", "239.0.0.1", True),
        ("169.254.1.1", "169.254.169.254", True),
        ("0.1.2.3", "8.8.8.8", False),
        ("127.0.0.1", "8.8.8.8", False),
        ("10.1.2.3", "255.255.255.255", False),
        ("224.0.0.1", "8.8.8.8", False),
        ("10.1.2.3", "203.0.113.1", False),
        ("fd00::1", "2001:db8::1", True),
        ("fd00::1", "ff15::1", True),
        ("fd00::1", "ff11::1", False),
        ("fd00::1", "::1", False),
        ("fd00::1", "::ffff:8.8.8.8", False),
    ],
)
def test_what_the_wire_can_carry(src: str, dst: str, carried: bool) -> None:
    assert packets.carries(Packet(ip_address(src), ip_address(dst))) is carried
