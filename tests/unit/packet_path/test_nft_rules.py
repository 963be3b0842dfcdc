"""Each construct of nft, on a node that drops what it matches."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from flanneld_masq.packet_path.evaluate import Fate, Node
from flanneld_masq.packet_path.packet import ICMP, UDP, CtState
from tests.unit.json_documents import JSON

from .nodes import (
    ACCEPT,
    DADDR,
    DROP,
    OWN,
    POD,
    REMOTE_POD,
    ROUTES4,
    ROUTES6,
    SADDR,
    WORLD,
    chain,
    ct,
    follow,
    forwarding,
    match,
    meta,
    payload,
    rule,
    snapshot,
    table,
)

TCP_DPORT, TH_DPORT = payload("tcp", "dport"), payload("th", "dport")
CIDR = {"prefix": {"addr": "10.244.0.0", "len": 16}}
SET: dict[str, dict[str, object]] = {
    "set": {"family": "ip", "name": "s", "table": "t", "type": "ipv4_addr", "handle": 2, "elem": [CIDR, "1.2.3.4"]}
}
PAIRS = {
    "set": {
        "family": "ip",
        "name": "s",
        "table": "t",
        "type": ["ipv4_addr", "inet_service"],
        "handle": 2,
        "elem": [{"elem": {"val": {"concat": [WORLD, 443]}, "comment": "x"}}, {"concat": [CIDR, {"range": [1, 9]}]}],
    }
}
HITS: list[Any] = [
    match(SADDR, CIDR),
    match(DADDR, CIDR, "!="),
    match(SADDR, {"range": ["10.244.1.1", "10.244.1.9"]}),
    match(SADDR, {"set": ["10.244.1.5", "1.2.3.4"]}),
    match(meta("iifname"), "cni0"),
    match(meta("iifname"), "cni*"),
    match(meta("oifname"), {"set": ["eth0", "eth1"]}),
    match(meta("oif"), "eth0"),
    match(payload("ether", "type"), "ip"),
    match(meta("iifgroup"), "default"),
    match(meta("iifgroup"), {"set": [0, 9]}),
    match(meta("oifgroup"), {"set": [3, {"range": [5, 9]}]}),
    match(meta("iiftype"), "ether"),
    match(meta("oiftype"), 65534),
    match(payload("ip", "version"), 4),
    match(meta("l4proto"), "tcp"),
    match(meta("l4proto"), {"set": ["udp", "tcp"]}),
    match(payload("ip", "protocol"), 6),
    match(TCP_DPORT, 443),
    match(TCP_DPORT, {"set": [80, {"range": [400, 500]}]}),
    match(TCP_DPORT, 400, ">="),
    match(TCP_DPORT, 444, "<"),
    match(TH_DPORT, 443),
    match(ct("state"), "new", "in"),
    match(ct("state"), ["established", "new"], "in"),
    match(ct("state"), {"set": ["established", "new"]}),
    match(ct("state"), ["invalid", "established"], "!"),
    match(ct("direction"), "original"),
    match(meta("mark"), 0),
    match({"&": [meta("mark"), 0x4000]}, 0x4000, "!="),
    match({"&": [payload("tcp", "flags"), ["syn", "ack"]]}, "syn"),
    match({"fib": {"result": "type", "flags": ["daddr"]}}, "unicast"),
    match({"fib": {"result": "type", "flags": "daddr"}}, "local", "!="),
    match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, True),
    match({"fib": {"result": "oif", "flags": ["saddr"]}}, False, "!="),
    match({"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}, False, "!="),
    match({"&": [payload("ip", "frag-off"), 0x1FFF]}, 0),
    match(meta("nfproto"), "ipv4"),
    match(meta("protocol"), "ip"),
    match(meta("pkttype"), "host"),
    match({"concat": [SADDR, TCP_DPORT]}, {"concat": ["10.244.1.5", 443]}),
    match({"concat": [DADDR, TH_DPORT]}, "@s"),
    {"counter": {"packets": 0, "bytes": 0}},
    {"log": {"prefix": "x"}},
    {"mangle": {"key": ct("zone"), "value": 0}},
]
MISSES: list[Any] = [
    match(SADDR, "10.244.1.6"),
    match(meta("iifname"), "cni"),
    match(meta("iifname"), {"set": ["eth0"]}),
    match(payload("udp", "dport"), 443),
    match(payload("udp", "dport"), 53, "!="),
    match(payload("ip6", "saddr"), "fd00::1", "!="),
    match(payload("ip6", "version"), 6),
    match(payload("ip", "version"), 4, "!="),
    match(meta("iiftype"), "loopback"),
    match(payload("icmp", "type"), "echo-request"),
    match(payload("arp", "operation"), "request"),
    match(meta("protocol"), "arp"),
    match(payload("ether", "type"), "arp"),
    match(payload("ether", "type"), "ip6"),
    match(ct("state"), ["established", "related"], "in"),
    match(ct("state"), "new", "!"),
    match(ct("status"), "dnat", "in"),
    match(ct("mark"), 1),
    match(meta("mark"), 0, "!="),
    match(meta("skuid"), 0),
    match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False),
    match({"fib": {"result": "type", "flags": ["saddr"]}}, "local"),
    match({"concat": [SADDR, TCP_DPORT]}, {"set": [{"concat": ["10.244.1.5", 80]}]}),
]
UNSURE: list[Any] = [
    {"limit": {"rate": 5, "per": "second"}},
    {"quota": {"val": 5}},
    {"ct count": {"val": 5}},
    match(meta("hour"), "12:00"),
    match(payload("ip", "ttl"), 5),
    match(payload("ip", "frag-off"), 0, "!="),
    match(payload("ether", "saddr"), "00:11:22:33:44:55"),
    match({"numgen": {"mode": "random", "mod": 2, "offset": 0}}, 0),
    match({"numgen": {"mode": "random", "mod": 1000, "offset": 0}}, {"range": [0, 499]}),
    {"xt": {"type": "match", "name": "statistic"}},
    {"set": {"op": "update", "elem": SADDR, "set": "@s", "stmt": [{"limit": {"rate": 5, "per": "minute"}}]}},
    {"something": {"new": 1}},
    {"mangle": {"key": ct("zone"), "value": 5}},
    {"mangle": {"key": ct("zone"), "value": {"map": {"key": meta("iifname"), "data": {"set": [["cni0", 5]]}}}}},
    {"mangle": {"key": {"ct": {"key": "zone", "dir": "original"}}, "value": 7}},
    {},
    "reset tcp option sack-perm",
    "jump {",
    None,
    [],
]


def of(*expressions: Any, beside: Any = PAIRS) -> Node:
    return forwarding([*expressions, DROP], beside=[beside])


@pytest.mark.parametrize("expression", HITS, ids=str)
def test_a_match_that_holds_drops(expression: Any) -> None:
    assert follow(of(expression)).fate is Fate.DROPPED


@pytest.mark.parametrize("expression", MISSES, ids=str)
def test_a_match_that_fails_lets_pass(expression: Any) -> None:
    assert follow(of(expression)).fate is Fate.DELIVERED


@pytest.mark.parametrize("expression", UNSURE, ids=str)
def test_what_cannot_be_evaluated_may_drop(expression: Any) -> None:
    result = follow(of(expression))
    assert result.fate is Fate.MAY
    assert not result.certain
    assert result.deciders


@pytest.mark.parametrize(
    ("content", "fate"),
    [
        (None, Fate.DROPPED),
        ({"num": 5}, Fate.DROPPED),
        ({"num": {"range": [5, 9]}, "flags": "fanout"}, Fate.DROPPED),
        ({"num": {"range": [3, 9]}}, Fate.MAY),
        ({"num": 4, "flags": ["bypass"]}, Fate.MAY),
        ({"num": 5, "flags": ["bypass", "fanout"]}, Fate.DELIVERED),
        ({"num": 5, "flags": "bypass"}, Fate.DELIVERED),
        ({"num": {"numgen": {"mode": "inc", "mod": 2, "offset": 0}}}, Fate.MAY),
    ],
)
def test_a_queue_that_no_program_reads_loses_packets(content: Any, fate: Fate) -> None:
    objects = [table(), chain("f", "forward"), rule("f", {"queue": content})]
    queues = "    4   1234     0 2 65531     0     0        7  1\n"
    assert follow(Node(snapshot(objects, queues=queues))).fate is fate
    assert follow(Node(snapshot(objects))).fate is Fate.MAY


def test_named_set_of_networks() -> None:
    node = forwarding([match(SADDR, "@s"), DROP], beside=[SET])
    assert follow(node).fate is Fate.DROPPED
    assert follow(node, src="10.245.0.1").fate is Fate.DELIVERED


def test_set_that_traffic_changes_may_hold() -> None:
    changing = {"set": {**SET["set"], "flags": ["timeout"]}}
    node = forwarding([match(SADDR, "@s"), DROP], beside=[changing])
    assert follow(node).fate is Fate.MAY
    assert follow(node, src="10.245.0.1").fate is Fate.MAY


def test_set_that_a_rule_updates_may_hold() -> None:
    update = {"set": {"op": "add", "elem": SADDR, "set": "@s"}}
    node = forwarding([update, ACCEPT], [match(SADDR, "@s"), DROP], beside=[SET, chain("f2", "forward", prio=5)])
    objects: list[dict[str, Any]] = [
        table(),
        SET,
        chain("f", "forward"),
        rule("f", match(SADDR, "@s"), DROP),
        rule("f", update),
    ]
    assert follow(node).fate is Fate.DELIVERED  # the update itself always succeeds
    assert follow(Node(snapshot(objects))).fate is Fate.MAY


def vmap(key: object, *pairs: object) -> dict[str, object]:
    return {"vmap": {"key": key, "data": {"set": list(pairs)}}}


@pytest.mark.parametrize(
    ("lookup", "fate"),
    [
        (vmap(ct("state"), ["established", ACCEPT], ["new", DROP]), Fate.DROPPED),
        (vmap(ct("state"), ["established", DROP]), Fate.DELIVERED),
        (vmap(SADDR, [CIDR, {"jump": {"target": "c"}}]), Fate.DROPPED),
        (vmap(SADDR, [CIDR, {"goto": {"target": "c"}}]), Fate.DROPPED),
        (vmap(SADDR, ["1.2.3.4", ACCEPT], ["*", DROP]), Fate.DROPPED),
        (vmap(meta("iifname"), ["cni*", {"return": None}]), Fate.DELIVERED),
        (vmap(TCP_DPORT, [{"range": [1, 500]}, DROP]), Fate.DROPPED),
        (vmap({"concat": [DADDR, TH_DPORT]}, [{"concat": [WORLD, 443]}, DROP]), Fate.DROPPED),
        (vmap({"numgen": {"mode": "inc", "mod": 2, "offset": 0}}, [0, DROP], [1, DROP]), Fate.DROPPED),
        (vmap({"numgen": {"mode": "inc", "mod": 2, "offset": 0}}, [0, DROP]), Fate.MAY),
        (vmap(payload("ether", "saddr"), ["00:11:22:33:44:55", DROP]), Fate.MAY),
        (vmap(payload("ip6", "saddr"), ["fd00::1", DROP]), Fate.DELIVERED),
    ],
    ids=str,
)
def test_verdict_maps(lookup: dict[str, object], fate: Fate) -> None:
    node = forwarding([lookup], beside=[chain("c"), rule("c", DROP)])
    assert follow(node).fate is fate


def test_named_verdict_map() -> None:
    named = {
        "map": {
            "family": "ip",
            "name": "m",
            "table": "t",
            "type": "ipv4_addr",
            "map": "verdict",
            "elem": [[CIDR, DROP]],
        }
    }
    node = forwarding([{"vmap": {"key": SADDR, "data": "@m"}}], beside=[named])
    assert follow(node).fate is Fate.DROPPED
    assert follow(node, src="1.2.3.4").fate is Fate.DELIVERED


def mark(value: object) -> dict[str, object]:
    return {"mangle": {"key": meta("mark"), "value": value}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([mark(5)], 5),
        ([mark(5), mark({"|": [meta("mark"), 0x4000]})], 0x4005),
        ([mark(7), mark({"&": [meta("mark"), 5]})], 5),
        ([mark(7), mark({"^": [meta("mark"), 5]})], 2),
        ([mark(1), mark({"<<": [meta("mark"), 4]})], 16),
        ([{"mangle": {"key": ct("mark"), "value": 9}}, mark(ct("mark"))], 9),
        ([mark({"map": {"key": SADDR, "data": {"set": [["10.244.1.5", 3]]}}})], 3),
        ([mark({"numgen": {"mode": "inc", "mod": 2, "offset": 0}})], None),
        ([mark({"hash": {}})], None),
    ],
    ids=str,
)
def test_marks(changes: list[object], expected: int | None) -> None:
    (outcome,) = follow(forwarding(changes)).outcomes
    assert outcome.mark == expected


def test_a_mark_that_reads_what_is_not_there_ends_the_rule() -> None:
    result = follow(forwarding([mark({"map": {"key": SADDR, "data": {"set": [["1.2.3.4", 3]]}}}), DROP]))
    assert result.fate is Fate.DELIVERED


def test_jump_return_goto_and_policy() -> None:
    jump, goto, back = {"jump": {"target": "c"}}, {"goto": {"target": "c"}}, {"return": None}
    helper = [chain("c"), rule("c", match(TCP_DPORT, 443), back), rule("c", DROP)]
    assert follow(forwarding([jump], [DROP], beside=helper)).fate is Fate.DROPPED
    assert follow(forwarding([goto], [DROP], beside=helper)).fate is Fate.DELIVERED
    assert follow(forwarding([goto], policy="drop", beside=helper)).fate is Fate.DROPPED
    assert follow(forwarding([jump], beside=helper), dport=80).fate is Fate.DROPPED


def inline(*lines: str, verb: str = "jump", end: str = "}") -> str:
    """Return a statement as nft prints it, for which it has no JSON."""
    return verb + " {\n" + "".join(f"\t\t\t{line}\n" for line in lines) + "\t\t" + end


@pytest.mark.parametrize(
    "test",
    [
        "ip saddr 10.244.0.0/16",
        "ip saddr != 10.0.0.0/16 ip daddr 198.51.100.7",
        "ip saddr { 10.2.0.0/16, 10.244.1.5 }",
        "ip daddr 198.51.100.1-198.51.100.9",
        "ip saddr @s",
        "meta l4proto { tcp, udp } th dport 443",
        "tcp dport { 80, 400-500 } counter packets 0 bytes 0",
        "tcp dport != 53",
        "tcp dport >= 400",
        "ct state established,new",
        "ct state { established, new }",
        'iifname "cni0" oifname != "cni*"',
        'iifname { "a,b", "cni0" }',
        "ip protocol tcp",
        "meta mark 0x00000000",
        "meta pkttype host",
        'log prefix "drop " level warn',
        'counter name "c"',
        "",
    ],
)
def test_rules_of_an_anonymous_chain(test: str) -> None:
    for end in ("drop", 'drop comment "no"', "reject with icmp admin-prohibited", "goto c"):
        node = forwarding([inline(f"{test} {end}".strip())], beside=[SET, chain("c"), rule("c", DROP)])
        assert follow(node).fate is Fate.DROPPED


@pytest.mark.parametrize("test", ["ip saddr 10.9.0.0/16", "tcp dport { 80, 8080 }", "ct state invalid", "udp sport 5"])
def test_rules_of_an_anonymous_chain_that_miss(test: str) -> None:
    assert follow(forwarding([inline(f"{test} drop")])).fate is Fate.DELIVERED


@pytest.mark.parametrize(
    ("line", "fate"),
    [
        ("limit rate 1/second counter packets 0 bytes 0 drop", Fate.MAY),
        ("ip saddr . tcp dport { 10.244.1.5 . 443 } drop", Fate.MAY),
        ("tcp flags syn / fin,syn drop", Fate.MAY),
        ("meta mark & 0x00000010 == 0x00000010 drop", Fate.MAY),
        ("fib daddr type unicast drop", Fate.MAY),
        ('ip saddr { 10.244.1.5 comment "x" } drop', Fate.MAY),
        ("ct state vmap { new : drop }", Fate.MAY),
        ("meta mark set meta mark & 0x000000ff drop", Fate.MAY),
        ("queue to 5", Fate.MAY),
        ("ip saddr 1.2.3.4 jump {\n\t\tdrop\n\t}", Fate.MAY),
        ('log prefix "x', Fate.MAY),
        ("limit rate 1/second accept", Fate.DELIVERED),
    ],
)
def test_what_an_anonymous_chain_may_do(line: str, fate: Fate) -> None:
    assert follow(forwarding([inline(line)])).fate is fate


def test_an_anonymous_chain_that_nft_cut_off_may_drop() -> None:
    """It prints 1023 bytes of the text."""
    node = forwarding([inline("ip saddr 1.2.3.4 drop", end="\tip saddr 10.24")])
    assert follow(node).fate is Fate.MAY
    assert follow(node, src="1.2.3.4").fate is Fate.DROPPED


def test_jump_and_goto_of_an_anonymous_chain() -> None:
    assert follow(forwarding([inline("meta mark set 0x1", "accept")], [DROP])).fate is Fate.DELIVERED
    assert follow(forwarding([inline("meta mark set 0x1")], [match(meta("mark"), 1), DROP])).fate is Fate.DROPPED
    assert follow(forwarding([inline("return")], [DROP])).fate is Fate.DROPPED
    assert follow(forwarding([inline("return", verb="goto")], [DROP])).fate is Fate.DELIVERED
    assert follow(forwarding([inline()], [DROP])).fate is Fate.DROPPED


def test_an_anonymous_chain_has_the_place_of_its_rule() -> None:
    node = forwarding([match(meta("iifname"), "cni0"), inline("ip daddr 10.0.0.0/8 accept", "drop")])
    (step,) = follow(node).deciders
    assert (step.place.chain, step.place.number, step.place.handle) == ("f", 1, 7)
    assert step.place.text == "iifname cni0 jump { drop }"
    (jump,) = step.jumps
    assert jump.text == "iifname cni0 jump { ip daddr 10.0.0.0/8 accept; drop }"


@given(JSON)
def test_a_statement_in_any_form_leaves_the_other_rules(statement: Any) -> None:
    result = follow(forwarding([statement], [DROP]))
    assert result.fate in (Fate.MAY, Fate.DROPPED)


@given(JSON)
def test_statements_in_any_form_leave_the_other_rules(statements: Any) -> None:
    odd = rule("f")
    odd["rule"]["expr"] = statements  # type: ignore[index]
    objects = [table(), chain("f", "forward"), odd, rule("f", DROP)]
    assert follow(Node(snapshot(objects))).fate in (Fate.MAY, Fate.DROPPED)


def test_the_deciding_rule_has_its_place_and_the_jumps_to_it() -> None:
    helper = [
        chain("c"),
        rule("c", {"counter": {}}),
        rule("c", match(TCP_DPORT, 443), {"reject": None}, handle=12, comment="no"),
    ]
    (outcome,) = follow(forwarding([{"jump": {"target": "c"}}], beside=helper)).outcomes
    (step,) = outcome.deciders
    place = step.place
    assert (place.table, place.chain, place.number, place.handle, place.comment) == ("ip t", "c", 2, 12, "no")
    assert place.text == "tcp dport 443 reject"
    assert [jump.text for jump in step.jumps] == ["jump c"]
    assert str(place) == "rule 2 of c in ip t: tcp dport 443 reject"


def test_a_policy_that_drops_is_the_decider() -> None:
    (step,) = follow(forwarding(policy="drop")).deciders
    assert str(step.place) == "f in ip t: policy drop"


def test_icmp_and_udp() -> None:
    ping = of(match(payload("icmp", "type"), "echo-request"))
    assert follow(ping, proto=ICMP, sport=None, dport=None).fate is Fate.DROPPED
    ports = of(match(payload("udp", "dport"), {"set": [53, {"range": [100, 200]}]}))
    assert follow(ports, proto=UDP, dport=53).fate is Fate.DROPPED


def test_established_packets_and_those_out_of_state() -> None:
    node = of(match(ct("state"), "invalid", "in"))
    assert follow(node, state=CtState.INVALID).fate is Fate.DROPPED
    assert follow(node, state=CtState.ESTABLISHED).fate is Fate.DELIVERED


LOCAL = [{"type": "local", "dst": one, "dev": device, "table": "local"} for one, device in ((OWN, "eth0"),)]
BROADCAST = {"type": "broadcast", "dst": "192.0.2.255", "dev": "eth0", "table": "local"}


def types_at(flags: list[str], *types: str, dst: str = OWN, iif: str = "cni0", src: str = POD) -> Fate:
    """Return the end of a packet that a rule drops unless its address is of a type, for a device."""
    test = match({"fib": {"result": "type", "flags": flags}}, {"set": list(types)}, "!=")
    objects = [table(family="inet"), chain("p", "prerouting", family="inet"), rule("p", test, DROP, family="inet")]
    return follow(Node(snapshot(objects, routes=[*LOCAL, BROADCAST, *ROUTES4])), dst=dst, iif=iif, src=src).fate


def test_an_address_of_another_device_is_not_local_at_this_one() -> None:
    at = ["daddr", "iif"]
    assert types_at(at, "local") is Fate.DROPPED
    assert types_at(at, "local", iif="eth0", src=WORLD) is Fate.DELIVERED
    assert types_at(at, "unicast") is Fate.DELIVERED
    assert types_at(at, "unicast", dst=WORLD) is Fate.DELIVERED
    assert types_at(at, "local", "broadcast", "multicast", dst=WORLD) is Fate.DROPPED
    assert types_at(at, "broadcast", dst="192.0.2.255", iif="eth0", src=WORLD) is Fate.DELIVERED
    assert types_at(at, "broadcast", dst="192.0.2.255") is Fate.DROPPED
    assert types_at(["saddr", "iif"], "unicast") is Fate.DELIVERED


def test_an_ipv6_address_of_another_device_is_not_local_at_this_one() -> None:
    pod, gateway, own = "fd00:10:244:1::5", "fd00:10:244:1::1", "2001:db8:1::1"
    assert types_at(["daddr", "iif"], "local", src=pod, dst=gateway) is Fate.DELIVERED
    assert types_at(["daddr", "iif"], "local", src=pod, dst=own) is Fate.DROPPED
    assert types_at(["daddr", "iif"], "unicast", src=pod, dst=own) is Fate.DELIVERED


def test_an_address_that_is_anycast_elsewhere_has_no_certain_type() -> None:
    """A subnet's first address is anycast where the node forwards; flannel's device has it as its own."""
    both = [{"type": "anycast", "dst": "fd00:10:244:1::", "dev": "cni0", "table": "local"}, *ROUTES6]
    rules = [match({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local"), DROP]
    objects = [table(family="inet"), chain("p", "prerouting", family="inet"), rule("p", *rules, family="inet")]
    node = Node(snapshot(objects, routes6=both))
    ends = {"src": "fd00:10:244:2::5", "dst": "fd00:10:244:1::"}
    assert follow(node, iif="flannel.1", **ends).fate is Fate.MAY
    assert follow(node, iif="cni0", **ends).fate is Fate.DELIVERED


def test_a_chain_that_jumps_to_itself_is_given_up() -> None:
    loop = [chain("c"), rule("c", {"jump": {"target": "c"}})]
    result = follow(forwarding([{"jump": {"target": "c"}}], beside=loop))
    assert result.fate is Fate.MAY
    assert result.why_not


def test_many_uncertain_rules_join_again() -> None:
    rules = [[{"limit": {"rate": 1, "per": "second"}}, {"counter": {}}] for _ in range(500)]
    assert follow(forwarding(*rules)).fate is Fate.DELIVERED


def test_text_of_other_programs_is_printable() -> None:
    node = forwarding([match(meta("iifname"), "cni0\x1b[1m"), DROP], [DROP], beside=[chain("c")])
    (step,) = follow(node).deciders
    assert step.place.number == 2
    assert "\x1b" not in str(node.ruleset.bases[0].chain.rule(0).place)


def test_a_type_of_device_that_ip_names_otherwise_is_not_known() -> None:
    node = forwarding([match(meta("oiftype"), "ether"), DROP])
    assert follow(node, dst=REMOTE_POD).fate is Fate.MAY


def test_destination_is_of_the_node() -> None:
    objects = [table(), chain("i", "input"), rule("i", match(TCP_DPORT, 443), DROP)]
    assert follow(Node(snapshot(objects)), dst=OWN).fate is Fate.DROPPED
    assert follow(Node(snapshot(objects)), dst=REMOTE_POD).fate is Fate.DELIVERED
