"""doctor makes one finding for each rule that harms packets of pods, with the remedy of its owner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flanneld_masq.controller.status import State, Status
from flanneld_masq.doctor import flow_remedies
from flanneld_masq.doctor.examine import examine
from flanneld_masq.doctor.facts import DaemonFacts, Facts, FamilyFacts, PacketFacts, Unread
from flanneld_masq.doctor.findings import Finding, Kind, Severity, exit_status
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    ForwardSettings,
    Holder,
    Lease,
    MasqueradeSettings,
    Settings,
)
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flows import flows
from flanneld_masq.packet_path.owners import OURS, owner_of
from flanneld_masq.packet_path.rules import Hook, Place
from flanneld_masq.packet_path.snapshot import LEGACY, NFT, Save
from flanneld_masq.packet_path.state import Effect, Step

from ..packet_path.nodes import (
    ACCEPT,
    ADDRESSES,
    DADDR,
    DROP,
    ROUTES4,
    RULES,
    SADDR,
    chain,
    ct,
    match,
    meta,
    payload,
    rule,
    snapshot,
    table,
)

LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
)
LEASE6 = Lease(
    "/run/flannel/subnet.env",
    None,
    FamilyLease((ip_network("fd00:10:244::/48"),), ip_network("fd00:10:244:1::/64"), ip_address("fd00:10:244:1::1")),
)
OWN = [
    table("flanneld-masq"),
    chain("p", "postrouting", "nat", prio=100, table="flanneld-masq"),
    rule("p", match(meta("oifname"), "eth0"), {"masquerade": None}, table="flanneld-masq"),
]
OWN_LAN = {"prefix": {"addr": "192.0.2.0", "len": 24}}
POD_NETWORK = {"prefix": {"addr": "10.244.0.0", "len": 16}}
UFW = "ufw route delete {} from 10.244.0.0/16; ufw route prepend allow from 10.244.0.0/16"
CALICO = """*filter
:FORWARD ACCEPT [0:0]
:cali-FORWARD - [0:0]
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A cali-FORWARD -i cni0 -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -j DROP
COMMIT
"""


def node_facts(objects: Sequence[Any], **more: Any) -> Facts:
    """A healthy node but for these objects of nft, and what a snapshot has beside."""
    found = flows(Node(snapshot([*OWN, *objects], **more)), LEASE, Settings())
    daemon = DaemonFacts(Holder(True, 7, "it is held"), Status(State.SYNCED))
    return Facts(Settings(), (LEASE,), daemon=daemon, families=(FamilyFacts(Family.IPV4),), packets=PacketFacts(found))


def found_in_ipv6(objects: Sequence[Any], **more: Any) -> list[Finding]:
    settings = Settings(masquerade=MasqueradeSettings(enabled=False))
    found = flows(Node(snapshot(objects, **more)), LEASE6, settings)
    return list(examine(replace(node_facts([]), leases=(LEASE6,), settings=settings, packets=PacketFacts(found))))


def found_in(objects: Sequence[Any], **more: Any) -> list[Finding]:
    return list(examine(node_facts(objects, **more)))


def only(objects: Sequence[Any], **more: Any) -> Finding:
    (found,) = found_in(objects, **more)
    return found


def forward(*rules: Sequence[object], name: str = "t", family: str = "ip", policy: str = "accept") -> list[Any]:
    where: dict[str, Any] = {"table": name, "family": family}
    return [
        table(name, family),
        chain("f", "forward", policy=policy, **where),
        *(rule("f", *one, **where) for one in rules),
    ]


def test_a_healthy_node_has_no_findings() -> None:
    assert found_in([]) == []


def test_one_rule_is_one_finding_with_all_its_flows() -> None:
    found = only(forward([DROP]))
    assert (found.kind, found.severity, found.owner) == (Kind.FLOW_DROPPED, Severity.PROBLEM, "unknown")
    assert "pod to world (10.244.1.250 -> 8.8.8.8)" in found.seen
    assert "rule 1 of f in ip t: drop, handle 7" in found.seen
    assert "and 4 more" in found.seen
    assert found.remedy.startswith("nft insert rule ip t f handle 7 ip saddr 10.244.0.0/16 accept")
    assert "nftables service" in found.persist


def test_a_drop_of_udp_alone_is_found() -> None:
    found = only(forward([match({"meta": {"key": "l4proto"}}, "udp"), {"drop": None}]))
    assert found.kind is Kind.FLOW_DROPPED
    assert found.seen.startswith("pod to world by UDP (10.244.1.250 -> 8.8.8.8), pod to remote pod by UDP")


def test_a_drop_of_dns_to_the_world_is_intended() -> None:
    found = found_in(forward([match({"payload": {"protocol": "udp", "field": "dport"}}, 53), {"drop": None}]))
    assert found == []


def test_forward_drops_names_the_program() -> None:
    save = "*filter\n:FORWARD DROP [0:0]\n:ufw-user-forward - [0:0]\n-A FORWARD -j ufw-user-forward\nCOMMIT\n"
    facts = node_facts([], legacy=save)
    settings = Settings(forward=ForwardSettings(enabled=False))
    family = FamilyFacts(Family.IPV4, drops={BackendName("iptables-legacy"): "policy drop"})
    (found,) = examine(replace(facts, settings=settings, families=(family,)))
    assert (found.kind, found.owner) == (Kind.FORWARD_DROPS, "ufw")


API_SERVER = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -p tcp -m tcp -j DNAT --to-destination 192.0.2.1:6443
COMMIT
*filter
:INPUT DROP [0:0]
:{chain} - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j {chain}
-A {chain} -j DROP
COMMIT
"""


