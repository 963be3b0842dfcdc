"""Rules as nf_tables holds them. tests/kernel compares them with what libnftables makes of the same words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from flanneld_masq.kernel.expressions import comment, describe
from flanneld_masq.kernel.objects import parse_rule
from flanneld_masq.kernel.rule_encoding import encode
from flanneld_masq.kernel.transactions import new_rule
from flanneld_masq.model import Family, Mark, Rule, Verdict

POD = ip_network("10.244.0.0/16")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("1", "", Verdict.RETURN, mark=Mark(0x4000, 0xC000)), "meta mark & 0x0000c000 == 0x00004000 return"),
        (Rule("1", "", Verdict.RETURN, mark=Mark(1, 0xFFFFFFFF)), "meta mark 0x00000001 return"),
        (Rule("2", "", Verdict.RETURN, src=POD, dst=ip_network("10.244.1.8/29")), "ip saddr {} ip daddr {} return"),
        (Rule("6", "", Verdict.MASQUERADE, dst_not=ip_network("224.0.0.0/4")), "ip daddr != {} masquerade"),
        (Rule("6", "", Verdict.MASQUERADE, src=POD, fully_random=True), "ip saddr {} masquerade fully-random"),
        (Rule("x", "", Verdict.DROP, src=POD, invalid=True), "ip saddr {} ct state invalid drop"),
        (Rule("x", "", Verdict.ACCEPT, dst=ip_network("10.9.8.7/32")), "ip daddr 10.9.8.7 accept"),
    ],
    ids=["mark", "whole mark", "networks", "not a network", "fully random", "invalid", "one address"],
)
def test_a_rule_does_what_its_words_say(rule: Rule, words: str) -> None:
    networks = [network for network in (rule.src, rule.dst, rule.dst_not) if network]
    encoded = encode(Family.IPV4, "c", replace(rule, tag="0123456789ab"))
    assert describe(encoded, Family.IPV4) == f'{words.format(*networks)} comment "flanneld-masq:0123456789ab"'
    assert comment(encoded) == "flanneld-masq:0123456789ab"
    assert parse_rule(new_rule("t", encoded).body) == ("t", encoded)


@pytest.mark.parametrize("length", [8, 9, 57, 64, 128])
def test_ipv6_networks_of_any_length(length: int) -> None:
    network = ip_network(f"fd00::/{length}")
    rule = encode(Family.IPV6, "c", Rule("x", "", Verdict.ACCEPT, src=network))
    words = str(network).replace("/128", "")
    assert describe(rule, Family.IPV6) == f'ip6 saddr {words} accept comment "flanneld-masq:"'
