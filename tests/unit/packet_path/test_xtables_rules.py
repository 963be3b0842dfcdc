"""Each construct of iptables-save, in a legacy table that drops what it matches."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from flanneld_masq.errors import SnapshotError
from flanneld_masq.model import Family
from flanneld_masq.packet_path.evaluate import Fate, Node
from flanneld_masq.packet_path.ipsets import IpSets
from flanneld_masq.packet_path.packet import ICMP, UDP, Connection, CtState, Endpoint
from flanneld_masq.packet_path.rules import Test
from flanneld_masq.packet_path.save_format import tables
from flanneld_masq.packet_path.snapshot import LEGACY, NFT, Save, from_json, to_json
from flanneld_masq.packet_path.state import Effect
from flanneld_masq.packet_path.xtables_rules import Option, parts

from .nodes import OWN, POD, WORLD, chain, follow, packet, rule, snapshot, table

HITS = [
    "-s 10.244.0.0/16",
    "-s 10.244.1.5/32",
    "-s 10.0.0.0/255.0.0.0",
    "! -d 10.244.0.0/16",
    "-i cni0",
    "-i cni+",
    "! -i eth0 -o eth+",
    "-p tcp -m tcp --dport 443",
    "-p tcp -m tcp --dport 400:500",
    "-p tcp -m tcp ! --dport 80",
    "-p tcp -m tcp --dport :500",
    "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
    "-p tcp -m tcp --syn",
    "-p tcp -m multiport --dports 80,443,8000:9000",
    "-p tcp -m multiport --dports 1:1000,400:410",
    "! -p udp",
    "-p all",
    "-m conntrack --ctstate NEW",
    "-m conntrack --ctstate RELATED,NEW",
    "-m conntrack ! --ctstate ESTABLISHED",
    "-m state --state NEW",
    "-m conntrack --ctdir ORIGINAL",
    "-m conntrack --ctorigsrc 10.244.1.5/32",
    "-m conntrack --ctproto 6",
    "-m conntrack ! --ctstatus NONE",
    "-m mark --mark 0x0/0x4000",
    "-m mark ! --mark 0x4000/0x4000",
    "-m connmark --mark 0x0",
    "-m addrtype --dst-type UNICAST",
    "-m addrtype ! --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL --limit-iface-in",
    "-m addrtype --src-type UNICAST --limit-iface-out",
    "-m iprange --src-range 10.244.1.1-10.244.1.9",
    '-m comment --comment "it\'s -j ACCEPT \\"x\\""',
    '-m comment --comment "one\n-A FORWARD -j ACCEPT\ntwo"',
    '! -i "x -m comment --comment "-j ACCEPT"',
    '-m comment --comment "x" -m nfacct --nfacct-name  y',
    "-m physdev ! --physdev-is-bridged",
    "-m physdev ! --physdev-in veth0 ! --physdev-is-in",
    "-m physdev ! --physdev-out veth0",
    "-m devgroup --src-group default",
    "-m devgroup --src-group 0x0 ! --dst-group 0x0",
    "-m devgroup --dst-group 0x17/0xf",
    "-m pkttype --pkt-type unicast",
    "-m rpfilter",
    "-m rpfilter --loose --validmark",
    "! -f",
    "-m set --match-set nets src",
    "-m set --match-set ports dst,dst",
    "-m set --match-set overlapping src",
    "-m set --match-set numbered dst,dst",
    "-m set ! --match-set none src",
]
MISSES = [
    "-s 10.244.1.6/32",
    "-i eth0",
    "-p udp -m udp --dport 443",
    "-p udp -m udp ! --dport 53",
    "-p tcp -m multiport ! --dports 80,443",
    "-p icmp -m icmp --icmp-type 8",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT",
    "-m conntrack --ctstate INVALID",
    "-m conntrack --ctstatus DNAT",
    "-m conntrack --ctstatus NONE",
    "-m mark --mark 0x4000/0x4000",
    "-m addrtype --src-type LOCAL",
    "-m addrtype --dst-type LOCAL,BROADCAST --limit-iface-in",
    "-m physdev --physdev-is-bridged",
    "-m physdev --physdev-in veth0",
    "-m physdev --physdev-is-in",
    "-m physdev --physdev-out veth0",
    "-m devgroup --src-group 0x7",
    "-m devgroup --dst-group default",
    "-m rpfilter --invert",
    "-m owner --uid-owner 0",
    "-f",
    "-m esp --espspi 7",
    "-m ah --ahspi 7",
    "-m mh --mh-type 1",
    "-m rt --rt-type 0",
    "-m rt ! --rt-type 0",
    "-m set --match-set none src",
]
UNSURE = [
    "-m limit --limit 5/sec",
    "-m hashlimit --hashlimit-above 5/sec --hashlimit-name x",
    "-m recent --rcheck --name x --rsource",
    "-m statistic --mode random --probability 0.5",
    "-m time --timestart 12:00",
    "-m devgroup --src-group mgmt",
    "-m string --algo bm --string x",
    "-m set --match-set unheard src",
    "-m set --match-set timed src",
    "-m set --match-set bits dst",
    "-m set --match-set halves src",
    "-m set --match-set masked src",
    "-m set --match-set wild src,src",
    "-m set --match-set port src,src",
    "-m set --match-set odd dst,dst",
    "-m set --match-set except src",
    "-m owner ! --uid-owner 0",
    "-m icmp6 --what",
    "-m addrtype --what LOCAL",
    "-s 10.0.0.0/255.0.255.0",
    "-m unheard --of -s x",
]
IPSETS = """create nets hash:net family inet
add nets 10.244.0.0/16
create ports hash:ip,port family inet
add ports 198.51.100.7,tcp:443
create none hash:ip family inet
create timed hash:ip family inet timeout 600
create overlapping hash:net family inet
add overlapping 10.0.0.0/8
add overlapping 10.1.0.0/16
create numbered hash:ip,port family inet
add numbered 198.51.100.7,6:443
create bits bitmap:port range 0-1023
add bits 80
create halves hash:ip family inet hashsize 1024 maxelem 65536 netmask 24
add halves 10.244.1.0
create masked hash:ip family inet hashsize 1024 maxelem 65536 bitmask 255.255.255.0
add masked 10.244.1.0
create wild hash:net,iface family inet
add wild 10.244.0.0/16,cni wildcard
create port hash:net,iface family inet
add port 10.244.0.0/16,physdev:veth0
create odd hash:ip,port family inet
add odd 198.51.100.7,unheard:443
create except hash:net family inet
add except 10.244.0.0/16
add except 10.244.1.0/24 nomatch
"""


def node(*rules: str, table_name: str = "filter", chain_name: str = "FORWARD", policy: str = "ACCEPT") -> Node:
    lines = "".join(f"-A {chain_name} {one}\n" for one in rules)
    save = f"*{table_name}\n:{chain_name} {policy} [0:0]\n:C - [0:0]\n-A C -j DROP\n{lines}COMMIT\n"
    return Node(snapshot(legacy=save, ipsets=IPSETS))


@pytest.mark.parametrize("match", HITS)
def test_a_match_that_holds_drops(match: str) -> None:
    assert follow(node(f"{match} -j DROP")).fate is Fate.DROPPED


@pytest.mark.parametrize("match", MISSES)
def test_a_match_that_fails_lets_pass(match: str) -> None:
    assert follow(node(f"{match} -j DROP")).fate is Fate.DELIVERED


@pytest.mark.parametrize("match", UNSURE)
def test_what_cannot_be_evaluated_may_drop(match: str) -> None:
    assert follow(node(f"{match} -j DROP")).fate is Fate.MAY


@pytest.mark.parametrize(("match", "proto"), [("esp --espspi 7", 50), ("ah --ahspi 7", 51), ("mh --mh-type 1", 135)])
def test_a_header_that_is_the_protocol_of_the_packet_may_match(match: str, proto: int) -> None:
    assert follow(node(f"-p {proto} -m {match} -j DROP"), proto=proto).fate is Fate.MAY


@pytest.mark.parametrize(
    ("match", "fate"),
    [("! --dst-type LOCAL", Fate.DROPPED), ("--dst-type LOCAL", Fate.DELIVERED), ("--dst-type UNICAST", Fate.MAY)],
)
def test_types_of_ipv6_addresses_for_one_device(match: str, fate: Fate) -> None:
    save = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m addrtype {match} --limit-iface-in -j DROP\nCOMMIT\n"
    found = Node(snapshot(saves=(Save(Family.IPV6, LEGACY, save),)))
    assert follow(found, src="fd00:10:244:1::5", dst="2001:db8:2::7").fate is fate


def test_a_set_is_parsed_once_for_all_its_rules() -> None:
    sets = IpSets(IPSETS)
    option = Option("--match-set", ("nets", "src"), False)
    first, second = (next(sets.tests(Family.IPV4, [option])) for _ in range(2))
    assert isinstance(first, Test) and isinstance(second, Test)
    assert first.elements is second.elements


@pytest.mark.parametrize(
    ("target", "fate"),
    [
        ("-j ACCEPT", Fate.DELIVERED),
        ("-j REJECT --reject-with icmp-port-unreachable", Fate.DROPPED),
        ("-j RETURN", Fate.DELIVERED),
        ("-j C", Fate.DROPPED),
        ("-g C", Fate.DROPPED),
        ("-j LOG --log-prefix x", Fate.DELIVERED),
        ("-j TCPMSS --clamp-mss-to-pmtu", Fate.DELIVERED),
        ("-j NFQUEUE --queue-num 1", Fate.MAY),
        ("-j UNHEARD", Fate.MAY),
        ("-j CT --zone 5", Fate.MAY),
        ("-j CT --zone-orig mark", Fate.MAY),
        ("-j CT --zone 0", Fate.DELIVERED),
        ("-j CT --helper ftp", Fate.DELIVERED),
        ("", Fate.DELIVERED),
    ],
)
def test_targets(target: str, fate: Fate) -> None:
    assert follow(node(target)).fate is fate


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["-j MARK --set-xmark 0x4000/0x4000"], 0x4000),
        (["-j MARK --set-xmark 0x5/0xffffffff", "-j MARK --set-xmark 0x0/0x4"], 1),
        (["-j MARK --set-mark 0x6/0x2"], 6),
        (["-j MARK --or-mark 0x3", "-j MARK --and-mark 0x2"], 2),
        (["-j MARK --set-xmark 0x7/0xffffffff", "-j CONNMARK --save-mark", "-j MARK --and-mark 0x0",
          "-j CONNMARK --restore-mark --nfmask 0x3 --ctmask 0x3"], 3),
        (["-j CONNMARK --set-xmark 0x9/0xffffffff", "-j CONNMARK --restore-mark"], 9),
    ],
)  # fmt: skip
def test_marks(targets: list[str], expected: int) -> None:
    (outcome,) = follow(node(*targets, table_name="mangle")).outcomes
    assert outcome.mark == expected


QUEUES = "    0   1234     0 2 65531     0     0        7  1\n    4   1234     0 2 65531     0     0        7  1\n"


@pytest.mark.parametrize(
    ("target", "queues", "fate"),
    [
        ("NFQUEUE --queue-num 0", "", Fate.DROPPED),
        ("NFQUEUE --queue-num 5", QUEUES, Fate.DROPPED),
        ("NFQUEUE --queue-num 4", QUEUES, Fate.MAY),
        ("NFQUEUE --queue-balance 5:9", QUEUES, Fate.DROPPED),
        ("NFQUEUE --queue-balance 3:9 --queue-cpu-fanout", QUEUES, Fate.MAY),
        ("NFQUEUE --queue-num 5 --queue-bypass", QUEUES, Fate.DELIVERED),
        ("NFQUEUE --queue-num 4 --queue-bypass", QUEUES, Fate.MAY),
        ("NFQUEUE --queue-num 0", None, Fate.MAY),
        ("NFQUEUE --queue-num 0 --queue-bypass", None, Fate.MAY),
        ("NFQUEUE --queue-num 0", "unheard of", Fate.MAY),
        ("NFQUEUE --queue-num x", "", Fate.MAY),
        ("QUEUE", "", Fate.DROPPED),
    ],
)
def test_a_queue_that_no_program_reads_loses_packets(target: str, queues: str | None, fate: Fate) -> None:
    save = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j {target}\nCOMMIT\n"
    found = snapshot(legacy=save, queues=queues)
    assert follow(Node(from_json(to_json(found)))).fate is fate


def test_the_reason_of_a_lost_packet_names_the_queue() -> None:
    save = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j NFQUEUE --queue-num 3\nCOMMIT\n"
    (step,) = follow(Node(snapshot(legacy=save, queues=""))).deciders
    assert (step.effect, step.detail) == (Effect.DROPPED, "no program reads queue 3")


def test_an_iptables_rule_that_nft_omits_is_read_from_its_save() -> None:
    objects = [
        table("filter"),
        chain("FORWARD", "forward", table="filter"),
        rule("FORWARD", {"xt": {"type": "match", "name": "multiport"}}, {"drop": None}, table="filter", handle=9),
    ]
    save = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp -m multiport --dports 80 -j DROP\nCOMMIT\n"
    assert follow(Node(snapshot(objects))).fate is Fate.MAY
    read = Node(snapshot(objects, saves=(Save(Family.IPV4, NFT, save),)))
    assert follow(read).fate is Fate.DELIVERED
    (step,) = follow(read, dport=80).deciders
    assert (step.place.handle, step.place.text) == (9, "-A FORWARD -p tcp -m multiport --dports 80 -j DROP")


def test_a_save_that_does_not_fit_the_chain_is_not_used() -> None:
    objects = [
        table("filter"),
        chain("FORWARD", "forward", table="filter"),
        rule("FORWARD", {"xt": {"type": "match", "name": "multiport"}}, {"drop": None}, table="filter"),
    ]
    save = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    assert follow(Node(snapshot(objects, saves=(Save(Family.IPV4, NFT, save),)))).fate is Fate.MAY


def test_dnat_then_masquerade() -> None:
    save = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 198.51.100.7:6443\n"
        "-A POSTROUTING -m conntrack --ctstate DNAT -s 10.244.0.0/16 -j MASQUERADE --random-fully\nCOMMIT\n"
    )
    (outcome,) = follow(Node(snapshot(legacy=save)), dst="10.96.0.1").outcomes
    assert (str(outcome.src), str(outcome.dst), outcome.device) == ("192.0.2.1", "198.51.100.7:6443", "eth0")
    assert [step.detail for step in outcome.deciders] == [
        "dnat 10.96.0.1:443 -> 198.51.100.7:6443",
        "masquerade 10.244.1.5:40000 -> 192.0.2.1",
    ]


@pytest.mark.parametrize(("source", "fate"), [(WORLD, Fate.DROPPED), (OWN, Fate.DELIVERED)])
def test_an_answer_is_translated_back_after_mangle(source: str, fate: Fate) -> None:
    """Its old source is at POSTROUTING what rules before NAT see."""
    pod, node, world = (Endpoint(ip_address(one), 80) for one in (POD, OWN, WORLD))
    save = f"*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s {source}/32 -j DROP\nCOMMIT\n"
    ends = {"src": WORLD, "dst": POD, "sport": 80, "dport": 80, "iif": "eth0"}
    connection = Connection(pod, node, pod, world)
    result = follow(Node(snapshot(legacy=save)), **ends, state=CtState.ESTABLISHED, reply=True, connection=connection)
    assert result.fate is fate


def test_netmap_translates_the_source_or_the_destination() -> None:
    lines = "-A POSTROUTING -s 10.244.1.0/24 -j C\n-A C -j NETMAP --to 10.99.1.0/24\n"
    save = f"*nat\n:POSTROUTING ACCEPT [0:0]\n:C - [0:0]\n{lines}COMMIT\n"
    (outcome,) = follow(Node(snapshot(legacy=save)), sport=1234).outcomes
    assert str(outcome.src) == "10.99.1.5:1234"
    assert [step.detail for step in outcome.deciders] == ["netmap 10.244.1.5:1234 -> 10.99.1.5:1234"]
    save = f"*nat\n:PREROUTING ACCEPT [0:0]\n:C - [0:0]\n{lines.replace('POST', 'PRE')}COMMIT\n"
    (outcome,) = follow(Node(snapshot(legacy=save)), sport=1234).outcomes
    assert (str(outcome.src), str(outcome.dst)) == ("10.244.1.5:1234", "10.99.1.7:443")


def test_netmap_of_an_odd_mask_is_not_known() -> None:
    save = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j NETMAP --to 10.0.0.0/255.0.255.0\nCOMMIT\n"
    result = follow(Node(snapshot(legacy=save)))
    assert result.fate is Fate.DELIVERED and not result.certain


def test_statistic_of_two_backends_has_two_outcomes() -> None:
    save = (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n"
        "-A PREROUTING -m statistic --mode random --probability 0.5 -p tcp -j DNAT --to-destination 10.244.2.5:80\n"
        "-A PREROUTING -p tcp -j DNAT --to-destination 198.51.100.7\nCOMMIT\n"
    )
    result = follow(Node(snapshot(legacy=save)))
    assert result.fate is Fate.DELIVERED
    assert not result.certain
    assert {outcome.device for outcome in result.outcomes} == {"eth0", "flannel.1"}


@pytest.mark.parametrize("target", ["-j NOTRACK", "-j CT --notrack"])
def test_an_untracked_packet_meets_no_nat(target: str) -> None:
    save = (
        f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {target}\nCOMMIT\n"
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    )
    (outcome,) = follow(Node(snapshot(legacy=save))).outcomes
    assert outcome.untracked
    assert str(outcome.src) == "10.244.1.5:40000"


def test_udp_icmp_and_established() -> None:
    assert follow(node("-p udp -m udp --dport 53 -j DROP"), proto=UDP, dport=53).fate is Fate.DROPPED
    icmp = node("-p icmp -m icmp --icmp-type 8 -j DROP")
    assert follow(icmp, proto=ICMP, sport=None, dport=None).fate is Fate.DROPPED
    established = node("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", policy="DROP")
    assert follow(established).fate is Fate.DROPPED
    assert follow(established, state=CtState.ESTABLISHED).fate is Fate.DELIVERED


def test_a_packet_of_the_node_has_an_owner() -> None:
    output = node("-m owner --uid-owner 0 -j DROP", chain_name="OUTPUT")
    assert output.evaluate(packet(src="192.0.2.1", iif="", uid=0)).fate is Fate.DROPPED
    assert output.evaluate(packet(src="192.0.2.1", iif="", uid=5)).fate is Fate.DELIVERED
    assert output.evaluate(packet(src="192.0.2.1", iif="")).fate is Fate.MAY


def test_a_save_that_was_cut_off_is_an_error() -> None:
    """Its last rule may lack what it matches."""
    whole = '*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment "for one" -s 192.0.2.9 -j DROP\nCOMMIT\n'
    for length in (whole.index(" one"), whole.index(" -s"), whole.index("COMMIT")):
        with pytest.raises(SnapshotError, match="cut short"):
            Node(snapshot(legacy=whole[:length]))


@pytest.mark.parametrize("comment", ["", "-j", "--dport", "!", "-m", "x"])
def test_a_comment_is_one_word_whatever_it_looks_like(comment: str) -> None:
    shown = comment if comment.isalpha() else f'"{comment}"'
    for saved in (shown, comment) if comment else (shown,):
        found, read = parts(f"-A FORWARD -m comment --comment {saved} -p tcp -j DROP")
        assert read == comment
        assert [(part.kind, part.name) for part in found][-1] == ("-j", "DROP")
        assert sum(len(part.options) for part in found) == 2


@pytest.mark.parametrize("prefix", ["test", '"a b"'])
def test_two_blanks_before_a_prefix_are_one(prefix: str) -> None:
    """As iptables before 1.8.8 prints it."""
    line = f'-A FORWARD -m comment --comment "x -j DROP" -j NFLOG --nflog-prefix  {prefix}'
    saved = "\n".join(("*filter", ":FORWARD ACCEPT [0:0]", line, "-A FORWARD -j DROP", "COMMIT", ""))
    assert tables(saved)["filter"]["FORWARD"].lines == [line, "-A FORWARD -j DROP"]
    found, comment = parts(line)
    assert comment == "x -j DROP"
    assert [(part.kind, part.name) for part in found] == [("", ""), ("-m", "comment"), ("-j", "NFLOG")]


def test_parts_keep_quoted_words_together() -> None:
    found, comment = parts(r'-A FORWARD -s 1.2.3.4/32 -m comment --comment "a \"b\" -j X" ! -i lo -j ACCEPT')
    assert comment == 'a "b" -j X'
    assert [(part.kind, part.name) for part in found] == [("", ""), ("", ""), ("-m", "comment"), ("-j", "ACCEPT")]


@pytest.mark.parametrize(
    ("match", "called", "fate"),
    [
        ("--physdev-in veth+", "1", Fate.DROPPED),
        ("--physdev-in veth0", "1", Fate.MAY),
        ("--physdev-in eth0", "1", Fate.DELIVERED),
        ("--physdev-is-in", "1", Fate.DROPPED),
        ("--physdev-in veth+", "0", Fate.DELIVERED),
    ],
)
def test_ports_of_the_pods_bridge(match: str, called: str, fate: Fate) -> None:
    """A packet keeps the port by which its bridge got it, if the bridge calls the rules."""
    ports = [{"ifname": name, "master": "cni0"} for name in ("veth0", "veth1")]
    links = json.dumps([{"ifname": "cni0", "linkinfo": {"info_kind": "bridge"}}, *ports])
    legacy = f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m physdev {match} -j DROP\nCOMMIT\n"
    found = snapshot(legacy=legacy, sysctls={"net.bridge.bridge-nf-call-iptables": called})
    assert follow(Node(replace(found, links=links))).fate is fate