@pytest.mark.parametrize(
    ("chain_name", "command"),
    [
        ("MYFW", "iptables-legacy -I MYFW 1 -s 10.244.0.0/16 -j ACCEPT"),
        ("ufw-reject-input", "ufw prepend allow from 10.244.0.0/16"),
    ],
)
def test_a_firewall_before_the_api_server_of_this_node(chain_name: str, command: str) -> None:
    found = only([], legacy=API_SERVER.format(chain=chain_name))
    assert found.kind is Kind.FLOW_DROPPED
    assert found.seen.startswith("pod to API server on the same node (10.244.1.250 -> 10.96.0.1): dropped at input")
    assert found.remedy == command


def test_firewalld_before_the_api_server_of_this_node() -> None:
    save = API_SERVER.partition("*filter")[0]
    where: dict[str, Any] = {"family": "inet", "table": "firewalld"}
    objects = [
        table("firewalld", "inet"),
        chain("filter_INPUT", "input", **where),
        rule("filter_INPUT", match(meta("iifname"), "cni0"), match(ct("state"), "new", "in"), DROP, **where),
    ]
    found = only(objects, legacy=save)
    assert found.remedy == "firewall-cmd --zone=trusted --add-source=10.244.0.0/16"
    assert "--permanent" in found.persist


def test_a_policy_is_met_at_the_end_of_its_chain() -> None:
    found = only(forward([match(SADDR, "192.0.2.9"), {"accept": None}], policy="drop"))
    assert "by the policy of f in ip t" in found.seen
    assert found.remedy.startswith("nft add rule ip t f ip saddr 10.244.0.0/16 accept")


def of_iptables(name: str) -> Finding:
    """Policy DROP of the chain FORWARD, as `iptables-nft -P` sets it."""
    objects = [table(name), chain("FORWARD", "forward", policy="drop", table=name)]
    return only(objects, saves=(Save(Family.IPV4, NFT, f"*{name}\n:FORWARD DROP [0:0]\nCOMMIT\n"),))


@pytest.mark.parametrize(("name", "option"), [("filter", ""), ("mangle", "-t mangle ")])
def test_a_policy_of_iptables_gets_accepts_of_iptables(name: str, option: str) -> None:
    """After a rule of nft, iptables-nft refuses the table, and so kube-proxy and docker fail."""
    found = of_iptables(name)
    assert found.remedy.startswith(f"iptables-nft {option}-A FORWARD -s 10.244.0.0/16 ")
    assert "nft add rule" not in found.remedy
    assert "netfilter-persistent save" in found.persist


def test_the_remedy_does_not_look_like_a_rule_of_flannel() -> None:
    """Old releases of flannel accepted in FORWARD with the same matches, and `cleanup --flannel` removes such rules."""
    found = of_iptables("filter")
    assert found.remedy.startswith(
        "iptables-nft -A FORWARD -s 10.244.0.0/16 -m comment --comment pods-of-flannel -j ACCEPT"
    )


