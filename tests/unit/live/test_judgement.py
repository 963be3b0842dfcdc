"""The judgement of a packet names its fate and the rule that decided it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from flanneld_masq.cli.live_output import packet_json, packet_lines, trace_json, trace_lines, verdict_text
from flanneld_masq.errors import CommandError
from flanneld_masq.kernel.objects import Chain
from flanneld_masq.kernel.trace_events import Header, LegacyStep, NftStep, Step, StepKind
from flanneld_masq.live.counters import Growth, counted, grown
from flanneld_masq.live.journey import Fate, Journey
from flanneld_masq.live.judgement import Traced, judge
from flanneld_masq.live.rule_texts import LegacyChain, RuleTexts, listed_rules
from flanneld_masq.live.tracer import Trace
from flanneld_masq.model import Family
from flanneld_masq.process import Completed, ProcessRunner

POD, WORLD, NODE = map(ip_address, ("10.244.1.5", "192.0.2.7", "192.0.2.1"))
HEADER = Header(POD, WORLD, 17, 4000, 53, iif=3)
RULES = {7: "ip saddr 10.244.0.0/16 drop", 8: "ip saddr 10.244.0.0/16 masquerade"}
CHAINS = {
    "FORWARD": LegacyChain("DROP", ("-A FORWARD -j ufw-user", "-A FORWARD -j LOG", "-A FORWARD -g ufw-user")),
    "ufw-user": LegacyChain("", ("-A ufw-user -s 10.244.0.0/16 -j REJECT --reject-with icmp-port-unreachable",)),
    "noted": LegacyChain(
        "", ('-A noted -m comment --comment "no masquerade" -j ACCEPT', "-A noted -j SNAT --to-source 192.0.2.1")
    ),
    "quoted": LegacyChain(
        "",
        (
            '-A quoted -j LOG --log-prefix "x -j DROP "',
            '-A quoted -m comment --comment "x -j DROP"',
            '-A quoted -j DROP -m comment --comment "open',
        ),
    ),
    "POSTROUTING": LegacyChain("ACCEPT", ("-A POSTROUTING -j MASQUERADE", "-A POSTROUTING -m comment --comment x")),
}


class Texts(RuleTexts):
    def __init__(self) -> None:
        super().__init__(ProcessRunner(()), Family.IPV4)
        self._legacy = {"filter": CHAINS, "nat": CHAINS}

    def chain(self, nfproto: int, table: str, name: str) -> Chain:
        return Chain(name, 1, 1, 0, {"FORWARD": 2, "POSTROUTING": 4}.get(name))

    def text(self, nfproto: int, table: str, chain: str, handle: int) -> str:
        return RULES.get(handle, "")


def judged(*steps: Step, end: Header | None = None) -> Traced:
    return judge(Journey(HEADER, HEADER, list(steps), end), Texts(), lambda index: f"eth{index}")


def nft(verdict: str, handle: int = 7, chain: str = "FORWARD", kind: StepKind = StepKind.RULE) -> NftStep:
    return NftStep(1, "firewalld", chain, kind, 1, handle, verdict)


def legacy(chain: str, number: int, kind: StepKind = StepKind.RULE, hook: int = 2) -> LegacyStep:
    return LegacyStep("filter", chain, kind, number, hook, HEADER)


def test_a_dropped_packet_names_the_rule() -> None:
    packet = judged(nft("jump"), nft("drop", chain="inner"))
    assert (packet.fate, packet.hook, packet.device_in) == (Fate.DROPPED, "forward", "eth3")
    assert verdict_text(packet) == (
        "dropped in forward by inet firewalld inner handle 7 (firewalld): ip saddr 10.244.0.0/16 drop"
    )


def test_a_policy_drops() -> None:
    packet = judged(nft("drop", 0, kind=StepKind.POLICY))
    assert verdict_text(packet) == "dropped in forward by inet firewalld FORWARD policy (firewalld)"


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (legacy("FORWARD", 1), "jump ufw-user"),
        (legacy("FORWARD", 2), "LOG"),
        (legacy("FORWARD", 3), "goto ufw-user"),
        (legacy("FORWARD", 4, StepKind.POLICY), "drop"),
        (legacy("ufw-user", 1), "drop"),
        (legacy("ufw-user", 2, StepKind.RETURN), "return"),
        (legacy("POSTROUTING", 1), "accept"),
        (legacy("POSTROUTING", 2), "continue"),
        (legacy("ufw-user", 1, StepKind.RETURN), "drop"),
        (legacy("FORWARD", 1, StepKind.POLICY), "jump ufw-user"),
        (legacy("gone", 1), "continue"),
        (legacy("quoted", 1), "LOG"),
        (legacy("quoted", 2), "continue"),
        (legacy("quoted", 3), "continue"),
    ],
)
def test_verdicts_of_ip_tables(step: LegacyStep, verdict: str) -> None:
    assert judged(step).steps[0].verdict == verdict


def test_a_translated_packet_names_the_rule_of_its_hook() -> None:
    end = replace(HEADER, src=NODE, oif=4)
    packet = judged(nft("accept"), nft("accept", 8, "POSTROUTING"), end=end)
    assert (packet.fate, [step.handle for step in packet.decided], packet.device_out) == (Fate.TRANSLATED, [8], "eth4")


@pytest.mark.parametrize(
    "text",
    [
        'accept comment "no masquerade"',
        'accept comment "a \\" masquerade"',
        'log prefix "no snat: " accept',
        'accept comment "masquerade, \\"',
    ],
)
def test_what_a_rule_quotes_translates_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, 6, text)
    end = replace(HEADER, src=NODE)
    assert judged(nft("accept", 6, "POSTROUTING"), nft("accept", 8, "POSTROUTING"), end=end).decided[0].handle == 8


def test_a_rule_of_iptables_nft_translates_by_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, 6, 'counter packets 1 bytes 60 xt target "MASQUERADE"')
    assert judged(nft("accept", 6, "POSTROUTING"), end=replace(HEADER, src=NODE)).decided[0].handle == 6


def test_a_comment_of_ip_tables_translates_nothing() -> None:
    steps = legacy("noted", 1, hook=4), legacy("noted", 2, hook=4)
    packet = judged(*steps, end=replace(HEADER, src=NODE))
    assert [step.number for step in packet.decided] == [2]


def test_a_later_packet_of_a_connection_names_no_rule() -> None:
    packet = judged(end=replace(HEADER, src=NODE))
    assert "decided by the first packet of its connection" in verdict_text(packet)


def test_a_packet_that_no_rule_stopped_is_lost() -> None:
    assert verdict_text(judged()).startswith("lost after the first hook, by no rule that reports it: check forwarding")


def test_a_queued_packet_waits_for_a_program() -> None:
    assert judged(nft("queue")).fate is Fate.QUEUED


def test_lines_count_packets_that_went_the_same_way() -> None:
    dropped, delivered = judged(nft("drop")), judged(end=HEADER)
    trace = Trace((), (dropped, dropped, dropped, delivered), (Growth("nat", "X", 1, "-A X", 2),), ("why",))
    lines = list(trace_lines(trace))
    assert [line for line in lines if not line.startswith("  ")] == [
        "packet 1: 10.244.1.5:4000 -> 192.0.2.7:53 udp, by eth3",
        "and 2 more that went the same way",
        "packet 4: 10.244.1.5:4000 -> 192.0.2.7:53 udp, by eth3",
        "rules of legacy iptables whose counters grew meanwhile, by packets of this flow or of another:",
        "cannot tell: why",
    ]
    assert "  nat X rule 1: 2 packets: -A X" in lines
    assert trace_json(trace)["seen"] == 4


def test_the_json_of_a_packet() -> None:
    found = packet_json(judged(nft("drop")))
    assert found["fate"] == "dropped" and found["to"] is None
    assert (
        found["decided_by"]
        == found["steps"]
        == [
            {
                "backend": "nf_tables",
                "hook": "forward",
                "table": "inet firewalld",
                "chain": "FORWARD",
                "kind": "rule",
                "handle": 7,
                "number": None,
                "text": RULES[7],
                "verdict": "drop",
                "owner": "firewalld",
            }
        ]
    )
    assert len(list(packet_lines(judged(nft("drop"))))) == 2


def test_rules_are_read_from_the_listing_of_a_chain() -> None:
    printed = """\
# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
\tchain POSTROUTING { # handle 3
\t\tcomment "of a program"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr { 10.0.0.1, 10.0.0.2,
\t\t\t     10.0.0.3 } masquerade # handle 4
\t\tcounter comment "x # handle 9" # handle 5
\t}
}
"""
    assert list(listed_rules(printed)) == [
        (4, "ip saddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } masquerade"),
        (5, 'counter comment "x # handle 9"'),
    ]


class Silent(ProcessRunner):
    """No program is installed."""

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        raise CommandError(argv, "could not be started")


def test_a_missing_tool_is_said_once() -> None:
    texts = RuleTexts(Silent(()), Family.IPV4)
    assert texts.text(2, "filter", "FORWARD", 4) == texts.text(2, "filter", "INPUT", 4) == ""
    assert texts.legacy("nat", "POSTROUTING") == LegacyChain("", ())
    assert len(texts.troubles) == 2  # nft, iptables-legacy-save


class Listing(ProcessRunner):
    """nft lists every chain but one that is gone."""

    def __call__(
        self, argv: tuple[str, ...], *, executable: str | None = None, stdin: str = "", timeout: float = 0.0
    ) -> Completed:
        if argv[-1] == "gone":
            raise CommandError(argv, "failed with exit status 1", status=1)
        return Completed(argv, f"table ip t {{\n\tchain {argv[-1]} {{\n\t\tdrop # handle 4\n\t}}\n}}\n", "")


def test_a_chain_that_is_gone_does_not_hide_the_others() -> None:
    texts = RuleTexts(Listing(()), Family.IPV4)
    assert [texts.text(2, "t", chain, 4) for chain in ("gone", "left")] == ["", "drop"]


def test_names_that_nft_cannot_read_are_not_given_to_it() -> None:
    texts = RuleTexts(Silent(()), Family.IPV4)
    assert texts.text(2, "filter", "odd; flush ruleset", 4) == "" and texts.troubles == []


def test_counters_that_grew() -> None:
    printed = "*nat\n:A - [0:0]\n[{}:60] -A A -j B\n[5:60] -A A -j C\n[{}:0] -A B -j D\nCOMMIT\n"
    before, after = (tuple(counted(printed.format(*numbers))) for numbers in ((1, 0), (3, 1)))
    assert list(grown("nat", before, after)) == [
        Growth("nat", "A", 1, "-A A -j B", 2),
        Growth("nat", "B", 1, "-A B -j D", 1),
    ]
    assert list(grown("nat", before, after[1:])) == []


def test_a_newline_in_a_comment_does_not_end_a_counted_rule() -> None:
    line = '-A A -m comment --comment "one\ntwo" -j B'
    assert list(counted(f"*nat\n:A - [0:0]\n[3:60] {line}\n[5:60] -A A -j C\nCOMMIT\n")) == [
        (line, 3),
        ("-A A -j C", 5),
    ]
