"""Tables, chains and rules, decoded from the bytes of the kernel."""

from __future__ import annotations

import struct

import pytest

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32, nested, string
from flanneld_masq.kernel.objects import (
    Chain,
    Expression,
    KernelRule,
    Table,
    comment_in,
    following,
    is_after,
    parse_chain,
    parse_rule,
    parse_table,
)

from .answers import expression, rule_reply

COMMENT = b"\0\3hi\0"


class TestTables:
    def test_a_table_is_decoded(self) -> None:
        reply = string(uapi.NFTA_TABLE_NAME, "nat") + be32(uapi.NFTA_TABLE_FLAGS, 1) + be32(uapi.NFTA_TABLE_USE, 4)
        more = be32(uapi.NFTA_TABLE_OWNER, 9) + attribute(uapi.NFTA_TABLE_USERDATA, COMMENT)
        assert parse_table(reply) == Table("nat", 1, 4, 0)
        assert parse_table(reply + more) == Table("nat", 1, 4, 9, "hi")


class TestChains:
    NAMED = string(uapi.NFTA_CHAIN_NAME, "c") + attribute(uapi.NFTA_CHAIN_HANDLE, (5).to_bytes(8, "big"))

    def test_a_regular_chain_has_no_hook(self) -> None:
        assert parse_chain(self.NAMED + be32(uapi.NFTA_CHAIN_USE, 2)) == Chain("c", 5, 2, 0)

    def test_a_base_chain_is_decoded(self) -> None:
        priority = attribute(uapi.NFTA_HOOK_PRIORITY, struct.pack(">i", -7))
        hook = nested(uapi.NFTA_CHAIN_HOOK, be32(uapi.NFTA_HOOK_HOOKNUM, uapi.NF_INET_POST_ROUTING) + priority)
        reply = self.NAMED + hook + be32(uapi.NFTA_CHAIN_POLICY, uapi.NF_DROP) + string(uapi.NFTA_CHAIN_TYPE, "nat")
        assert parse_chain(reply) == Chain("c", 5, 0, 0, uapi.NF_INET_POST_ROUTING, -7, "nat", uapi.NF_DROP)

    def test_the_flag_of_base_chains_is_left_out(self) -> None:
        assert parse_chain(self.NAMED + be32(uapi.NFTA_CHAIN_FLAGS, uapi.NFT_CHAIN_BASE | 2)).flags == 2

    def test_the_comment_is_in_the_user_data(self) -> None:
        assert parse_chain(self.NAMED + attribute(uapi.NFTA_CHAIN_USERDATA, COMMENT)).comment == "hi"


class TestRules:
    def test_a_rule_is_decoded_with_its_table(self) -> None:
        reply = rule_reply(expression("cmp", b"abcd"), expression("masq", b""), userdata=b"\0\1x")
        expected = (Expression("cmp", b"abcd"), Expression("masq", b""))
        assert parse_rule(reply) == ("nat", KernelRule("POSTROUTING", 7, expected, b"\0\1x"))

    def test_a_rule_may_have_no_expressions(self) -> None:
        assert parse_rule(rule_reply())[1].expressions == ()

    def test_raw_leaves_out_handle_and_counters(self) -> None:
        def raw(count: bytes, handle: int = 7, value: bytes = b"abcd", userdata: bytes = b"\0\1x") -> str:
            expressions = (expression("counter", count), expression("cmp", value))
            return parse_rule(rule_reply(*expressions, handle=handle, userdata=userdata))[1].raw

        assert raw(b"\0" * 8, handle=8) == raw(b"\1" * 8)
        assert raw(b"", value=b"abce") != raw(b"")
        assert raw(b"", userdata=b"\0\1y") != raw(b"")

    def test_raw_says_if_there_is_a_counter(self) -> None:
        counted = parse_rule(rule_reply(expression("counter", b""), expression("cmp", b"")))[1]
        uncounted = parse_rule(rule_reply(expression("cmp", b"")))[1]
        assert counted.raw != uncounted.raw


class TestUserData:
    @pytest.mark.parametrize(
        ("userdata", "comment"), [(b"", ""), (COMMENT, "hi"), (b"\1\1x" + COMMENT, "hi"), (b"\1\1x", ""), (b"\0", "")]
    )
    def test_the_comment_is_found(self, userdata: bytes, comment: str) -> None:
        assert comment_in(userdata) == comment


class TestGenerations:
    def test_they_are_counted_modulo_2_to_the_32(self) -> None:
        assert (following(5), following(5, 3), following(0xFFFFFFFF, 2)) == (6, 8, 1)

    @pytest.mark.parametrize(
        ("generation", "other", "expected"),
        [
            (6, 5, True),
            (5, 5, False),
            (5, 6, False),
            (1, 0xFFFFFFFF, True),
            (0xFFFFFFFF, 1, False),
            (1 << 31, 0, False),
        ],
    )
    def test_a_later_one_is_after(self, generation: int, other: int, expected: bool) -> None:
        assert is_after(generation, other) is expected