@pytest.mark.parametrize(
    ("name", "family", "command", "persist"),
    [
        ("firewalld", "inet", "firewall-cmd --zone=trusted --add-source=10.244.0.0/16", "firewall-cmd --permanent"),
        ("docker-bridges", "ip", "nft insert rule ip docker-bridges f handle 7 ip saddr", "bridge-accept-fwmark"),
        ("libvirt_network", "ip", "nft insert rule ip libvirt_network f", "/etc/libvirt/hooks/network"),
        ("nm-shared-cni0", "ip", "nft insert rule ip nm-shared-cni0 f", "nmcli connection modify"),
    ],
)
def test_the_remedy_is_in_the_terms_of_the_owner(name: str, family: str, command: str, persist: str) -> None:
    found = only(forward([DROP], name=name, family=family))
    assert found.remedy.startswith(command)
    assert persist in found.persist


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("-A DOCKER -i cni0 -j DROP", "iptables-legacy -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT"),
        (
            "-A ufw-user-forward -i cni0 -j DROP",
            UFW.format("deny"),
        ),
        (
            "-A ufw-user-forward -i cni0 -j REJECT",
            UFW.format("reject"),
        ),
        ("-A MYFW -i cni0 -j DROP", "iptables-legacy -I MYFW 1 -s 10.244.0.0/16 -j ACCEPT"),
    ],
)
def test_the_remedy_of_a_rule_of_iptables(line: str, command: str) -> None:
    name = line.split()[1]
    legacy = f"*filter\n:FORWARD ACCEPT [0:0]\n:{name} - [0:0]\n-A FORWARD -j {name}\n{line}\nCOMMIT\n"
    assert only([], legacy=legacy).remedy == command


FROM_PODS = "ip saddr 10.244.0.0/16 accept"
ANSWERS = "ip daddr 10.244.0.0/16 ct state related,established accept"


@pytest.mark.parametrize(
    ("objects", "command"),
    [
        (forward(policy="drop"), "nft add rule ip t f"),
        (forward([{"counter": None}, DROP]), "nft insert rule ip t f handle 7"),
        (forward([{"reject": None}]), "nft insert rule ip t f handle 7"),
    ],
    ids=["policy", "drop", "reject"],
)
def test_one_remedy_lets_packets_and_answers_pass(objects: list[Any], command: str) -> None:
    """Without the accept of answers, a second run of doctor would ask for it."""
    assert only(objects).remedy == f"{command} {FROM_PODS}; {command} {ANSWERS}"


@pytest.mark.parametrize("line", ["-j DROP", "-j REJECT --reject-with icmp-host-prohibited"])
def test_one_remedy_of_iptables_lets_answers_pass(line: str) -> None:
    legacy = f"*filter\n:FORWARD ACCEPT [0:0]\n:MYFW - [0:0]\n-A FORWARD -j MYFW\n-A MYFW {line}\nCOMMIT\n"
    answers = "-d 10.244.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    assert only([], legacy=legacy).remedy == (
        f"iptables-legacy -I MYFW 1 -s 10.244.0.0/16 -j ACCEPT; iptables-legacy -I MYFW 1 {answers}"
    )


def test_a_policy_behind_nat_lets_the_answers_pass() -> None:
    objects = [table(), chain("f", "postrouting", prio=150, policy="drop")]
    ends = ("ip saddr 192.0.2.1 accept", FROM_PODS, ANSWERS)
    assert only(objects).remedy == "; ".join(f"nft add rule ip t f {end}" for end in ends)


def test_answers_are_let_through_as_answers() -> None:
    answers = [match({"ct": {"key": "state"}}, "established", "in"), match(meta("iifname"), "eth0")]
    found = only(forward([*answers, DROP]))
    assert "answers of pod to world" in found.seen
    assert found.remedy == (
        "nft insert rule ip t f handle 7 ip daddr 10.244.0.0/16 ct state related,established accept"
    )


