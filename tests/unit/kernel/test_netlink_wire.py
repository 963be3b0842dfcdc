"""Netlink attributes as bytes: what they say, and that those cut short are never read as an answer."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import (
    aligned,
    attribute,
    attributes,
    be32,
    message,
    nested,
    nft_msg_type,
    string,
    text,
    u32,
)

from .answers import encoded

PAIRS = st.lists(st.tuples(st.sampled_from([0, 1, 7, 0x3FFF]), st.binary(max_size=6)), max_size=4)


def read(data: bytes) -> list[tuple[int, bytes]]:
    return list(attributes(data))


class TestAttributes:
    def test_an_empty_stream_has_no_attributes(self) -> None:
        assert read(b"") == []

    def test_padding_is_no_part_of_a_value(self) -> None:
        assert read(b"\x05\x00\x01\x00A\x00\x00\x00\x04\x00\x02\x00") == [(1, b"A"), (2, b"")]

    def test_the_last_attribute_needs_no_padding(self) -> None:
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
    def test_a_stream_that_is_cut_short_is_refused(self, data: bytes) -> None:
        with pytest.raises(KernelError, match="cut short"):
            read(data)

    @settings(max_examples=25)
    @given(PAIRS)
    def test_attributes_survive_a_round_trip(self, pairs: list[tuple[int, bytes]]) -> None:
        assert read(encoded(pairs)) == pairs

    @settings(max_examples=25)
    @given(st.binary(max_size=64))
    @example(b"\x00" * 4)
    @example(b"\x01")
    def test_any_bytes_give_pairs_or_a_kernel_error(self, data: bytes) -> None:
        try:
            pairs = read(data)
        except KernelError as error:
            assert error.errno == 0
        else:
            assert sum(4 + len(value) for _, value in pairs) <= len(data)

    @settings(max_examples=25)
    @given(PAIRS, st.data())
    def test_a_cut_stream_gives_no_invented_value(self, pairs: list[tuple[int, bytes]], draw: st.DataObject) -> None:
        data = encoded(pairs)
        cut = draw.draw(st.integers(0, len(data)))
        ends = [0]
        for kind, value in pairs:
            ends.append(ends[-1] + len(attribute(kind, value)))
        try:
            whole = read(data[:cut])
        except KernelError:
            assert cut not in ends, "a cut between two attributes cannot be seen"
        else:
            assert whole == pairs[: len(whole)]


class TestValues:
    @pytest.mark.parametrize(
        ("data", "value"), [(b"\0\0\0\5", 5), (b"\xff\xff\xff\xff", 0xFFFFFFFF), (b"\1\2\3\4\5", 0x01020304), (b"", 0)]
    )
    def test_a_number_is_decoded(self, data: bytes, value: int) -> None:
        assert u32(data) == value

    def test_an_absent_number_is_zero(self) -> None:
        assert u32(None) == 0

    @pytest.mark.parametrize(("data", "value"), [(None, ""), (b"", ""), (b"nat\0", "nat"), (b"\xff\0", "\ufffd")])
    def test_text_is_decoded(self, data: bytes | None, value: str) -> None:
        assert text(data) == value


class TestMessages:
    def test_a_message_is_a_header_and_its_attributes(self) -> None:
        body = string(1, "nat")
        assert nft_msg_type(uapi.NFT_MSG_GETTABLE) == 0x0A01
        encoded_message = message(0x0A01, 0x301, 2, 0x0A, body, 9)
        assert encoded_message[:16] == struct.pack("=IHHII", 16 + 4 + len(body), 0x0A01, 0x301, 9, 0)
        assert encoded_message[16:] == b"\2\0\0\x0a" + body

    def test_a_number_is_in_network_order(self) -> None:
        assert be32(1, 5) == struct.pack("=HH", 8, 1) + b"\0\0\0\5"

    def test_a_nested_attribute_has_the_flag(self) -> None:
        assert nested(4, b"") == struct.pack("=HH", 4, 0x8004)

    @pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 4), (4, 4), (17, 20)])
    def test_lengths_are_rounded_up_to_four(self, length: int, expected: int) -> None:
        assert aligned(length) == expected
