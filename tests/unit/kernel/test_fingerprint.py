"""Fingerprints: requests encoded once, and answers that are compared as bytes."""

from __future__ import annotations

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.fingerprint import FingerprintRequest, contents_of, fingerprint_of
from flanneld_masq.kernel.netlink_wire import FIXED_SEQUENCE, NLMSGHDR, attribute, nested, nft_msg_type, string
from flanneld_masq.model import Family


def counter(count: int) -> bytes:
    numbers = attribute(uapi.NFTA_COUNTER_BYTES, count.to_bytes(8, "big")) + attribute(
        uapi.NFTA_COUNTER_PACKETS, count.to_bytes(8, "big")
    )
    return string(uapi.NFTA_EXPR_NAME, "counter") + nested(uapi.NFTA_EXPR_DATA, numbers)


class TestFingerprints:
    def test_counters_do_not_count(self) -> None:
        assert fingerprint_of([b"a", counter(1) + b"b"]) == fingerprint_of([b"a", counter(2) + b"b"])

    def test_everything_else_counts(self) -> None:
        assert fingerprint_of([counter(1) + b"b"]) != fingerprint_of([counter(1) + b"c"])
        assert fingerprint_of([counter(1)]) != fingerprint_of([])
        assert fingerprint_of([b"a", b"b"]) != fingerprint_of([b"ab"])


class TestContents:
    @staticmethod
    def rule(handle: int, position: int, expression: bytes) -> bytes:
        place = attribute(uapi.NFTA_RULE_HANDLE, handle.to_bytes(8, "big"))
        place += attribute(uapi.NFTA_RULE_POSITION, position.to_bytes(8, "big"))
        return string(uapi.NFTA_RULE_CHAIN, "a") + place + nested(uapi.NFTA_RULE_EXPRESSIONS, expression)

    def test_rules_that_were_written_again_are_the_same(self) -> None:
        before, after = self.rule(1, 2, counter(1)), self.rule(3, 4, counter(5))
        assert contents_of([before, b""]) == contents_of([after, b""])

    def test_other_rules_are_not(self) -> None:
        assert contents_of([self.rule(1, 2, b"drop")]) != contents_of([self.rule(1, 2, b"last")])
        assert contents_of([self.rule(1, 2, b"drop")] * 2) != contents_of([self.rule(1, 2, b"drop")])

    def test_a_reply_that_is_cut_short_is_an_error(self) -> None:
        with pytest.raises(KernelError):
            contents_of([self.rule(1, 2, b"drop")[:-1]])


class TestRequests:
    def test_a_table_its_chains_and_their_rules_are_asked_for(self) -> None:
        request = FingerprintRequest.of_table(Family.IPV4, "nat", ("a", "b"), ("a", None))
        headers = [NLMSGHDR.unpack_from(data)[1:4] for data in (*request.gets, *request.dumps)]
        dump = uapi.NLM_F_REQUEST | uapi.NLM_F_DUMP
        assert headers == [
            (nft_msg_type(uapi.NFT_MSG_GETTABLE), uapi.NLM_F_REQUEST, FIXED_SEQUENCE),
            (nft_msg_type(uapi.NFT_MSG_GETCHAIN), uapi.NLM_F_REQUEST, FIXED_SEQUENCE),
            (nft_msg_type(uapi.NFT_MSG_GETCHAIN), uapi.NLM_F_REQUEST, FIXED_SEQUENCE),
            (nft_msg_type(uapi.NFT_MSG_GETRULE), dump, FIXED_SEQUENCE),
            (nft_msg_type(uapi.NFT_MSG_GETRULE), dump, FIXED_SEQUENCE),
        ]

    def test_requests_are_added_up(self) -> None:
        one = FingerprintRequest.of_table(Family.IPV4, "nat", (), ("a",))
        other = FingerprintRequest.of_table(Family.IPV4, "filter", (), ())
        assert one + other == FingerprintRequest(one.gets + other.gets, one.dumps)