@pytest.mark.parametrize(
    ("family", "hook", "prio", "ends"),
    [
        ("netdev", "ingress", 0, ["ip daddr 192.0.2.1"]),
        ("ip", "prerouting", -300, ["ip daddr 192.0.2.1"]),
        (
            "ip",
            "prerouting",
            -150,
            [f"ip daddr {one} ct state related,established" for one in ("192.0.2.1", "10.244.0.0/16")],
        ),
    ],
)
def test_answers_have_the_nodes_address_before_nat(family: str, hook: str, prio: int, ends: list[str]) -> None:
    objects = [table(family=family), chain("f", hook, family=family, prio=prio, dev="eth0")]
    found = only(
        [*objects, rule("f", match(meta("iifname"), "eth0"), match(SADDR, OWN_LAN, "!="), DROP, family=family)]
    )
    assert "answers of pod to world" in found.seen
    assert found.remedy == "; ".join(f"nft insert rule {family} t f handle 7 {one} accept" for one in ends)


@pytest.mark.parametrize(
    ("family", "hook", "prio", "device", "end"),
    [
        ("ip", "postrouting", 0, "eth0", "saddr 10.244.0.0/16"),
        ("ip", "postrouting", 150, "eth0", "saddr 192.0.2.1"),
        ("netdev", "egress", 0, "eth0", "saddr 192.0.2.1"),
        ("netdev", "egress", 0, "flannel.1", "saddr 10.244.0.0/16"),
    ],
)
def test_packets_have_the_nodes_address_behind_nat(family: str, hook: str, prio: int, device: str, end: str) -> None:
    by = [match(meta("oifname"), device)]
    objects = [table(family=family), chain("f", hook, family=family, prio=prio, dev=device)]
    found = only([*objects, rule("f", *by, DROP, family=family)])
    assert found.remedy.split("; ")[0] == f"nft insert rule {family} t f handle 7 ip {end} accept"


def test_a_chain_of_a_device_knows_no_state() -> None:
    """The kernel refuses `ct` in tables of the family netdev."""
    objects = [table(family="netdev"), chain("f", "egress", family="netdev", dev="cni0")]
    found = only([*objects, rule("f", match(SADDR, POD_NETWORK, "!="), DROP, family="netdev")])
    assert "answers of pod to world" in found.seen
    assert found.remedy == "nft insert rule netdev t f handle 7 ip daddr 10.244.0.0/16 accept"


@pytest.mark.parametrize(
    "matches",
    [
        [match(payload("tcp", "dport"), 443)],
        [match(DADDR, "8.8.8.8")],
        [match(SADDR, "10.244.1.250")],
        [{"limit": {"rate": 5, "burst": 5, "per": "second"}}],
        [match(meta("iifname"), "eth0"), match({"ct": {"key": "state"}}, "new", "in")],  # the world to pods
    ],
    ids=["port", "address", "pod", "limit", "from the world"],
)
def test_what_decides_by_more_than_pods_is_intended(matches: list[Any]) -> None:
    assert found_in(forward([*matches, DROP])) == []


def test_network_policies_are_a_notice() -> None:
    found = only([], legacy=CALICO)
    assert (found.kind, found.severity, found.owner) == (Kind.FLOW_DENIED_BY_POLICY, Severity.NOTICE, "calico")
    assert exit_status([found]) == 0


def test_a_foreign_masquerade_between_pods() -> None:
    docker = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE\nCOMMIT\n"
    found = only([], legacy=docker)
    assert (found.kind, found.owner) == (Kind.FLOW_MASQUERADED, "docker")
    assert found.remedy == ("iptables-legacy -t nat -I POSTROUTING 1 -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT")
    assert '"ip-masq": false' in found.persist


def test_firewalld_masquerades_by_the_zone_of_the_device() -> None:
    objects = [
        table("firewalld"),
        chain("nat_POSTROUTING", "postrouting", "nat", prio=110, table="firewalld"),
        rule("nat_POSTROUTING", match(meta("oifname"), "flannel.1"), {"masquerade": None}, table="firewalld"),
    ]
    found = only(objects)
    assert found.remedy == "firewall-cmd --zone=trusted --change-interface=flannel.1"


def test_notrack_keeps_the_masquerade_away() -> None:
    found = only([], legacy="*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s 10.244.0.0/16 -j CT --notrack\nCOMMIT\n")
    assert found.kind is Kind.FLOW_NOT_MASQUERADED
    assert "-j CT --notrack" in found.seen
    assert found.remedy == "iptables-legacy -t raw -I PREROUTING 1 -s 10.244.0.0/16 -j ACCEPT"


