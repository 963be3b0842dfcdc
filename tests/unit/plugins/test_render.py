"""The same ruleset in the language of nft."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from flanneld_masq_nft import render
from flanneld_masq_nft.backend import NftBackend

from flanneld_masq.hookspecs import Host
from flanneld_masq.model import Desired, Group, GroupRules, ItemKind, Position, Rule, Verdict
from flanneld_masq.process import ProcessRunner

from .ruleset import BOTH, NOTHING, V4, V6


class TestNftInput:
    BLOCK = """\
table ip flanneld-masq {
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "flanneld-masq:aaaaaaaaaaaa"
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return comment "flanneld-masq:bbbbbbbbbbbb"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld-masq:cccccccccccc"
		ip daddr 10.244.0.0/16 masquerade comment "flanneld-masq:dddddddddddd"
	}

	chain forward {
		type filter hook forward priority 0; policy accept;
		ip saddr 10.244.0.0/16 accept comment "flanneld-masq:ffffffffffff"
	}
}
"""

    def test_both_groups(self) -> None:
        assert render.render(BOTH) == self.BLOCK
        assert NftBackend(V4, Host(ProcessRunner(path=()))).render(BOTH) == self.BLOCK

    def test_the_position_makes_no_difference(self) -> None:
        assert render.render(replace(BOTH, position=Position.FIRST)) == self.BLOCK

    def test_ipv6(self) -> None:
        network = ip_network("fd00:10:244::/56")
        group = GroupRules(Group.FORWARD, (Rule("x", "", Verdict.ACCEPT, dst=network, tag="aaaaaaaaaaaa"),))
        assert render.render(Desired(V6, (group,))).splitlines() == [
            "table ip6 flanneld-masq {",
            "\tchain forward {",
            "\t\ttype filter hook forward priority 0; policy accept;",
            '\t\tip6 daddr fd00:10:244::/56 accept comment "flanneld-masq:aaaaaaaaaaaa"',
            "\t}",
            "}",
        ]

    def test_packets_of_no_connection(self) -> None:
        network = ip_network("10.244.0.0/16")
        group = GroupRules(Group.FORWARD, (Rule("x", "", Verdict.DROP, src=network, invalid=True, tag="aa"),))
        text = 'ip saddr 10.244.0.0/16 ct state invalid drop comment "flanneld-masq:aa"'
        assert f"\t\t{text}\n" in render.render(Desired(V4, (group,)))

    def test_no_groups(self) -> None:
        assert render.render(NOTHING) == ""
        assert render.items(NOTHING) == ()

    def test_desired_items_are_what_is_written(self) -> None:
        wanted = render.items(BOTH)
        assert [item.kind for item in wanted] == ["table", "chain", *["rule"] * 4, "chain", "rule"]
        assert all(item.text in self.BLOCK for item in wanted if item.kind is not ItemKind.TABLE)
        assert wanted[0].text == "table ip flanneld-masq holding 2 chains, sets and objects"
