"""Rules of the kernel in words. The attributes are built as nf_tables.h lays them out."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import Decision, comment, decision, describe, jump_target
from flanneld_masq.kernel.netlink_wire import attribute, be32, nested, string
from flanneld_masq.kernel.objects import Expression, KernelRule
from flanneld_masq.model import Family

V4, V6 = Family.IPV4, Family.IPV6


def data(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(uapi.NFTA_DATA_VALUE, value))


def payload(offset: int, length: int, base: int = uapi.NFT_PAYLOAD_NETWORK_HEADER, register: int = 1) -> Expression:
    source = be32(uapi.NFTA_PAYLOAD_BASE, base) + be32(uapi.NFTA_PAYLOAD_OFFSET, offset)
    return Expression("payload", be32(uapi.NFTA_PAYLOAD_DREG, register) + source + be32(uapi.NFTA_PAYLOAD_LEN, length))


def meta(key: int, register: int = 1) -> Expression:
    return Expression("meta", be32(uapi.NFTA_META_KEY, key) + be32(uapi.NFTA_META_DREG, register))


def bitwise(mask: bytes, xor: bytes | None = None, register: int = 1) -> Expression:
    registers = be32(uapi.NFTA_BITWISE_SREG, register) + be32(uapi.NFTA_BITWISE_DREG, register)
    masks = data(uapi.NFTA_BITWISE_MASK, mask) + data(uapi.NFTA_BITWISE_XOR, xor or bytes(len(mask)))
    return Expression("bitwise", registers + be32(uapi.NFTA_BITWISE_LEN, len(mask)) + masks)


def cmp(value: bytes, operator: int = uapi.NFT_CMP_EQ, register: int = 1) -> Expression:
    operands = be32(uapi.NFTA_CMP_SREG, register) + be32(uapi.NFTA_CMP_OP, operator)
    return Expression("cmp", operands + data(uapi.NFTA_CMP_DATA, value))


def verdict(code: int, chain: str = "") -> Expression:
    body = attribute(uapi.NFTA_VERDICT_CODE, struct.pack(">i", code))
    body += string(uapi.NFTA_VERDICT_CHAIN, chain) if chain else b""
    value = nested(uapi.NFTA_IMMEDIATE_DATA, nested(uapi.NFTA_DATA_VERDICT, body))
    return Expression("immediate", be32(uapi.NFTA_IMMEDIATE_DREG, 0) + value)


def immediate(value: bytes) -> Expression:
    """Load a register with data."""
    return Expression("immediate", be32(uapi.NFTA_IMMEDIATE_DREG, 1) + data(uapi.NFTA_IMMEDIATE_DATA, value))


def masq(flags: int | None = None) -> Expression:
    return Expression("masq", b"" if flags is None else be32(uapi.NFTA_MASQ_FLAGS, flags))


def counter() -> Expression:
    return Expression(
        "counter", attribute(uapi.NFTA_COUNTER_BYTES, bytes(8)) + attribute(uapi.NFTA_COUNTER_PACKETS, bytes(8))
    )


def xt(kind: str, name: str, info: bytes) -> Expression:
    """A match or a target; their attributes have the same numbers."""
    revision = be32(uapi.NFTA_MATCH_REV, 0)
    return Expression(kind, string(uapi.NFTA_MATCH_NAME, name) + revision + attribute(uapi.NFTA_MATCH_INFO, info))


def host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def userdata(text: str, before: bytes = b"") -> bytes:
    value = text.encode() + b"\0"
    return before + bytes((0, len(value))) + value


def rule(*expressions: Expression, data: bytes = b"") -> KernelRule:
    return KernelRule("c", 1, expressions, data)


def words(*expressions: Expression, family: Family = V4) -> str:
    return describe(rule(*expressions), family)


RETURN, ACCEPT, DROP = verdict(uapi.NFT_RETURN), verdict(uapi.NF_ACCEPT), verdict(uapi.NF_DROP)
ADDRESS = IPv4Address("10.244.0.0").packed
ADDRESS_V6 = IPv6Address("fd00:10:244::").packed


class TestNative:
    """Rules that `nft` writes."""

    def test_the_rules_of_the_ipv4_table(self) -> None:
        subnet = (payload(12, 3), cmp(IPv4Address("10.244.1.0").packed[:3]))
        network = (payload(16, 2), cmp(ADDRESS[:2]))
        assert words(*subnet, *network, RETURN) == "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return"
        assert words(meta(uapi.NFT_META_MARK), bitwise(host(0x4000)), cmp(host(0x4000)), RETURN) == (
            "meta mark & 0x00004000 == 0x00004000 return"
        )
        multicast = (payload(16, 1), bitwise(b"\xf0"), cmp(b"\xe0", operator=uapi.NFT_CMP_NEQ))
        assert (
            words(*multicast, masq(uapi.NF_NAT_RANGE_PROTO_RANDOM_FULLY))
            == "ip daddr != 224.0.0.0/4 masquerade fully-random"
        )

    def test_the_rules_of_the_ipv6_table(self) -> None:
        network = (payload(8, 16), bitwise(ip_network("fd00:10:244::/56").netmask.packed), cmp(ADDRESS_V6))
        assert words(*network, masq(), family=V6) == "ip6 saddr fd00:10:244::/56 masquerade"
        assert (
            words(payload(24, 1), cmp(b"\xff", uapi.NFT_CMP_NEQ), masq(), family=V6)
            == "ip6 daddr != ff00::/8 masquerade"
        )
        assert words(payload(24, 16), cmp(ADDRESS_V6), ACCEPT, family=V6) == "ip6 daddr fd00:10:244:: accept"

    def test_a_single_address_has_no_prefix(self) -> None:
        assert words(payload(12, 4), cmp(ADDRESS), DROP) == "ip saddr 10.244.0.0 drop"

    @pytest.mark.parametrize(
        ("code", "text"),
        [
            (uapi.NF_ACCEPT, "accept"),
            (uapi.NF_DROP, "drop"),
            (uapi.NFT_CONTINUE, "continue"),
            (uapi.NFT_BREAK, "break"),
            (uapi.NFT_RETURN, "return"),
            (3, "verdict 3"),
            (-9, "verdict -9"),
        ],
    )
    def test_verdicts(self, code: int, text: str) -> None:
        assert words(verdict(code)) == text

    def test_jumps(self) -> None:
        assert words(verdict(uapi.NFT_JUMP, "KUBE-X")) == "jump KUBE-X"
        assert words(verdict(uapi.NFT_GOTO, "KUBE-X")) == "goto KUBE-X"

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (None, ""),
            (0, ""),
            (uapi.NF_NAT_RANGE_PROTO_RANDOM, " random"),
            (uapi.NF_NAT_RANGE_PROTO_RANDOM_FULLY, " fully-random"),
            (uapi.NF_NAT_RANGE_PERSISTENT | uapi.NF_NAT_RANGE_PROTO_RANDOM_FULLY, " persistent,fully-random"),
        ],
    )
    def test_masquerade(self, flags: int | None, text: str) -> None:
        assert words(masq(flags)) == f"masquerade{text}"

    @pytest.mark.parametrize(
        ("operator", "sign"),
        [
            (uapi.NFT_CMP_EQ, ""),
            (uapi.NFT_CMP_NEQ, "!= "),
            (uapi.NFT_CMP_LT, "< "),
            (uapi.NFT_CMP_LTE, "<= "),
            (uapi.NFT_CMP_GT, "> "),
            (uapi.NFT_CMP_GTE, ">= "),
            (9, "? "),
        ],
    )
    def test_comparisons(self, operator: int, sign: str) -> None:
        assert words(payload(12, 4), cmp(ADDRESS, operator), DROP) == f"ip saddr {sign}10.244.0.0 drop"

    def test_marks_without_a_mask(self) -> None:
        assert words(meta(uapi.NFT_META_MARK), cmp(host(0x10))) == "meta mark 0x00000010"
        assert words(meta(uapi.NFT_META_MARK), cmp(host(0x10), uapi.NFT_CMP_NEQ)) == "meta mark != 0x00000010"

    def test_other_keys(self) -> None:
        assert words(meta(uapi.NFT_META_OIFNAME), cmp(b"eth0\0")) == "meta oifname 0x6574683000"
        assert words(meta(99), cmp(b"\x01")) == "meta key 99 0x01"

    def test_registers_are_followed_one_by_one(self) -> None:
        described = words(
            payload(12, 4, register=1), payload(16, 4, register=9), cmp(ADDRESS, register=9), cmp(ADDRESS)
        )
        assert described == "ip daddr 10.244.0.0 ip saddr 10.244.0.0"

    def test_an_unloaded_register_is_unknown(self) -> None:
        assert words(cmp(b"\x01\x02")) == "? 0x0102"

    def test_counters_are_left_out(self) -> None:
        assert words(counter(), DROP) == "drop"

    def test_a_port(self) -> None:
        assert (
            words(payload(2, 2, base=uapi.NFT_PAYLOAD_TRANSPORT_HEADER), cmp(b"\x00\x50"), ACCEPT)
            == "@2,16,16 0x0050 accept"
        )

    def test_a_rule_without_expressions(self) -> None:
        assert words() == "(no expression)"

    def test_an_unknown_expression_is_shown_in_hex(self) -> None:
        assert words(Expression("vmap", b"")) == "vmap()"
        assert words(Expression("lookup", be32(1, 5))) == "lookup(0800010000000005)"
        assert words(immediate(b"\x05")).startswith("immediate(")


VALUES = st.sampled_from(
    [
        b"",
        b"\x01",
        host(1),
        ADDRESS,
        ADDRESS_V6,
        (12).to_bytes(4, "big"),
        attribute(1, b"x"),
        attribute(2, verdict(0).data),
    ]
)
EXPRESSIONS = st.builds(
    lambda name, values: Expression(name, b"".join(attribute(kind, value) for kind, value in enumerate(values, 1))),
    st.sampled_from(["payload", "cmp", "meta", "bitwise", "immediate", "masq", "match", "target", "reject", "x"]),
    st.lists(VALUES, max_size=5),
)


class TestStrange:
    """Rules that another program may put into the chain: they are described, and never a reason to fail."""

    def test_both_addresses_at_once(self) -> None:
        assert words(payload(12, 8), cmp(ADDRESS + ADDRESS), DROP) == "@1,96,64 0x0af400000af40000 drop"

    def test_a_value_longer_than_the_loaded_field(self) -> None:
        assert words(payload(12, 4), cmp(ADDRESS + b"\x01"), DROP) == "ip saddr 0x0af4000001 drop"

    def test_a_mask_with_holes(self) -> None:
        held = words(payload(12, 4), bitwise(b"\xff\x00\xff\x00"), cmp(ADDRESS), DROP)
        assert held == "ip saddr & 0xff00ff00 0x0af40000 drop"

    def test_a_mask_longer_than_the_address(self) -> None:
        assert words(payload(12, 4), bitwise(b"\xff" * 8), cmp(ADDRESS)) == "ip saddr & 0xffffffffffffffff 0x0af40000"

    def test_inverted_bits_are_shown_in_hex(self) -> None:
        turned = bitwise(host(0xFF), xor=host(1))
        assert words(meta(uapi.NFT_META_MARK), turned, cmp(host(1))).startswith("bitwise(")

    def test_fields_of_the_other_family(self) -> None:
        assert words(payload(8, 16), cmp(ADDRESS_V6), family=V4).startswith("@1,64,128 0xfd00")
        assert words(payload(12, 4), cmp(ADDRESS), family=V6).startswith("@1,96,32 0x0af4")

    @settings(max_examples=25)
    @given(st.lists(EXPRESSIONS, max_size=4), st.binary(max_size=12), st.sampled_from(Family))
    def test_any_rule_gives_a_line_or_a_kernel_error(
        self, expressions: list[Expression], more: bytes, family: Family
    ) -> None:
        made = rule(*expressions, data=more)
        try:
            line, *_ = (describe(made, family), comment(made), jump_target(made), decision(made))
        except KernelError:
            return
        assert line


class TestCompatible:
    """Rules that `iptables-nft` writes: some expressions are native, some are passed through to xtables extensions."""

    def test_marks(self) -> None:
        assert words(xt("match", "mark", struct.pack("=IIB", 0x4000, 0x4000, 0)), RETURN) == (
            "meta mark & 0x00004000 == 0x00004000 return"
        )
        assert words(xt("match", "mark", struct.pack("=IIB", 1, 0xFF, 1))) == "meta mark & 0x000000ff != 0x00000001"

    def test_masquerade(self) -> None:
        # struct nf_nat_ipv4_multi_range_compat: a count, then the range with its flags
        assert words(xt("target", "MASQUERADE", struct.pack("=II", 1, 16) + bytes(12))) == "masquerade fully-random"
        assert words(xt("target", "MASQUERADE", struct.pack("=II", 1, 0) + bytes(12))) == "masquerade"
        # struct nf_nat_range
        described = words(xt("target", "MASQUERADE", struct.pack("=I", 16) + bytes(36)), family=V6)
        assert described == "masquerade fully-random"

    def test_state_of_a_connection(self) -> None:
        state = Expression("ct", be32(uapi.NFTA_CT_DREG, 1) + be32(uapi.NFTA_CT_KEY, uapi.NFT_CT_STATE))
        bits = {1: "ct state invalid", 6: "ct state 0x6"}
        for bit, expected in bits.items():
            assert words(state, bitwise(host(bit)), cmp(host(0), uapi.NFT_CMP_NEQ)) == expected
        info = bytearray(164)
        struct.pack_into("=HHHH", info, 146, 1, 0, 1, 0)
        assert words(xt("match", "conntrack", bytes(info))) == "ct state invalid"
        struct.pack_into("=H", info, 148, 1)
        assert words(xt("match", "conntrack", bytes(info))).startswith("xt conntrack(0000")

    def test_other_extensions_are_shown_in_hex(self) -> None:
        assert words(xt("match", "addrtype", b"\x01\x02\x00\x00")) == "xt addrtype(0102)"
        assert words(xt("match", "mark", b"\x01")) == "xt mark(01)"
        assert words(xt("target", "MASQUERADE", b"")) == "xt MASQUERADE()"

    def test_a_comment_match_is_the_comment(self) -> None:
        made = rule(
            xt("match", "comment", b"flanneld-masq:abc\0".ljust(256, b"\0")), counter(), verdict(uapi.NFT_JUMP, "X")
        )
        assert comment(made) == "flanneld-masq:abc"
        assert describe(made, V4) == 'jump X comment "flanneld-masq:abc"'


class TestComments:
    def test_a_comment_in_the_user_data(self) -> None:
        made = rule(DROP, data=userdata("flanneld-masq:abc"))
        assert comment(made) == "flanneld-masq:abc"
        assert describe(made, V4) == 'drop comment "flanneld-masq:abc"'

    def test_a_comment_behind_other_user_data(self) -> None:
        assert comment(rule(DROP, data=userdata("ours", before=bytes((1, 3)) + b"\0\0\0"))) == "ours"

    @pytest.mark.parametrize("data", [b"", b"\0", b"\1", b"\1\5", b"\1\0\1\0", b"\xff\xff\xff"])
    def test_no_comment(self, data: bytes) -> None:
        assert comment(rule(DROP, data=data)) == ""

    def test_a_comment_that_is_not_utf_8(self) -> None:
        assert comment(rule(DROP, data=b"\x00\x03\xff\xfe\x00")) == "\ufffd\ufffd"

    def test_user_data_go_before_a_match(self) -> None:
        made = rule(xt("match", "comment", b"in the match\0"), data=userdata("in the data"))
        assert comment(made) == "in the data"


class TestQuestions:
    @pytest.mark.parametrize(
        ("expressions", "target"),
        [
            ((), None),
            ((DROP,), None),
            ((verdict(uapi.NFT_JUMP, "A"),), "A"),
            ((counter(), verdict(uapi.NFT_GOTO, "B")), "B"),
            ((immediate(b"\x05"), verdict(uapi.NFT_JUMP, "C")), "C"),
            ((xt("target", "MASQUERADE", bytes(20)),), None),
        ],
    )
    def test_the_target_of_a_jump(self, expressions: tuple[Expression, ...], target: str | None) -> None:
        assert jump_target(rule(*expressions)) == target

    @pytest.mark.parametrize(
        ("expressions", "expected"),
        [
            ((DROP,), ("drop", "", True)),
            ((counter(), DROP), ("drop", "", True)),
            ((xt("match", "comment", b"why\0"), counter(), DROP), ("drop", "", True)),
            ((xt("match", "conntrack", bytes(4)), counter(), DROP), ("drop", "", False)),
            ((meta(uapi.NFT_META_MARK), cmp(host(1)), DROP), ("drop", "", False)),
            ((Expression("limit", b""), DROP), ("drop", "", False)),
            ((Expression("reject", be32(uapi.NFTA_REJECT_TYPE, 0)),), ("drop", "", True)),
            ((xt("target", "REJECT", bytes(4)),), ("drop", "", True)),
            ((Expression("log", b""), DROP), ("drop", "", True)),
            ((Expression("lookup", b""),), ("vmap", "", False)),
            ((Expression("lookup", b""), DROP), ("drop", "", False)),
            ((Expression("queue", b""),), ("queue", "", True)),
            ((xt("target", "NFQUEUE", bytes(4)),), ("queue", "", True)),
            ((ACCEPT,), ("accept", "", True)),
            ((RETURN,), ("return", "", True)),
            ((verdict(uapi.NFT_JUMP, "DROP"),), ("jump", "DROP", True)),
            ((verdict(uapi.NFT_GOTO, "X"),), ("goto", "X", True)),
            ((xt("target", "LOG", bytes(20)),), ("", "", True)),
            ((xt("match", "REJECT", bytes(4)),), ("", "", False)),
            ((), ("", "", True)),
        ],
    )
    def test_what_a_rule_decides(self, expressions: tuple[Expression, ...], expected: tuple[str, str, bool]) -> None:
        assert decision(rule(*expressions)) == Decision(*expected)
