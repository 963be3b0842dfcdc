"""Bytes of the kernel: what they say, and that those cut short are never read as an answer."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import nfnetlink
from flanneld_masq.kernel.nfnetlink import Expression, KernelRule, attributes, text, u32
from flanneld_masq.model import Family

PAIRS = st.lists(st.tuples(st.sampled_from([0, 1, 7, 0x3FFF]), st.binary(max_size=6)), max_size=4)


def encoded(pairs: list[tuple[int, bytes]]) -> bytes:
    return b"".join(nfnetlink._attribute(kind, value) for kind, value in pairs)


def read(data: bytes) -> list[tuple[int, bytes]]:
    return list(attributes(data))


class TestAttributes:
    def test_none(self) -> None:
        assert read(b"") == []

    def test_padding_belongs_to_nobody(self) -> None:
        assert read(b"\x05\x00\x01\x00A\x00\x00\x00\x04\x00\x02\x00") == [(1, b"A"), (2, b"")]

    def test_the_last_one_needs_no_padding(self) -> None:
        assert read(b"\x05\x00\x01\x00A") == [(1, b"A")]

    def test_flags_are_no_part_of_the_type(self) -> None:
        assert read(b"\x04\x00\x01\x80\x04\x00\x02\x40") == [(1, b""), (2, b"")]

    @pytest.mark.parametrize(
        "data",
        [
            b"\x00\x00\x01\x00",
            b"\x03\x00\x01\x00",
            b"\x05\x00\x01\x00",
            b"\xff\xff\x01\x00AAAA",
            b"\x04\x00\x01\x00\x08\x00\x02\x00A",
        ],
    )
    def test_cut_short(self, data: bytes) -> None:
        with pytest.raises(KernelError, match="cut short"):
            read(data)

    @settings(max_examples=25)
    @given(PAIRS)
    def test_round_trip(self, pairs: list[tuple[int, bytes]]) -> None:
        assert read(encoded(pairs)) == pairs

    @settings(max_examples=25)
    @given(st.binary(max_size=64))
    @example(b"\x00" * 4)
    @example(b"\x01")
    def test_whatever_the_bytes_pairs_or_a_typed_error(self, data: bytes) -> None:
        try:
            found = read(data)
        except KernelError as error:
            assert error.errno == 0
        else:
            assert sum(4 + len(value) for _, value in found) <= len(data)

    @settings(max_examples=25)
    @given(PAIRS, st.data())
    def test_what_is_cut_off_is_never_made_up(self, pairs: list[tuple[int, bytes]], draw: st.DataObject) -> None:
        data = encoded(pairs)
        cut = draw.draw(st.integers(0, len(data)))
        ends = [0]
        for kind, value in pairs:
            ends.append(ends[-1] + len(nfnetlink._attribute(kind, value)))
        try:
            found = read(data[:cut])
        except KernelError:
            assert cut not in ends, "a cut between two attributes cannot be seen"
        else:
            assert found == pairs[: len(found)]


class TestValues:
    @pytest.mark.parametrize(
        ("data", "value"), [(b"\0\0\0\5", 5), (b"\xff\xff\xff\xff", 0xFFFFFFFF), (b"\1\2\3\4\5", 0x01020304), (b"", 0)]
    )
    def test_numbers(self, data: bytes, value: int) -> None:
        assert u32(data) == value

    def test_a_number_that_is_not_there(self) -> None:
        assert (u32(None), u32(None, 7)) == (0, 7)

    @pytest.mark.parametrize(("data", "value"), [(None, ""), (b"", ""), (b"nat\0", "nat"), (b"\xff\0", "\ufffd")])
    def test_text(self, data: bytes | None, value: str) -> None:
        assert text(data) == value


def expression(name: str, data: bytes) -> tuple[int, bytes]:
    return (1, nfnetlink._attribute(1, name.encode() + b"\0") + nfnetlink._attribute(2, data))


def reply(*expressions: tuple[int, bytes], handle: int = 7, userdata: bytes = b"") -> bytes:
    pairs = [(1, b"nat\0"), (2, b"POSTROUTING\0"), (3, handle.to_bytes(8, "big")), (4, encoded(list(expressions)))]
    return encoded([*pairs, (7, userdata)] if userdata else pairs)


class TestRules:
    def test_are_read(self) -> None:
        table, rule = nfnetlink._rule(reply(expression("cmp", b"abcd"), expression("masq", b""), userdata=b"\0\1x"))
        assert table == "nat"
        expected = (Expression("cmp", b"abcd"), Expression("masq", b""))
        assert rule == KernelRule("POSTROUTING", 7, expected, b"\0\1x")

    def test_without_expressions(self) -> None:
        assert nfnetlink._rule(reply())[1].expressions == ()

    def test_raw_is_all_but_handle_and_counters(self) -> None:
        def raw(count: bytes, handle: int = 7, value: bytes = b"abcd", userdata: bytes = b"\0\1x") -> str:
            found = reply(expression("counter", count), expression("cmp", value), handle=handle, userdata=userdata)
            return nfnetlink._rule(found)[1].raw

        assert raw(b"\0" * 8, handle=8) == raw(b"\1" * 8)
        assert raw(b"", value=b"abce") != raw(b"")
        assert raw(b"", userdata=b"\0\1y") != raw(b"")

    def test_a_counter_is_there_or_not(self) -> None:
        one = nfnetlink._rule(reply(expression("counter", b""), expression("cmp", b"")))[1]
        other = nfnetlink._rule(reply(expression("cmp", b"")))[1]
        assert one.raw != other.raw

    @settings(max_examples=25)
    @given(st.binary(max_size=80))
    def test_whatever_the_bytes_a_rule_or_a_typed_error(self, data: bytes) -> None:
        try:
            _, rule = nfnetlink._rule(data)
        except KernelError:
            return
        assert isinstance(rule.raw, str)


class TestErrors:
    def fail(self, code: int, rest: bytes = b"", flags: int = 0) -> str:
        with pytest.raises(KernelError) as caught:
            nfnetlink._raise_error("asking", flags, struct.pack("=i", -code) + rest)
        assert caught.value.errno == code
        return str(caught.value)

    def test_zero_is_an_acknowledgement(self) -> None:
        nfnetlink._raise_error("asking", 0, struct.pack("=i", 0))

    @pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EBUSY])
    def test_the_reason_is_in_words(self, code: int) -> None:
        assert self.fail(code) == f"asking: {os.strerror(code)}"

    def test_with_the_kernel_s_own_words(self) -> None:
        header = struct.pack("=IHHII", 24, 0, 0, 0, 0)
        message = nfnetlink._attribute(1, b"Chain is busy\0")
        said = self.fail(errno.EBUSY, header + b"\0" * 8 + message, nfnetlink._NLM_F_ACK_TLVS)
        assert said.endswith("(Chain is busy)")
        capped = self.fail(errno.EBUSY, header + message, nfnetlink._NLM_F_ACK_TLVS | nfnetlink._NLM_F_CAPPED)
        assert capped == said


class Socket:
    """Answers each receive with the next datagram."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams: Iterator[bytes] = iter(datagrams)
        self.flags = 0

    def sendto(self, data: bytes, address: object) -> None: ...

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, object]:
        for datagram in self.datagrams:
            return datagram, [], self.flags, None
        raise TimeoutError("timed out")

    def recv(self, size: int, flags: int = 0) -> bytes:
        raise BlockingIOError

    def settimeout(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def message(kind: int, body: bytes, sequence: int = 1, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)


GENERATION = b"\2\0\0\0" + nfnetlink._attribute(1, (5).to_bytes(4, "big"))


class TestAnswers:
    def over(self, *datagrams: bytes) -> nfnetlink.Nfnetlink:
        found = nfnetlink.Nfnetlink.__new__(nfnetlink.Nfnetlink)
        found._socket = Socket(*datagrams)  # type: ignore[assignment]
        found._sequence = 0
        return found

    def test_an_answer(self) -> None:
        assert self.over(message(0x0A0F, GENERATION)).generation() == 5

    def test_answers_to_other_questions_are_passed_over(self) -> None:
        other = message(0x0A0F, b"\2\0\0\0" + nfnetlink._attribute(1, (9).to_bytes(4, "big")), sequence=99)
        assert self.over(other + message(0x0A0F, GENERATION)).generation() == 5

    def test_errors_of_other_questions_are_passed_over_even_where_they_come_alone(self) -> None:
        other = message(2, struct.pack("=i", -errno.EPERM), sequence=99)
        assert self.over(other, message(0x0A0F, GENERATION)).generation() == 5

    @pytest.mark.parametrize("cut", [1, 4, len(GENERATION)])
    def test_a_datagram_that_was_cut(self, cut: int) -> None:
        with pytest.raises(KernelError, match="cut short"):
            self.over(message(0x0A0F, GENERATION)[:-cut]).generation()

    def test_an_answer_larger_than_the_buffer(self) -> None:
        found = self.over(message(0x0A0F, GENERATION))
        found._socket.flags = 0x20  # type: ignore[attr-defined]  # MSG_TRUNC
        with pytest.raises(KernelError, match="larger than"):
            found.generation()

    def test_a_refusal(self) -> None:
        refusal = message(2, struct.pack("=i", -errno.EPERM))
        with pytest.raises(KernelError) as caught:
            self.over(refusal).generation()
        assert caught.value.errno == errno.EPERM

    def test_a_dump_ends_with_done_and_not_before(self) -> None:
        rule = message(0x0A06, b"\2\0\0\0" + reply(expression("cmp", b"")))
        done = message(3, b"\0\0\0\0")
        assert len(self.over(rule + rule, rule + done).rules(Family.IPV4, "nat")) == 3
        with pytest.raises(KernelError, match="timed out"):
            self.over(rule).rules(Family.IPV4, "nat")

    def test_a_dump_that_was_disturbed_is_asked_for_again(self) -> None:
        disturbed = message(0x0A06, b"\2\0\0\0" + reply(), flags=0x10)
        rule = message(0x0A06, b"\2\0\0\0" + reply(), sequence=2)
        assert len(self.over(disturbed, rule + message(3, b"\0" * 4, sequence=2)).rules(Family.IPV4, "nat")) == 1
        endless = [message(0x0A06, b"\2\0\0\0" + reply(), sequence=number, flags=0x10) for number in range(1, 99)]
        with pytest.raises(KernelError, match="the ruleset changed during each of"):
            self.over(*endless).rules(Family.IPV4, "nat")

    def test_a_table_that_is_not_there_has_no_rules(self) -> None:
        missing = message(2, struct.pack("=i", -errno.ENOENT))
        assert self.over(missing).rules(Family.IPV4, "nat") == ()
        assert self.over(missing).table(Family.IPV4, "nat") is None
        refused = message(2, struct.pack("=i", -errno.EPERM))
        for ask in (lambda it: it.rules(Family.IPV4, "nat"), lambda it: it.table(Family.IPV4, "nat")):
            with pytest.raises(KernelError):
                ask(self.over(refused))

    def test_rules_of_other_tables_are_not_ours(self) -> None:
        """Not every kernel keeps to the chain that a dump was asked for."""
        body = encoded([(1, b"filter\0"), (2, b"POSTROUTING\0"), (3, bytes(8))])
        datagram = message(0x0A06, b"\2\0\0\0" + body) + message(0x0A06, b"\2\0\0\0" + reply()) + message(3, b"\0" * 4)
        assert len(self.over(datagram).rules(Family.IPV4, "nat", "POSTROUTING")) == 1
        assert self.over(datagram).rules(Family.IPV4, "nat", "OTHER") == ()
