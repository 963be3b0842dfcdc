"""`explain` follows a packet through the node as it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from flanneld_masq.cli.explain_node import Followed, packet_of
from flanneld_masq.errors import ConfigError, MasqError
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.packet import ICMP, TCP

from ..packet_path.nodes import DROP, ROUTES4, chain, match, meta, payload, rule, snapshot, table
from .program import USER, Program

LIMIT = {"limit": {"rate": 5, "burst": 5, "per": "second"}}
OWN = [
    table("flanneld-masq"),
    chain("p", "postrouting", "nat", prio=100, table="flanneld-masq"),
    rule("p", match(meta("oifname"), "eth0"), {"masquerade": None}, table="flanneld-masq"),
]
DOCKER = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE\nCOMMIT\n"


def options(src: str = "10.244.1.5", dst: str = "8.8.8.8", **more: Any) -> argparse.Namespace:
    defaults = {"proto": TCP, "dport": 0, "iif": "", "mark": 0}
    return argparse.Namespace(src=ip_address(src), dst=ip_address(dst), **{**defaults, **more})


def followed(objects: Sequence[Any] = (), *, legacy: str = "", **more: Any) -> Followed:
    node = Node(snapshot([*OWN, *objects], legacy=legacy))
    return Followed(node, node.evaluate(packet_of(options(**more), node)))


def forward(*expressions: object) -> list[Any]:
    return [table(), chain("f", "forward"), rule("f", *expressions, DROP)]


def test_a_packet_of_a_pod_comes_by_the_device_of_the_pods() -> None:
    found = followed(dport=443)
    assert (found.description, found.fate) == (", tcp port 443, from cni0", "masqueraded as 192.0.2.1")
    assert list(found.lines(True)) == ["flanneld-masq masquerades it, and no other program's rule decides"]


def test_a_packet_of_the_node_comes_by_none() -> None:
    found = followed(src="192.0.2.1", proto=ICMP)
    assert (found.description, found.fate) == (", icmp, of this node", "keeps its source address")


def test_a_foreign_rule_that_masquerades_is_named() -> None:
    found = followed(legacy=DOCKER, dst="10.244.2.5")
    assert found.fate == "masqueraded as 10.244.1.0"
    assert list(found.lines(False)) == [
        "flanneld-masq leaves it alone, but rule 1 of POSTROUTING in legacy ip nat (docker) masquerades it: "
        "-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE"
    ]


def test_a_rule_that_drops_is_named() -> None:
    found = followed(forward())
    assert found.fate == "dropped"
    assert list(found.lines(True)) == ["flanneld-masq masquerades it, but rule 1 of f in ip t drops it: drop"]
    data: dict[str, Any] = found.as_data()
    assert (data["fate"], data["certain"], data["arrives_from"]) == ("dropped", True, None)
    (decider,) = data["decided_by"]
    assert (decider["table"], decider["chain"], decider["number"], decider["handle"]) == ("ip t", "f", 1, 7)


def test_what_cannot_be_evaluated_is_not_certain() -> None:
    found = followed(forward(LIMIT))
    assert found.fate == "it is not certain that it arrives"
    (line,) = found.lines(True)
    assert "rule 1 of f in ip t may drop it" in line


def test_a_port_that_is_not_named_is_not_certain() -> None:
    only = forward(match(payload("tcp", "dport"), 25))
    assert not followed(only).result.certain
    assert followed(only, dport=25).fate == "dropped"
    assert followed(only, dport=443).fate == "masqueraded as 192.0.2.1"


def test_rules_of_ours_that_are_missing() -> None:
    node = Node(snapshot())
    (line,) = Followed(node, node.evaluate(packet_of(options(), node))).lines(True)
    assert line.endswith("but its rules are not in force: see `flanneld-masq plan`")


def test_an_interface_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="this node has no interface nope"):
        packet_of(options(iif="nope"), Node(snapshot()))


def test_a_source_without_a_route_needs_an_interface() -> None:
    node = Node(snapshot(routes=[*ROUTES4, {"dst": "198.51.100.0/24", "type": "unreachable"}]))
    with pytest.raises(MasqError, match="name the interface by which its packets come with --from"):
        packet_of(options(src="198.51.100.7"), node)


def test_an_ordinary_user_gets_the_answer_of_the_policy(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: USER)
    flow = "--src 10.244.1.5 --dst 1.1.1.1"
    text, ours = masq(f"explain {flow}"), masq(f"explain --ours {flow}")
    assert text.status == ours.status == 0
    first, note, *rest = text.out.splitlines()
    assert [first, *rest] == ours.out.splitlines()
    assert note.strip().endswith(f"this is user {USER}, not root")
    data = masq(f"explain --json {flow}").json
    assert (data.pop("node"), data.pop("node_unread")) == (None, f"this is user {USER}, not root")
    assert data == masq(f"explain --ours --json {flow}").json


def test_html_needs_the_rules_of_the_node(masq: Program) -> None:
    done = masq(f"explain --ours --src 10.244.1.5 --dst 1.1.1.1 --html {masq.directory}/page.html")
    assert (done.status, done.out) == (1, "")
    assert "they are not known: --ours was given" in done.err


def test_a_port_of_a_protocol_without_ports_is_refused(masq: Program) -> None:
    done = masq("explain --src 10.244.1.5 --dst 1.1.1.1 --proto icmp --dport 80")
    assert (done.status, "only tcp, udp and sctp have ports" in done.err) == (2, True)