def test_an_uplink_without_an_address_is_named() -> None:
    facts = node_facts([])
    addresses = json.dumps([one for one in ADDRESSES if one["ifname"] != "eth0"])
    found = flows(Node(replace(snapshot(OWN), addresses=addresses)), LEASE, Settings())
    (finding,) = examine(replace(facts, packets=PacketFacts(found)))
    assert (finding.kind, finding.owner) == (Kind.UPLINK_WITHOUT_ADDRESS, "")
    assert finding.what.startswith("eth0, by which packets of pods leave")
    assert finding.remedy.startswith("`ip address add ADDRESS dev eth0`")


def test_a_rule_that_redirects_pods() -> None:
    objects = [
        table(),
        chain("pre", "prerouting", "nat", prio=-100),
        rule("pre", match(meta("iifname"), "cni0"), {"dnat": {"addr": "192.0.2.77"}}),
    ]
    found = only(objects)
    assert found.kind is Kind.FLOW_REDIRECTED
    assert "sent to 192.0.2.77, not to 8.8.8.8" in found.seen
    assert "translated at prerouting by rule 1 of pre in ip t" in found.seen, "not by the masquerade behind it"
    assert found.owner == "unknown"
    assert found.remedy == "nft insert rule ip t pre handle 7 ip saddr 10.244.0.0/16 return"


def dnat(*matches: str, owner: str = "") -> list[Finding]:
    """The findings where iptables sends packets of the pods' bridge to a host of the LAN."""
    rules = f"-A PREROUTING -i cni0 {' '.join(matches)} -j DNAT --to-destination 192.0.2.77"
    jump = f":{owner} - [0:0]\n-A PREROUTING -j {owner}\n{rules.replace('PREROUTING', owner)}" if owner else rules
    return found_in([], legacy=f"*nat\n:PREROUTING ACCEPT [0:0]\n{jump}\nCOMMIT\n")


def test_a_redirection_of_one_port_is_intended() -> None:
    """All DNS to one resolver, for example. The answers come back as such."""
    assert dnat("-p udp -m udp --dport 53") == []


def test_the_remedy_for_a_redirection_of_everything() -> None:
    (found,) = dnat("-p tcp")
    assert found.remedy == "iptables-legacy -t nat -I PREROUTING 1 -s 10.244.0.0/16 -j RETURN"


def test_a_redirection_by_docker_is_not_its_masquerade() -> None:
    (found,) = dnat("-p tcp", owner="DOCKER")
    assert (found.kind, found.owner) == (Kind.FLOW_REDIRECTED, "docker")
    assert found.remedy == "iptables-legacy -t nat -I DOCKER 1 -s 10.244.0.0/16 -j RETURN"
    assert "ip-masq" not in found.persist


def test_a_missing_route_is_no_rule() -> None:
    routes = [*ROUTES4, {"dst": "8.8.8.0/24", "type": "unreachable"}]
    facts = node_facts([], sysctls={"net.ipv4.conf.cni0.forwarding": "0"}, routes=routes)
    kinds = {one.kind for one in examine(facts)}
    assert kinds == {Kind.FLOW_MISROUTED}


def test_what_another_finding_says_is_not_said_twice() -> None:
    legacy = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"
    facts = node_facts([], legacy=legacy)
    assert [one.kind for one in examine(facts)] == [Kind.FLOW_DROPPED]
    differing = replace(facts, families=(FamilyFacts(Family.IPV4, differs="- a rule"),))
    assert [one.kind for one in examine(differing)] == [Kind.RULES_DIFFER]


def test_what_could_not_be_read_is_unknown() -> None:
    facts = replace(node_facts([]), unread=Unread(packet_path="`nft` could not be started"))
    (found,) = examine(facts)
    assert (found.kind, found.seen) == (Kind.FLOWS_UNKNOWN, "`nft` could not be started")
    assert exit_status([found]) == 2


def test_a_mark_of_kube_proxy_is_put_right_where_it_is_made() -> None:
    """kube-proxy makes its chains again at each sync, so a rule there would not last."""
    save = """*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i cni0 -j MARK --set-xmark 0x4000/0x4000
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""
    found = only([], legacy=save)
    assert (found.kind, found.owner) == (Kind.FLOW_MASQUERADED, "kube-proxy")
    assert found.seen.endswith("--set-xmark 0x4000/0x4000") and "marked at prerouting by rule 1" in found.seen
    ends = "-s 10.244.0.0/16 -d 10.244.0.0/16"
    assert found.remedy == f"iptables-legacy -t mangle -I PREROUTING 1 {ends} -j ACCEPT"


def test_another_masquerade_is_not_taken_for_the_rule_that_marks() -> None:
    """Another rule may take the mark off, and another program masquerades those packets."""
    save = """*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -i cni0 -j MARK --set-xmark 0x4000/0x4000
