"""The order of hooks and chains, NAT, routing and sysctls."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from flanneld_masq.errors import SnapshotError
from flanneld_masq.packet_path.evaluate import Fate, Node, Result, evaluate
from flanneld_masq.packet_path.packet import Connection, CtState, Endpoint
from flanneld_masq.packet_path.snapshot import Snapshot, from_json, to_json

from .nodes import (
    ACCEPT,
    DADDR,
    DROP,
    OWN,
    POD,
    REMOTE_POD,
    ROUTES4,
    RULES,
    SADDR,
    WORLD,
    chain,
    ct,
    follow,
    match,
    meta,
    packet,
    rule,
    snapshot,
    table,
)

MARK1 = {"mangle": {"key": meta("mark"), "value": 1}}
DNAT = {"dnat": {"addr": REMOTE_POD}}
MASQUERADE = {"masquerade": None}


def node(*objects: dict[str, object]) -> Node:
    return Node(snapshot([table(), *objects]))


def test_accept_ends_only_its_own_base_chain() -> None:
    both = node(chain("a", "forward", prio=0), rule("a", ACCEPT), chain("b", "forward", prio=10), rule("b", DROP))
    assert follow(both).fate is Fate.DROPPED


def test_chains_run_in_the_order_of_priorities() -> None:
    later = [chain("b", "forward", prio=10), rule("b", match(meta("mark"), 1), DROP)]
    marks = [rule("a", MARK1)]
    assert follow(node(*later, chain("a", "forward", prio=0), *marks)).fate is Fate.DROPPED
    assert follow(node(*later, chain("a", "forward", prio=20), *marks)).fate is Fate.DELIVERED


def test_of_one_table_the_chain_that_was_made_last_runs_first() -> None:
    first = chain("a", "forward", handle=1)
    second = chain("b", "forward", handle=2)
    assert follow(node(first, rule("a", match(meta("mark"), 1), DROP), second, rule("b", MARK1))).fate is Fate.DROPPED
    assert follow(node(first, rule("a", MARK1), second, rule("b", match(meta("mark"), 1), DROP))).fate is Fate.DELIVERED


def test_tables_of_one_priority_are_tried_in_both_orders() -> None:
    objects = [
        table("t", handle=1),
        chain("a", "forward"),
        rule("a", MARK1),
        table("u", handle=2),
        chain("b", "forward", table="u"),
        rule("b", match(meta("mark"), 1), DROP, table="u"),
    ]
    assert follow(Node(snapshot(objects))).fate is Fate.MAY


def test_conntrack_has_not_seen_a_packet_before_its_priority() -> None:
    early = node(chain("a", "prerouting", prio=-300), rule("a", match(ct("state"), "invalid", "in"), DROP))
    late = node(chain("a", "prerouting", prio=-150), rule("a", match(ct("state"), "new", "in"), DROP))
    assert follow(early).fate is Fate.DROPPED
    assert follow(late).fate is Fate.DROPPED


def test_nat_runs_at_its_own_priority_whatever_the_chain_says() -> None:
    objects = [
        chain("n", "prerouting", "nat", prio=50),
        rule("n", DNAT),
        chain("a", "prerouting", prio=0),
        rule("a", match(DADDR, REMOTE_POD), DROP),
    ]
    assert follow(node(*objects)).fate is Fate.DROPPED


def test_dnat_changes_the_route() -> None:
    (outcome,) = follow(node(chain("n", "prerouting", "nat", prio=-100), rule("n", DNAT))).outcomes
    assert (str(outcome.dst), outcome.device) == (f"{REMOTE_POD}:443", "flannel.1")


def test_the_first_rule_that_translates_decides() -> None:
    objects = [
        chain("p", "postrouting", "nat", prio=90),
        rule("p", {"snat": {"addr": "203.0.113.1"}}),
        chain("q", "postrouting", "nat", prio=100),
        rule("q", MASQUERADE),
    ]
    (outcome,) = follow(node(*objects)).outcomes
    assert str(outcome.src) == "203.0.113.1:40000"


def test_accept_of_a_nat_chain_leaves_it_to_the_next() -> None:
    objects = [
        chain("p", "postrouting", "nat", prio=90),
        rule("p", ACCEPT),
        chain("q", "postrouting", "nat", prio=100),
        rule("q", MASQUERADE),
    ]
    result = follow(node(*objects))
    assert result.source == ip_address(OWN)
    assert result.certain


def test_masquerade_takes_the_address_of_the_device() -> None:
    masquerading = node(chain("p", "postrouting", "nat", prio=100), rule("p", MASQUERADE))
    assert follow(masquerading, dst=REMOTE_POD).source == ip_address("10.244.1.0")
    assert follow(masquerading).source == ip_address(OWN)


def translating(hook: str, **nat: object) -> Node:
    kind = "dnat" if hook == "prerouting" else "snat"
    return node(chain("n", hook, "nat"), rule("n", {kind: nat}))


def test_nat_of_ranges_maps_and_prefixes() -> None:
    drawn = {
        "key": {"numgen": {"mode": "random", "mod": 2, "offset": 0}},
        "data": {"set": [[0, REMOTE_POD], [1, WORLD]]},
    }
    found = follow(translating("prerouting", addr={"map": drawn}))
    assert {str(one.dst.address) for one in found.outcomes} == {REMOTE_POD, WORLD}
    found = follow(translating("postrouting", addr={"range": ["1.1.1.1", "1.1.1.2"]}))
    assert {str(one.src.address) for one in found.outcomes} == {"1.1.1.1", "1.1.1.2"}
    networks = [{"prefix": {"addr": one, "len": 24}} for one in ("10.244.1.0", "1.1.1.0")]
    prefix = {"map": {"key": SADDR, "data": {"set": [networks]}}}
    assert follow(translating("postrouting", addr=prefix, type_flags="prefix")).source == ip_address("1.1.1.5")


def test_a_nat_map_without_the_key_lets_the_next_rule_decide() -> None:
    lookup = {"map": {"key": SADDR, "data": {"set": [["1.2.3.4", REMOTE_POD]]}}}
    found = follow(node(chain("n", "postrouting", "nat"), rule("n", {"snat": {"addr": lookup}}), rule("n", MASQUERADE)))
    assert found.source == ip_address(OWN)


def test_a_target_that_is_not_known_leaves_the_source_open() -> None:
    found = follow(node(chain("n", "postrouting", "nat"), rule("n", {"snat": {"addr": {"odd": 1}}})))
    assert found.fate is Fate.DELIVERED
    assert found.source is None
    assert not found.certain


def test_answers_are_translated_back() -> None:
    connection = Connection(
        Endpoint(ip_address(POD), 40000), Endpoint(ip_address("10.96.0.1"), 80),
        Endpoint(ip_address(OWN), 51000), Endpoint(ip_address(WORLD), 8080),
    )  # fmt: skip
    answer = packet(
        src=WORLD, dst=OWN, iif="eth0", sport=8080, dport=51000,
        state=CtState.ESTABLISHED, reply=True, connection=connection,
    )  # fmt: skip
    forward = node(chain("f", "forward", policy="drop"), rule("f", match(ct("status"), "dnat", "in"), ACCEPT))
    (outcome,) = forward.evaluate(answer).outcomes
    assert (str(outcome.src), str(outcome.dst), outcome.device) == ("10.96.0.1:80", f"{POD}:40000", "cni0")


def test_a_packet_of_the_node_passes_output_and_is_routed_again() -> None:
    objects = [chain("o", "output", "route", prio=-150), rule("o", match(DADDR, WORLD), MARK1)]
    rules = [{"priority": 100, "src": "all", "fwmark": "0x1", "table": "9"}, *RULES]
    routes = [*ROUTES4, {"dst": "default", "dev": "flannel.1", "table": "9"}]
    (outcome,) = (
        Node(snapshot([table(), *objects], rules=rules, routes=routes)).evaluate(packet(src=OWN, iif="")).outcomes
    )
    assert outcome.device == "flannel.1"


def test_a_packet_to_the_node_itself_comes_back_by_lo() -> None:
    objects = [chain("i", "input"), rule("i", match(meta("iifname"), "lo"), DROP)]
    assert node(*objects).evaluate(packet(src=OWN, dst=OWN, iif="")).fate is Fate.DROPPED


def test_both_families_have_their_own_tables() -> None:
    world = match({"payload": {"protocol": "ip6", "field": "daddr"}}, {"prefix": {"addr": "2000::", "len": 3}})
    inet: dict[str, Any] = {"family": "inet"}
    objects = [table(family="inet"), chain("f", "forward", **inet), rule("f", world, DROP, **inet)]
    both = Node(snapshot(objects))
    assert follow(both).fate is Fate.DELIVERED
    assert follow(both, src="fd00:10:244:1::5", dst="2001:db8:2::7").fate is Fate.DROPPED
    only = node(chain("f", "forward", policy="drop"))
    assert follow(only, src="fd00:10:244:1::5", dst="2001:db8:2::7").fate is Fate.DELIVERED


@pytest.mark.parametrize("flags", ["dormant", ["dormant"]])
def test_a_dormant_table_does_nothing(flags: object) -> None:
    objects = [table(flags=flags), chain("f", "forward", policy="drop")]
    assert follow(Node(snapshot(objects))).fate is Fate.DELIVERED


@pytest.mark.parametrize(("family", "hook"), [("bridge", "forward"), ("arp", "input")])
def test_tables_of_bridges_and_arp_are_named(family: str, hook: str) -> None:
    objects = [table(family=family), chain("f", hook, family=family, policy="drop")]
    found = Node(snapshot(objects))
    assert found.ruleset.beside == found.ruleset.losing == (f"{family} t",)
    assert follow(found).fate is Fate.DELIVERED


@pytest.mark.parametrize(
    ("expressions", "losing"),
    [
        ([], ()),
        ([ACCEPT], ()),
        ([{"log": {"prefix": '"drop": {'}}, ACCEPT], ()),
        ([DROP], ("bridge t",)),
        ([{"reject": None}], ("bridge t",)),
        ([{"vmap": {"key": SADDR, "data": {"set": [["10.244.1.5", DROP]]}}}], ("bridge t",)),
    ],
)
def test_tables_that_drop_nothing_lose_nothing(expressions: list[object], losing: tuple[str, ...]) -> None:
    objects = [table(family="bridge"), chain("f", "forward", family="bridge"), chain("c", family="bridge")]
    found = Node(snapshot([*objects, rule("c", *expressions, family="bridge")]))
    assert (found.ruleset.beside, found.ruleset.losing) == (("bridge t",), losing)


def test_a_dormant_table_is_not_named() -> None:
    objects = [table(family="bridge", flags="dormant"), chain("f", "forward", family="bridge", policy="drop")]
    found = Node(snapshot(objects)).ruleset
    assert found.beside == found.losing == ()


def at_device(hook: str, *expressions: object, **more: Any) -> Node:
    """Return a node that drops packets at a hook of a device."""
    objects = [table(family="netdev"), chain("f", hook, family="netdev", **more)]
    return Node(snapshot([*objects, rule("f", *expressions, DROP, family="netdev")]))


@pytest.mark.parametrize(
    ("hook", "device", "lost"),
    [
        ("ingress", "cni0", True),
        ("ingress", ["eth1", "cni0"], True),
        ("ingress", "eth0", False),
        ("egress", "eth0", True),
        ("egress", "cni0", False),
        ("ingress", [], False),
    ],
)
def test_chains_of_a_device_see_its_packets_alone(hook: str, device: object, lost: bool) -> None:
    found = follow(at_device(hook, match(SADDR, "10.244.1.5"), dev=device))
    assert [step.hook.value for step in found.deciders] == [hook] * lost


def test_ingress_is_before_connection_tracking_and_nat() -> None:
    assert not follow(at_device("ingress", match(ct("state"), "new"), dev="cni0")).deciders
    assert not follow(at_device("ingress", match(meta("oifname"), "eth0"), dev="cni0")).deciders


def test_a_chain_of_devices_that_are_not_known_is_named() -> None:
    found = at_device("ingress")
    assert found.ruleset.beside == ("netdev t",)
    assert follow(found).fate is Fate.DELIVERED


# ---- routing and sysctls


@pytest.mark.parametrize(
    ("sysctls", "text"),
    [
        ({"net.ipv4.ip_forward": "0", "net.ipv4.conf.cni0.forwarding": "0"}, "net.ipv4.ip_forward = 0"),
        ({"net.ipv4.conf.cni0.forwarding": "0"}, "net.ipv4.conf.cni0.forwarding = 0"),
    ],
)
def test_forwarding_must_be_on(sysctls: dict[str, str], text: str) -> None:
    (step,) = follow(Node(snapshot(sysctls=sysctls))).deciders
    assert step.place.text == text


def test_forwarding_of_the_other_device_does_not_matter() -> None:
    assert follow(Node(snapshot(sysctls={"net.ipv4.conf.eth0.forwarding": "0"}))).fate is Fate.DELIVERED


def test_rp_filter() -> None:
    strict = Node(snapshot(sysctls={"net.ipv4.conf.eth0.rp_filter": "1"}))
    assert follow(strict, src=REMOTE_POD, dst=POD, iif="eth0").fate is Fate.DROPPED
    assert follow(strict, src=REMOTE_POD, dst=POD, iif="flannel.1").fate is Fate.DELIVERED
    loose = Node(snapshot(sysctls={"net.ipv4.conf.all.rp_filter": "2", "net.ipv4.conf.eth0.rp_filter": "1"}))
    assert follow(loose, src=REMOTE_POD, dst=POD, iif="eth0").fate is Fate.DELIVERED


def test_a_source_that_is_the_nodes_own_is_refused() -> None:
    assert follow(Node(snapshot()), src=OWN, dst=POD, iif="eth0").fate is Fate.DROPPED


@pytest.mark.parametrize("name", ["all", "eth0"])
def test_accept_local_of_all_devices_or_of_one_lets_it_in(name: str) -> None:
    accepting = Node(snapshot(sysctls={f"net.ipv4.conf.{name}.accept_local": "1"}))
    assert follow(accepting, src=OWN, dst=POD, iif="eth0").fate is Fate.DELIVERED


def test_ipv6_sysctls() -> None:
    ends = {"src": "fd00:10:244:1::5", "dst": "2001:db8:2::7"}
    assert follow(Node(snapshot(sysctls={"net.ipv6.conf.all.forwarding": "0"})), **ends).fate is Fate.DROPPED
    assert follow(Node(snapshot(sysctls={"net.ipv6.conf.cni0.disable_ipv6": "1"})), **ends).fate is Fate.DROPPED


@pytest.mark.parametrize(("device", "fate"), [("cni0", Fate.DELIVERED), ("eth0", Fate.DROPPED)])
def test_a_device_may_force_forwarding_of_ipv6(device: str, fate: Fate) -> None:
    sysctls = {"net.ipv6.conf.all.forwarding": "0", f"net.ipv6.conf.{device}.force_forwarding": "1"}
    node = Node(snapshot(sysctls=sysctls))
    assert follow(node, src="fd00:10:244:1::5", dst="2001:db8:2::7").fate is fate


def test_no_route_drops() -> None:
    (step,) = follow(Node(snapshot(routes=ROUTES4[1:])), dst=WORLD).deciders
    assert step.place.text == "no route"


@pytest.mark.parametrize(
    ("route", "fate"),
    [
        ({"type": "blackhole", "dst": "198.51.100.0/24"}, Fate.DROPPED),
        ({"type": "throw", "dst": "198.51.100.0/24"}, Fate.DROPPED),
        ({"dst": "198.51.100.0/24", "dev": "eth1", "flags": ["linkdown"]}, Fate.DELIVERED),
        ({"dst": "198.51.100.0/24", "nexthops": [{"gateway": "192.0.2.2", "dev": "eth0"}]}, Fate.DELIVERED),
    ],
    ids=str,
)
def test_kinds_of_routes(route: dict[str, object], fate: Fate) -> None:
    assert follow(Node(snapshot(routes=[*ROUTES4, route]))).fate is fate


@pytest.mark.parametrize(("flags", "device"), [(["linkdown"], "eth1"), (["dead", "linkdown"], "eth0")], ids=str)
@pytest.mark.parametrize("hops", [False, True], ids=["one", "several"])
def test_a_link_without_a_carrier(flags: list[str], device: str, hops: bool) -> None:
    """The kernel uses such a route, unless ignore_routes_with_linkdown has it marked dead."""
    hop: dict[str, object] = {"dev": "eth1", "gateway": "203.0.113.2", "flags": flags}
    route = {"dst": "198.51.100.0/24", **({"flags": ["linkdown"], "nexthops": [hop]} if hops else hop)}
    (outcome,) = follow(Node(snapshot(routes=[*ROUTES4, route]))).outcomes
    assert outcome.device == device


def test_the_longest_prefix_and_the_lowest_metric_win() -> None:
    routes = [
        *ROUTES4,
        {"dst": "198.51.100.0/24", "dev": "a", "metric": 9},
        {"dst": "198.51.100.0/24", "dev": "b", "metric": 1},
    ]
    (outcome,) = follow(Node(snapshot(routes=routes))).outcomes
    assert outcome.device == "b"


def test_a_routing_rule_that_is_not_known_may_hold() -> None:
    rules = [{"priority": 5, "src": "all", "uidrange": "0-5", "action": "unreachable"}, *RULES]
    assert follow(Node(snapshot(rules=rules))).fate is Fate.MAY


@pytest.mark.parametrize(
    ("source", "fate"), [("10.244.0.0/16", Fate.MAY), ("10.99.0.0/16", Fate.DROPPED)], ids=["holds", "fails"]
)
def test_an_inverted_routing_rule_that_is_not_known(source: str, fate: Fate) -> None:
    """It certainly holds for a packet that a known selector excludes."""
    rules = [{"priority": 5, "not": None, "src": source, "uidrange": "0-5", "action": "unreachable"}, *RULES]
    assert follow(Node(snapshot(rules=rules))).fate is fate


def _to_world(**selector: object) -> Result:
    """Follow a packet where a routing rule drops it, and one before it has this selector and leads behind that."""
    before = [{"priority": 10, "goto": 30, **selector}, {"priority": 20, "src": "all", "action": "unreachable"}]
    return follow(Node(snapshot(rules=[*RULES[:1], *before, {"priority": 30, "nop": None}, *RULES[1:]])))


@pytest.mark.parametrize(
    ("selector", "fate"),
    [
        ({"src": "all"}, Fate.DELIVERED),
        ({"src": "10.244.0.0", "srclen": 16}, Fate.DELIVERED),
        ({"src": "10.9.0.0", "srclen": 16}, Fate.DROPPED),
        ({"src": "all", "dsfield": "0x10"}, Fate.MAY),
        ({"src": "all", "unresolved": None}, Fate.DROPPED),
    ],
)
def test_a_routing_rule_that_leads_to_another(selector: dict[str, object], fate: Fate) -> None:
    assert _to_world(**selector).fate is fate


@pytest.mark.parametrize(
    "selector", [{"src": "of a later release"}, {"dst": "10.0.0.0", "dstlen": 99}, {"src": "all", "fwmark": "odd"}]
)
def test_a_selector_that_cannot_be_read_may_hold(selector: dict[str, object]) -> None:
    rules = [*RULES[:1], {"priority": 10, "action": "unreachable", **selector}, *RULES[1:]]
    assert follow(Node(snapshot(rules=rules))).fate is Fate.MAY


def test_suppressed_default_route_and_inverted_rule() -> None:
    rules = [
        {"priority": 1, "src": "all", "table": "main", "suppress_prefixlen": 0},
        {"priority": 2, "not": None, "src": "all", "fwmark": "0xca6c", "table": "51820"},
        *RULES,
    ]
    routes = [*ROUTES4, {"dst": "default", "dev": "wg0", "table": "51820"}]
    wireguard = Node(snapshot(rules=rules, routes=routes))
    (outcome,) = follow(wireguard).outcomes
    assert outcome.device == "wg0"
    (outcome,) = follow(wireguard, dst=REMOTE_POD).outcomes
    assert outcome.device == "flannel.1"


# ---- snapshots


def test_what_is_unread_makes_delivery_uncertain() -> None:
    found = follow(Node(snapshot(unread=("nft could not be run",))))
    assert found.fate is Fate.MAY
    assert found.why_not == "nft could not be run"


def test_a_snapshot_is_saved_and_loaded() -> None:
    saved = snapshot([table(), chain("f", "forward", policy="drop")], legacy="*filter\nCOMMIT\n")
    assert from_json(to_json(saved)) == saved
    assert evaluate(from_json(to_json(saved)), packet()).fate is Fate.DROPPED


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "[" * 100_000])
def test_other_text_is_no_snapshot(text: str) -> None:
    with pytest.raises(SnapshotError, match="no snapshot of a node"):
        from_json(text)


@pytest.mark.parametrize(
    "text", ['{"nftables": [', '{"nftables": [{"rule": 5}]}', "x", '{"nftables": [{"chain": {}}]}']
)
def test_a_ruleset_that_is_cut_short_is_an_error(text: str) -> None:
    with pytest.raises(SnapshotError, match="output of nft"):
        Node(Snapshot(ruleset=text))


@pytest.mark.parametrize("text", ["{}", "[5]", "x"])
def test_addresses_that_cannot_be_read_are_an_error(text: str) -> None:
    with pytest.raises(SnapshotError):
        Node(Snapshot(addresses=text))
