"""The page shows hooks, programs and flows, and holds whatever rules contain."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address

import pytest

from flanneld_masq.model import Family, Settings
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flow_cases import Flow
from flanneld_masq.packet_path.flows import Judgement, flows
from flanneld_masq.packet_path.rules import Hook
from flanneld_masq.report.flow_data import flow_data
from flanneld_masq.report.hooks import MAX_STATIONS, Board
from flanneld_masq.report.page import Look, of_flow, of_result, page
from flanneld_masq.report.track import passed, track

from ..packet_path.nodes import ACCEPT, DROP, chain, follow, forwarding, match, meta, packet, rule, snapshot, table
from .hostile import ATTACK, LEASE, Form, hostile_node, page_of

FIREWALLD = [
    table("firewalld", "inet", 2),
    chain("filter_FORWARD", "forward", prio=10, family="inet", table="firewalld"),
    rule("filter_FORWARD", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}, family="inet", table="firewalld"),
]


def test_hostile_text_stays_text() -> None:
    content = page_of(hostile_node(), title=ATTACK)
    form = Form(content)
    assert "<script" not in content
    assert "<img" not in content
    assert "\x1b" not in content
    assert form.text.count("</code></style><script>") > 20


def test_the_page_needs_nothing_else() -> None:
    content = page_of(hostile_node())
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', content)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert not re.search(r"https?:|url\(|@import", content)


def test_hooks_stand_in_order_with_chains_and_programs() -> None:
    node = Node(snapshot([*FIREWALLD, table(), chain("early", "forward", prio=-5), chain("late", "forward", prio=300)]))
    board = Board(node, Family.IPV4)
    assert [column.hook for column in board.columns] == list(Hook)[1:-1], "none of a device"
    stations = board.column(Hook.FORWARD).stations
    assert [station.base.chain.name for station in stations] == ["early", "filter_FORWARD", "late"]
    assert [station.x for station in stations] == sorted(station.x for station in stations)
    assert stations[1].owners == ("firewalld",)
    text = Form(page_of(node)).text
    assert text.index("ip t early") < text.index("inet firewalld filter_FORWARD") < text.index("ip t late")


def test_a_crowded_hook_says_how_many_chains_are_left_out() -> None:
    chains = [chain(f"c{index}", "forward", prio=index) for index in range(MAX_STATIONS + 3)]
    node = Node(snapshot([table(), *chains, rule(f"c{MAX_STATIONS + 2}", DROP)]))
    assert Board(node, Family.IPV4).column(Hook.FORWARD).more == 3
    assert "and 3 more" in Form(page_of(node)).text


def test_each_flow_is_a_row_with_words_for_its_colour() -> None:
    node = Node(snapshot(FIREWALLD))
    found = flows(node, LEASE, Settings())
    form = Form(page(node, list(map(of_flow, found)), title="x"))
    rows = [attributes["class"] for name, attributes in form.tags if name == "summary"]
    assert len(rows) == len(found)
    assert {"row wrong", "row skipped"} <= set(rows)
    for sign, words in (("\u2717", "wrong"), ("\u2013", "skipped"), ("!", "stopped, as a firewall may intend")):
        assert f"{sign} {words}" in form.text


def test_a_wrong_flow_is_open_and_names_the_rule_that_decides() -> None:
    node = Node(snapshot(FIREWALLD))
    (found,) = (one for one in flows(node, LEASE, Settings()) if one.flow is Flow.POD_TO_REMOTE_POD)
    line = of_flow(found)
    assert line.look is Look.WRONG
    form = Form(page(node, [line], title="x"))
    assert ("details", {"open": None}) in form.tags
    assert "rejected by rule 1 of filter_FORWARD in inet firewalld, handle 7 firewalld \u2190 decides" in form.text
    assert "reject with icmpx admin-prohibited" in form.text


def test_a_flow_that_a_firewall_may_stop_is_not_called_wrong() -> None:
    found = flows(Node(snapshot(FIREWALLD)), LEASE, Settings())
    looks = {one.flow: of_flow(one).look for one in found if not one.answer}
    assert (looks[Flow.WORLD_TO_POD], looks[Flow.POD_TO_WORLD]) == (Look.INTENDED, Look.WRONG)


def test_one_packet() -> None:
    result = follow(forwarding([match(meta("mark"), 1), DROP], [ACCEPT]))
    line = of_result(result)
    assert (line.title, line.look, line.words) == ("10.244.1.5 to 198.51.100.7", Look.GOOD, "delivered")
    text = Form(page(forwarding([ACCEPT]), [line], title="x")).text
    assert "10.244.1.5:40000 -> 198.51.100.7:443 tcp, new, arrives by cni0" in text
    assert "delivered by eth0, unchanged" in text


@pytest.mark.parametrize(
    ("rules", "look"),
    [([[ACCEPT]], Look.GOOD), ([[DROP]], Look.WRONG), ([[{"xt": None}, DROP]], Look.MAY)],
)
def test_the_look_of_a_packet(rules: list[list[object]], look: Look) -> None:
    assert of_result(follow(forwarding(*rules))).look is look


@pytest.mark.parametrize(("hook", "device"), [("ingress", "cni0"), ("egress", "eth0")])
def test_hooks_of_devices_are_shown_where_they_have_chains(hook: str, device: str) -> None:
    objects = [table(family="netdev"), chain("f", hook, family="netdev", dev=device, policy="drop")]
    node = Node(snapshot(objects))
    result = follow(node)
    assert passed(result, result.outcomes[0])[-1] is Hook(hook)
    assert "netdev t" in Form(page(node, [of_result(result)], title="x")).text


def test_a_line_ends_where_the_packet_is_dropped() -> None:
    node = forwarding([DROP])
    result = follow(node)
    assert passed(result, result.outcomes[0]) == (Hook.PREROUTING, Hook.FORWARD)
    board = Board(node, Family.IPV4)
    end = board.column(Hook.FORWARD).stations[0].x
    form = Form(track(board, result))
    assert max(float(given["x2"] or 0) for name, given in form.tags if name == "line") == end
    assert "\u2715" in form.text


@pytest.mark.parametrize(
    ("given", "hooks"),
    [
        ({}, "prerouting forward postrouting"),
        ({"dst": "10.244.1.1"}, "prerouting input"),
        ({"src": "192.0.2.1", "iif": ""}, "output postrouting"),
    ],
)
def test_the_hooks_that_a_packet_passes(given: dict[str, str], hooks: str) -> None:
    result = follow(forwarding(), **given)
    assert result.outcomes[0].delivered
    assert " ".join(hook.value for hook in passed(result, result.outcomes[0])) == hooks


def test_a_packet_that_a_sysctl_stops_names_it() -> None:
    node = Node(snapshot([table(), chain("f", "forward")], sysctls={"net.ipv4.conf.cni0.forwarding": "0"}))
    text = Form(page(node, [of_result(node.evaluate(packet()))], title="x")).text
    assert "dropped by net.ipv4.conf.cni0.forwarding = 0" in text


def test_several_ends_are_several_lines() -> None:
    node = forwarding([{"xt": None}, DROP])
    board = Board(node, Family.IPV4)
    result = follow(node)
    assert len(result.outcomes) == 2
    groups = [given for name, given in Form(track(board, result)).tags if name == "g" and given["class"] == "may"]
    assert len(groups) >= 2


def test_of_many_ends_the_first_are_shown() -> None:
    node = forwarding([{"xt": None}, DROP])
    result = follow(node)
    result = replace(result, outcomes=result.outcomes * 4)
    text = Form(page(node, [of_result(result)], title="x")).text
    assert text.count("End: ") == 4
    assert "There are 4 more ends" in text


def test_without_a_flow_the_hooks_are_still_shown() -> None:
    text = Form(page(forwarding([DROP]), [], title="x")).text
    assert text.count("No flow is known") == 2
    assert "ip t f" in text


def test_flows_as_json_name_rule_and_owner() -> None:
    node = Node(snapshot(FIREWALLD))
    found = [flow_data(node, one) for one in flows(node, LEASE, Settings())]
    (one,) = (one for one in found if one["flow"] == "pod to remote pod")
    assert (one["judgement"], one["result"]["fate"]) == (Judgement.WRONG.value, "dropped")
    (cause,) = one["causes"]
    assert (cause["owner"], cause["table"], cause["rule"], cause["handle"]) == ("firewalld", "inet firewalld", 1, 7)
    assert ip_address(one["result"]["packet"]["dst"].split(":")[0]) in LEASE.ipv4.networks[0]  # type: ignore[union-attr]
    skipped = [one for one in found if one["judgement"] == "skipped"]
    assert skipped
    assert all(one["result"] is None for one in skipped)
