"""The outcomes of the self-test, as text, as JSON and as a table."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from flanneld_masq.model import Family, Probe
from flanneld_masq.selftest.packet_cases import Expectation, cases
from flanneld_masq.selftest.report import Repaired, Result, Sent, passed, table
from flanneld_masq.selftest.topology import IPV4

USABLE = Probe(True, versions=("nft 1.0.6",))


def sent(observed: str | None, problem: str = "") -> Sent:
    case = next(case for case in cases(IPV4) if case.name == "marked 0x8000 to outside")
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
        (Result("nft", Family.IPV4, Probe(False, "no nf_tables")), True),
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
