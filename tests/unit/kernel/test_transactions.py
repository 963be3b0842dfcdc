"""Changes of nf_tables as messages: what is written is what was read."""

from __future__ import annotations

import pytest

from flanneld_masq.kernel import transactions, uapi
from flanneld_masq.kernel.netlink_wire import attributes, nft_msg_type, u32
from flanneld_masq.kernel.objects import Chain, Expression, KernelRule, parse_chain, parse_rule
from flanneld_masq.kernel.transactions import Message

BASE = Chain("c", 0, 0, 0, uapi.NF_INET_POST_ROUTING, -100, "nat", uapi.NF_DROP)
RULE = KernelRule("c", 0, (Expression("masq", b""), Expression("cmp", b"abcd")), b"\0\1x")


class TestRules:
    def test_a_rule_is_written_as_it_was_read(self) -> None:
        assert parse_rule(transactions.new_rule("nat", RULE).body) == ("nat", RULE)

    @pytest.mark.parametrize(
        ("ahead", "flags"), [(False, uapi.NLM_F_CREATE | uapi.NLM_F_APPEND), (True, uapi.NLM_F_CREATE)]
    )
    def test_a_rule_goes_behind_or_ahead_of_all_others(self, ahead: bool, flags: int) -> None:
        assert transactions.new_rule("nat", RULE, ahead=ahead).flags == flags

    def test_a_rule_is_deleted_by_its_handle(self) -> None:
        deletion = dict(attributes(transactions.delete_rule("nat", "c", 258).body))
        assert deletion[uapi.NFTA_RULE_HANDLE] == b"\0\0\0\0\0\0\1\2"
        assert uapi.NFTA_RULE_HANDLE not in dict(attributes(transactions.flush_chain("nat", "c").body))


class TestChains:
    def test_a_chain_comes_back_without_a_policy(self) -> None:
        body = transactions.new_chain("nat", BASE).body
        chain = parse_chain(body)
        assert (chain.hook, chain.priority, chain.type, chain.policy) == (BASE.hook, -100, "nat", None)

    def test_a_chain_may_be_given_a_policy(self) -> None:
        body = transactions.new_chain("nat", BASE, policy=BASE.policy).body
        assert u32(dict(attributes(body))[uapi.NFTA_CHAIN_POLICY]) == uapi.NF_DROP

    def test_a_regular_chain_has_a_name_alone(self) -> None:
        chain = Chain("c", 0, 0, 0)
        assert list(dict(attributes(transactions.new_chain("nat", chain).body))) == [
            uapi.NFTA_CHAIN_TABLE,
            uapi.NFTA_CHAIN_NAME,
        ]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (transactions.new_table("t"), uapi.NFT_MSG_NEWTABLE),
        (transactions.delete_table("t"), uapi.NFT_MSG_DELTABLE),
        (transactions.new_chain("t", BASE), uapi.NFT_MSG_NEWCHAIN),
        (transactions.delete_chain("t", "c"), uapi.NFT_MSG_DELCHAIN),
        (transactions.new_rule("t", RULE), uapi.NFT_MSG_NEWRULE),
        (transactions.delete_rule("t", "c", 1), uapi.NFT_MSG_DELRULE),
        (transactions.flush_chain("t", "c"), uapi.NFT_MSG_DELRULE),
    ],
)
def test_each_change_has_its_message_type(change: Message, kind: int) -> None:
    assert change.kind == nft_msg_type(kind)
