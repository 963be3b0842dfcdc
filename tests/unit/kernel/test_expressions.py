"""Rules of the kernel in words. The attributes are built by hand, as nf_tables.h lays them out."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.expressions import comment, describe, drops, jump_target
from flanneld_masq.kernel.nfnetlink import Expression, KernelRule
from flanneld_masq.model import Family

V4, V6 = Family.IPV4, Family.IPV6
NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


def string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def data(kind: int, value: bytes) -> bytes:
    """A nested NFTA_DATA_VALUE."""
    return attribute(kind | NESTED, attribute(1, value))


def payload(offset: int, length: int, base: int = 1, register: int = 1) -> Expression:
    body = number(1, register) + number(2, base) + number(3, offset) + number(4, length)
    return Expression("payload", body)


def meta(key: int, register: int = 1) -> Expression:
    return Expression("meta", number(2, key) + number(1, register))


def bitwise(mask: bytes, xor: bytes | None = None, register: int = 1) -> Expression:
    registers = number(1, register) + number(2, register) + number(3, len(mask))
    return Expression("bitwise", registers + data(4, mask) + data(5, xor or bytes(len(mask))))


def cmp(value: bytes, operator: int = 0, register: int = 1) -> Expression:
    return Expression("cmp", number(1, register) + number(2, operator) + data(3, value))


def verdict(code: int, chain: str = "") -> Expression:
    nested = attribute(1, struct.pack(">i", code)) + (string(2, chain) if chain else b"")
    return Expression("immediate", number(1, 0) + attribute(2 | NESTED, attribute(2 | NESTED, nested)))


def masq(flags: int | None = None) -> Expression:
    return Expression("masq", b"" if flags is None else number(1, flags))


def counter() -> Expression:
    return Expression("counter", attribute(1, (7).to_bytes(8, "big")) + attribute(2, (1).to_bytes(8, "big")))


def xt(kind: str, name: str, info: bytes) -> Expression:
    return Expression(kind, string(1, name) + number(2, 0) + attribute(3, info))


def host(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def userdata(text: str, before: bytes = b"") -> bytes:
    value = text.encode() + b"\0"
    return before + bytes((0, len(value))) + value


def rule(*expressions: Expression, data: bytes = b"") -> KernelRule:
    return KernelRule("c", 1, expressions, data)


def words(*expressions: Expression, family: Family = V4) -> str:
    return describe(rule(*expressions), family)


RETURN, ACCEPT, DROP = verdict(-5), verdict(1), verdict(0)
ADDRESS = IPv4Address("10.244.0.0").packed
ADDRESS_V6 = IPv6Address("fd00:10:244::").packed


class TestNative:
    """What `nft` writes."""

    def test_the_rules_of_the_table(self) -> None:
        subnet = (payload(12, 3), cmp(IPv4Address("10.244.1.0").packed[:3]))
        network = (payload(16, 2), cmp(ADDRESS[:2]))
        assert words(*subnet, *network, RETURN) == "ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return"
        assert words(meta(3), bitwise(host(0x4000)), cmp(host(0x4000)), RETURN) == (
            "meta mark & 0x00004000 == 0x00004000 return"
        )
        multicast = (payload(16, 1), bitwise(b"\xf0"), cmp(b"\xe0", operator=1))
        assert words(*multicast, masq(1 << 4)) == "ip daddr != 224.0.0.0/4 masquerade fully-random"

    def test_and_those_of_ipv6(self) -> None:
        network = (payload(8, 16), bitwise(ip_network("fd00:10:244::/56").netmask.packed), cmp(ADDRESS_V6))
        assert words(*network, masq(), family=V6) == "ip6 saddr fd00:10:244::/56 masquerade"
        assert words(payload(24, 1), cmp(b"\xff", 1), masq(), family=V6) == "ip6 daddr != ff00::/8 masquerade"
        assert words(payload(24, 16), cmp(ADDRESS_V6), ACCEPT, family=V6) == "ip6 daddr fd00:10:244:: accept"

    def test_a_single_address_has_no_prefix(self) -> None:
        assert words(payload(12, 4), cmp(ADDRESS), DROP) == "ip saddr 10.244.0.0 drop"

    @pytest.mark.parametrize(
        ("code", "text"),
        [
            (1, "accept"),
            (0, "drop"),
            (-1, "continue"),
            (-2, "break"),
            (-5, "return"),
            (3, "verdict 3"),
            (-9, "verdict -9"),
        ],
    )
    def test_verdicts(self, code: int, text: str) -> None:
        assert words(verdict(code)) == text

    def test_jumps(self) -> None:
        assert words(verdict(-3, "KUBE-X")) == "jump KUBE-X"
        assert words(verdict(-4, "KUBE-X")) == "goto KUBE-X"

    @pytest.mark.parametrize(
        ("flags", "text"),
        [(None, ""), (0, ""), (4, " random"), (16, " fully-random"), (24, " persistent,fully-random")],
    )
    def test_masquerade(self, flags: int | None, text: str) -> None:
        assert words(masq(flags)) == f"masquerade{text}"

    @pytest.mark.parametrize(
        ("operator", "sign"), [(0, ""), (1, "!= "), (2, "< "), (3, "<= "), (4, "> "), (5, ">= "), (9, "? ")]
    )
    def test_comparisons(self, operator: int, sign: str) -> None:
        assert words(payload(12, 4), cmp(ADDRESS, operator), DROP) == f"ip saddr {sign}10.244.0.0 drop"

    def test_marks_without_a_mask(self) -> None:
        assert words(meta(3), cmp(host(0x10))) == "meta mark 0x00000010"
        assert words(meta(3), cmp(host(0x10), 1)) == "meta mark != 0x00000010"

    def test_other_keys(self) -> None:
        assert words(meta(7), cmp(b"eth0\0")) == "meta oifname 0x6574683000"
        assert words(meta(99), cmp(b"\x01")) == "meta key 99 0x01"

    def test_each_register_by_itself(self) -> None:
        found = words(payload(12, 4, register=1), payload(16, 4, register=9), cmp(ADDRESS, register=9), cmp(ADDRESS))
        assert found == "ip daddr 10.244.0.0 ip saddr 10.244.0.0"

    def test_a_register_that_nobody_loaded(self) -> None:
        assert words(cmp(b"\x01\x02")) == "? 0x0102"

    def test_counters_are_left_out(self) -> None:
        assert words(counter(), DROP) == "drop"

    def test_a_port(self) -> None:
        assert words(payload(2, 2, base=2), cmp(b"\x00\x50"), ACCEPT) == "@2,16,16 0x0050 accept"

    def test_nothing(self) -> None:
        assert words() == "(no expression)"

    def test_what_has_no_word(self) -> None:
        assert words(Expression("vmap", b"")) == "vmap()"
        assert words(Expression("lookup", number(1, 5))) == "lookup(0800010000000005)"
        assert words(Expression("immediate", number(1, 1) + data(2, b"\x05"))).startswith("immediate(")


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
    """What somebody may put into our chain all the same; it is told, never a reason to fail."""

    def test_both_addresses_at_once(self) -> None:
        assert words(payload(12, 8), cmp(ADDRESS + ADDRESS), DROP) == "@1,96,64 0x0af400000af40000 drop"

    def test_a_comparison_that_is_longer_than_what_was_loaded(self) -> None:
        assert words(payload(12, 4), cmp(ADDRESS + b"\x01"), DROP) == "ip saddr 0x0af4000001 drop"

    def test_a_mask_with_holes(self) -> None:
        held = words(payload(12, 4), bitwise(b"\xff\x00\xff\x00"), cmp(ADDRESS), DROP)
        assert held == "ip saddr & 0xff00ff00 0x0af40000 drop"

    def test_a_mask_that_is_longer_than_the_address(self) -> None:
        assert words(payload(12, 4), bitwise(b"\xff" * 8), cmp(ADDRESS)) == "ip saddr & 0xffffffffffffffff 0x0af40000"

    def test_bits_turned_round(self) -> None:
        turned = bitwise(host(0xFF), xor=host(1))
        assert words(meta(3), turned, cmp(host(1))).startswith("bitwise(")

    def test_fields_of_the_other_family(self) -> None:
        assert words(payload(8, 16), cmp(ADDRESS_V6), family=V4).startswith("@1,64,128 0xfd00")
        assert words(payload(12, 4), cmp(ADDRESS), family=V6).startswith("@1,96,32 0x0af4")

    @settings(max_examples=25)
    @given(st.lists(EXPRESSIONS, max_size=4), st.binary(max_size=12), st.sampled_from(Family))
    def test_whatever_it_is_there_is_a_line_or_a_typed_error(
        self, expressions: list[Expression], more: bytes, family: Family
    ) -> None:
        made = rule(*expressions, data=more)
        try:
            found = (describe(made, family), comment(made), jump_target(made), drops(made))
        except KernelError:
            return
        assert found[0]


class TestCompatible:
    """What `iptables-nft` writes: some of it native, some passed through to the older extensions."""

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
        found = words(xt("target", "MASQUERADE", struct.pack("=I", 16) + bytes(36)), family=V6)
        assert found == "masquerade fully-random"

    def test_others(self) -> None:
        assert words(xt("match", "addrtype", b"\x01\x02\x00\x00")) == "xt addrtype(0102)"
        assert words(xt("match", "mark", b"\x01")) == "xt mark(01)"
        assert words(xt("target", "MASQUERADE", b"")) == "xt MASQUERADE()"

    def test_comments_are_comments(self) -> None:
        made = rule(xt("match", "comment", b"flanneld-masq:abc\0".ljust(256, b"\0")), counter(), verdict(-3, "X"))
        assert comment(made) == "flanneld-masq:abc"
        assert describe(made, V4) == 'jump X comment "flanneld-masq:abc"'


class TestComments:
    def test_in_the_user_data(self) -> None:
        made = rule(DROP, data=userdata("flanneld-masq:abc"))
        assert comment(made) == "flanneld-masq:abc"
        assert describe(made, V4) == 'drop comment "flanneld-masq:abc"'

    def test_behind_other_user_data(self) -> None:
        assert comment(rule(DROP, data=userdata("ours", before=bytes((1, 3)) + b"\0\0\0"))) == "ours"

    @pytest.mark.parametrize("data", [b"", b"\0", b"\1", b"\1\5", b"\1\0\1\0", b"\xff\xff\xff"])
    def test_none(self, data: bytes) -> None:
        assert comment(rule(DROP, data=data)) == ""

    def test_what_is_not_text(self) -> None:
        assert comment(rule(DROP, data=b"\x00\x03\xff\xfe\x00")) == "\ufffd\ufffd"

    def test_in_user_data_and_in_a_match(self) -> None:
        made = rule(xt("match", "comment", b"in the match\0"), data=userdata("in the data"))
        assert comment(made) == "in the data"


class TestQuestions:
    @pytest.mark.parametrize(
        ("expressions", "target"),
        [
            ((), None),
            ((DROP,), None),
            ((verdict(-3, "A"),), "A"),
            ((counter(), verdict(-4, "B")), "B"),
            ((Expression("immediate", number(1, 1) + data(2, b"\x05")), verdict(-3, "C")), "C"),
            ((xt("target", "MASQUERADE", bytes(20)),), None),
        ],
    )
    def test_where_it_jumps(self, expressions: tuple[Expression, ...], target: str | None) -> None:
        assert jump_target(rule(*expressions)) == target

    @pytest.mark.parametrize(
        ("expressions", "expected"),
        [
            ((DROP,), True),
            ((meta(3), cmp(host(1)), DROP), True),
            ((Expression("reject", number(1, 0)),), True),
            ((xt("target", "REJECT", bytes(4)),), True),
            ((ACCEPT,), False),
            ((verdict(-3, "DROP"),), False),
            ((xt("target", "MASQUERADE", bytes(20)),), False),
            ((xt("match", "REJECT", bytes(4)),), False),
            ((), False),
        ],
    )
    def test_whether_it_drops(self, expressions: tuple[Expression, ...], expected: bool) -> None:
        assert drops(rule(*expressions)) is expected