-A PREROUTING -m u32 --u32 "0=1" -j MARK --set-xmark 0x0/0x4000
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -s 10.244.0.0/16 -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""
    (found,) = (one for one in found_in([], legacy=save) if one.owner == "kube-proxy")
    assert found.kind is Kind.FLOW_MASQUERADED
    assert "marked at prerouting by rule 1" in found.seen


def test_input_that_drops_icmpv6_cuts_pods_off() -> None:
    """A pod does not find its gateway (k3s 9797)."""
    assert found_in_ipv6([]) == []
    lines = "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    save = Save(Family.IPV6, LEGACY, f"*filter\n:INPUT DROP [0:0]\n{lines}COMMIT\n")
    (found,) = found_in_ipv6([], saves=(save,))
    assert (found.kind, found.family, found.severity) == (Kind.FLOW_DROPPED, "ipv6", Severity.PROBLEM)
    assert "-> ff02::1:ff00:1), answers of gateway to pod by neighbour discovery" in found.seen
    assert found.seen.endswith("dropped at input by the policy of INPUT in legacy ip6 filter")
    assert found.remedy == "ip6tables-legacy -A INPUT -p ipv6-icmp -j ACCEPT"


def test_the_remedy_lets_icmpv6_pass_before_the_rule() -> None:
    where: dict[str, Any] = {"table": "t", "family": "inet"}
    own = [match(ct("state"), ["established", "related"], "in"), ACCEPT]
    objects = [
        table(family="inet"),
        chain("in", "input", **where),
        rule("in", *own, **where),
        rule("in", DROP, **where),
    ]
    (found,) = found_in_ipv6(objects)
    assert found.remedy == "nft insert rule inet t in handle 7 meta l4proto ipv6-icmp accept"
    accepted = rule("in", match(meta("l4proto"), "ipv6-icmp"), ACCEPT, **where)
    assert found_in_ipv6([*objects[:-1], accepted, objects[-1]]) == []


OWN_PLACES = (
    Place("ip flanneld-masq", "postrouting", 4, 5, "ip saddr 10.244.0.0/16 masquerade"),
    Place("ip flanneld-masq", "forward", text="policy drop"),
    Place("ip6 flanneld-masq", "forward", 1, 7, "ct state invalid drop"),
    Place("ip nat", "FLANNELD-MASQ", 6, 5, "-A FLANNELD-MASQ -s 10.244.0.0/16 -j MASQUERADE"),
    Place("legacy ip filter", "FLANNELD-MASQ-FWD", 1, 0, "-A FLANNELD-MASQ-FWD -m conntrack --ctstate INVALID -j DROP"),
)


@pytest.mark.parametrize("hook", [Hook.PREROUTING, Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING], ids=str)
@pytest.mark.parametrize("effect", list(Effect), ids=str)
def test_no_remedy_changes_the_daemons_own_rules(hook: Hook, effect: Effect) -> None:
    for place in OWN_PLACES:
        step, owner = Step(hook, place, effect), owner_of(place)
        traffic = [flow_remedies.Traffic("10.244.0.0/16")]
        advice = flow_remedies.remedy(step, owner, Family.IPV4, traffic, "eth0", traffic)
        for one in (advice, flow_remedies.tunnel(step, owner, Family.IPV4, 8472)):
            assert one.command.startswith("the rule is the daemon's own")
            assert one.persist == ""


def test_a_wrong_route_is_no_fault_of_our_masquerade() -> None:
    """Packets to other pods leave by the uplink, where the daemon masquerades them."""
    rules = [{"priority": 100, "src": "10.244.1.0", "srclen": 24, "table": "100"}, *RULES]
    routes = [*ROUTES4, {"dst": "10.244.2.0/24", "gateway": "192.0.2.100", "dev": "eth0", "table": "100"}]
    found = found_in([], rules=rules, routes=routes)
    assert Kind.FLOW_MISROUTED in {one.kind for one in found}
    assert [one for one in found if one.owner == OURS or "flanneld-masq" in one.seen] == []
