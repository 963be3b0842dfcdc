"""Rules of a long chain are found by address; what is found is what a walk over all of them finds."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Optional

import pytest

from flanneld_masq.model import Family
from flanneld_masq.packet_path import rules
from flanneld_masq.packet_path.evaluate import Fate, Node
from flanneld_masq.packet_path.rule_index import AddressKey, RuleIndex, end_of
from flanneld_masq.packet_path.snapshot import LEGACY, Save

from .nodes import ACCEPT, DADDR, DROP, SADDR, chain, follow, match, meta, snapshot, table
from .nodes import rule as rule_of

DST = (False, ip_address("10.96.0.1").packed)
SRC = (True, ip_address("10.96.0.1").packed)


def rule(op: str, field: str, *before: object) -> str:
    left = {"payload": {"protocol": "ip", "field": field}}
    return json.dumps({"rule": {"expr": [*before, {"match": {"op": op, "left": left, "right": "10.96.0.1"}}]}})


MARKS = {"mangle": {"key": meta("mark"), "value": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-A C -d 10.96.0.1/32 -p tcp -j A", DST),
        ("-A C -s 10.96.0.1/32 -j A", SRC),
        ("-A C -s 10.0.0.0/8 -d 10.96.0.1/32 -j A", DST),
        ("-A C -d fd00:96::1/128 -j A", (False, ip_address("fd00:96::1").packed)),
        ("-A C ! -d 10.96.0.1/32 -j A", None),
        ("-A C -s 10.0.0.0/8 ! -d 10.96.0.1/32 -j A", None),
        ("-A C -d 10.96.0.0/16 -j A", None),
        ("-A C -d 10.96.0.256/32 -j A", None),
        ("-A C -d 2001:db8::/32 -j A", None),
        ("-A C -s 2001:db8::/32 -d 10.96.0.1/32 -j A", DST),
        ('-A C -m comment --comment " -d 10.96.0.1/32 " -j A', None),
        (rule("==", "daddr"), DST),
        (rule("==", "saddr"), SRC),
        (rule("!=", "daddr"), None),
        (rule("==", "daddr", match(meta("iifname"), "cni0"), {"counter": {"packets": 0, "bytes": 0}}), DST),
        (rule("==", "daddr", match(meta("iifname"), {"set": ["a", '"expr": [{']}), {"counter": None}), DST),
        (rule("==", "daddr", MARKS), None),
        (rule("==", "daddr", match(meta("iifname"), "cni0"), MARKS), None),
        (rule("==", "daddr", {"vmap": {"key": meta("mark"), "data": {"set": [[1, {"drop": None}]]}}}), None),
        (rule("==", "daddr", {"notrack": None}), None),
        (rule("==", "daddr", {"xt": {"type": "match", "name": "u32"}}), None),
        (rule("==", "daddr", {"set": {"op": "add", "elem": SADDR, "set": "@seen"}}), None),
        (json.dumps({"rule": {"comment": rule("==", "daddr")}}), None),
        (json.dumps({"rule": {"comment": rule("==", "daddr"), "expr": []}}), None),
        (rule("==", "daddr").replace('"expr": [', '"expr":['), None),
        ('{"rule": {"expr": ["match' + rule("==", "daddr"), None),
    ],
)
def test_the_address_of_a_rule(text: str, expected: Optional[AddressKey]) -> None:
    assert end_of(text) == expected


def test_rules_of_other_addresses_are_left_out() -> None:
    lines = [f"-A C -d 10.96.0.{number % 3}/32 -j A" for number in range(9)]
    lines[4] = "-A C -j B"
    index = RuleIndex(lines)
    found, position = [], index.next(0, {DST})
    while position is not None:
        found.append(position)
        position = index.next(position + 1, {DST})
    assert found == [1, 4, 7]
    assert index.next(0, set()) == 4
    assert index.next(5, set()) is None


def test_an_ipv6_network_of_32_bits_is_no_host() -> None:
    lines = ["-A FORWARD -d 2001:db8::/32 -j DROP", *(f"-A FORWARD -d fd00::{one:x}/128 -j DROP" for one in range(64))]
    saved = "\n".join(["*filter", ":FORWARD ACCEPT [0:0]", *lines, "COMMIT", ""])
    node = Node(snapshot(saves=(Save(Family.IPV6, LEGACY, saved),)))
    assert [step.place.number for step in follow(node, src="fd00:10:244:1::5", dst="2001:db8::7").deciders] == [1]


def test_a_rule_that_acts_before_its_address_match_is_walked() -> None:
    """The mark holds for packets of every address."""
    marks = rule_of("f", MARKS, match(DADDR, "203.0.113.1"), ACCEPT)
    drops = rule_of("f", match(meta("mark"), 1), DROP)
    fill = [rule_of("f", match(DADDR, f"203.0.113.{one}"), ACCEPT) for one in range(64)]
    node = Node(snapshot([table(), chain("f", "forward"), marks, drops, *fill]))
    assert follow(node).fate is Fate.DROPPED


def test_a_long_chain_decides_as_a_walk_over_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"-A FORWARD -d 198.51.100.{number}/32 -j DROP" for number in range(100)]
    saved = "\n".join(["*filter", ":FORWARD ACCEPT [0:0]", *lines, "COMMIT", ""])
    found = follow(Node(snapshot(legacy=saved)))
    monkeypatch.setattr(rules, "_LONG", 1000)
    assert found == follow(Node(snapshot(legacy=saved)))
    assert [step.place.number for step in found.deciders] == [8]
