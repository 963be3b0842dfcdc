"""Which answers a netlink socket takes, and the errors that it raises instead of reading a wrong one."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.netlink_socket import Interrupted, raise_error
from flanneld_masq.kernel.netlink_wire import FIXED_SEQUENCE, NLMSGHDR, messages_in, nft_msg_type, string
from flanneld_masq.kernel.transactions import delete_table, new_table
from flanneld_masq.model import Family

from .answers import NEWGEN, NEWRULE, NFGENMSG, Socket, done, error, generation_reply, message, netlink

GETGEN, GETRULE = nft_msg_type(uapi.NFT_MSG_GETGEN), nft_msg_type(uapi.NFT_MSG_GETRULE)
ANSWER = message(NEWGEN, generation_reply(5))
ATTRIBUTES = generation_reply(5)[len(NFGENMSG) :]


class TestErrors:
    def explanation(self, code: int, rest: bytes = b"", flags: int = 0) -> str:
        with pytest.raises(KernelError) as caught:
            raise_error("asking", flags, struct.pack("=i", -code) + rest)
        assert caught.value.errno == code
        return str(caught.value)

    def test_zero_is_an_acknowledgement(self) -> None:
        raise_error("asking", 0, struct.pack("=i", 0))

    @pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM, errno.EBUSY])
    def test_the_reason_is_in_words(self, code: int) -> None:
        assert self.explanation(code) == f"asking: {os.strerror(code)}"

    def test_the_kernel_s_explanation_is_added(self) -> None:
        header = NLMSGHDR.pack(24, 0, 0, 0, 0)
        words = string(uapi.NLMSGERR_ATTR_MSG, "Chain is busy")
        whole = self.explanation(errno.EBUSY, header + b"\0" * 8 + words, uapi.NLM_F_ACK_TLVS)
        assert whole.endswith("(Chain is busy)")
        assert self.explanation(errno.EBUSY, header + words, uapi.NLM_F_ACK_TLVS | uapi.NLM_F_CAPPED) == whole

    @pytest.mark.parametrize("payload", [b"", b"\xff\xff", struct.pack("=i", 5), struct.pack("=i", -(2**31))])
    def test_an_error_that_does_not_exist_is_one_of_the_answer(self, payload: bytes) -> None:
        with pytest.raises(KernelError) as caught:
            raise_error("asking", uapi.NLM_F_ACK_TLVS, payload)
        assert caught.value.errno == 0

    def test_an_explanation_that_is_cut_off_is_left_out(self) -> None:
        assert self.explanation(errno.EBUSY, b"\x18", uapi.NLM_F_ACK_TLVS) == f"asking: {os.strerror(errno.EBUSY)}"


class TestRequests:
    def request(self, *datagrams: bytes, flags: int = 0) -> list[bytes]:
        answers = Socket(*datagrams)
        answers.flags = flags
        return netlink(answers).request("asking", GETGEN, 0, b"")

    def test_the_attributes_of_the_answer_come_back(self) -> None:
        assert self.request(ANSWER) == [ATTRIBUTES]

    def test_answers_to_other_requests_are_passed_over(self) -> None:
        assert self.request(message(NEWGEN, generation_reply(9), sequence=99) + ANSWER) == [ATTRIBUTES]

    def test_an_error_of_another_request_is_passed_over(self) -> None:
        assert self.request(error(errno.EPERM, sequence=99), ANSWER) == [ATTRIBUTES]

    @pytest.mark.parametrize("cut", [1, 4, len(generation_reply(5))])
    def test_a_datagram_that_was_cut_is_refused(self, cut: int) -> None:
        with pytest.raises(KernelError, match="cut short"):
            self.request(ANSWER[:-cut])

    def test_an_answer_larger_than_the_buffer_is_refused(self) -> None:
        with pytest.raises(KernelError, match="larger than"):
            self.request(ANSWER, flags=0x20)  # MSG_TRUNC

    def test_a_refusal_has_its_number(self) -> None:
        with pytest.raises(KernelError) as caught:
            self.request(error(errno.EPERM))
        assert caught.value.errno == errno.EPERM


class TestDumps:
    RULE = message(NEWRULE, NFGENMSG)

    def dump(self, *datagrams: bytes) -> list[bytes]:
        return netlink(Socket(*datagrams)).request("listing", GETRULE, 0, b"", dump=True)

    def test_a_dump_ends_with_done(self) -> None:
        assert self.dump(self.RULE + self.RULE, self.RULE + done()) == [b""] * 3

    def test_a_dump_does_not_end_before_done(self) -> None:
        with pytest.raises(KernelError, match="timed out"):
            self.dump(self.RULE)

    def test_a_dump_during_which_something_changes_is_refused(self) -> None:
        with pytest.raises(Interrupted, match="changed during the dump"):
            self.dump(message(NEWRULE, NFGENMSG, flags=uapi.NLM_F_DUMP_INTR))


class TestReplies:
    """The replies to a fingerprint's requests."""

    REQUEST = FingerprintRequest.of_table(Family.IPV4, "nat", (), ("POSTROUTING",))

    def replies(self, *datagrams: bytes) -> list[bytes]:
        return netlink(Socket(*datagrams)).replies("reading", self.REQUEST)

    def reply(self, payload: bytes, flags: int = 0, sequence: int = FIXED_SEQUENCE) -> bytes:
        return message(NEWRULE, NFGENMSG + payload, sequence, flags)

    def test_they_come_as_bytes_and_in_order(self) -> None:
        datagrams = self.reply(b"tabl"), self.reply(b"one "), self.reply(b"two ") + done(FIXED_SEQUENCE)
        assert self.replies(*datagrams) == [b"tabl", b"one ", b"two ", b""]

    def test_a_change_meanwhile_is_an_error(self) -> None:
        with pytest.raises(Interrupted, match="changed meanwhile"):
            self.replies(self.reply(b"tabl"), self.reply(b"one ", flags=uapi.NLM_F_DUMP_INTR))

    def test_an_answer_to_another_request_is_an_error(self) -> None:
        with pytest.raises(Interrupted):
            self.replies(self.reply(b"tabl", sequence=1))

    @pytest.mark.parametrize("cut", [1, 8, 20])
    def test_a_reply_that_was_cut_is_refused(self, cut: int) -> None:
        with pytest.raises(KernelError, match="cut short"):
            self.replies(self.reply(b"tabl"), self.reply(b"one " * 2)[:-cut])


class TestBeginnings:
    def begins(self, *answers: bytes) -> bool:
        return netlink(Socket(*answers)).begins("looking", 1, 2, b"")

    def test_an_object_in_the_first_datagram(self) -> None:
        assert self.begins(message(NEWRULE, NFGENMSG))

    def test_nothing_but_the_end(self) -> None:
        assert not self.begins(done())

    def test_a_refusal(self) -> None:
        with pytest.raises(KernelError):
            self.begins(error(errno.EPERM))


class TestCommits:
    def test_a_transaction_is_one_datagram_in_a_batch(self) -> None:
        answers = Socket(error(0, sequence=3))
        netlink(answers).commit("writing", 2, [new_table("nat"), delete_table("nat")])
        (datagram,) = answers.sent
        headers = []
        while datagram:
            length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(datagram)
            headers.append((kind, flags, sequence))
            datagram = datagram[length:]
        assert headers == [
            (uapi.NFNL_MSG_BATCH_BEGIN, uapi.NLM_F_REQUEST, 1),
            (nft_msg_type(uapi.NFT_MSG_NEWTABLE), uapi.NLM_F_REQUEST | uapi.NLM_F_CREATE, 2),
            (nft_msg_type(uapi.NFT_MSG_DELTABLE), uapi.NLM_F_REQUEST | uapi.NLM_F_ACK, 3),
            (uapi.NFNL_MSG_BATCH_END, uapi.NLM_F_REQUEST, 4),
        ]

    def test_a_dry_run_does_not_end_its_batch(self) -> None:
        answers = Socket(error(0, sequence=2))
        netlink(answers).commit("checking", 2, [new_table("nat")], dry_run=True)
        (datagram,) = answers.sent
        kinds = [kind for kind, *_ in messages_in(datagram, "checking")]
        assert kinds == [uapi.NFNL_MSG_BATCH_BEGIN, nft_msg_type(uapi.NFT_MSG_NEWTABLE)]

    def test_the_error_of_any_message_is_raised(self) -> None:
        with pytest.raises(KernelError) as caught:
            netlink(Socket(error(errno.ENOENT, sequence=2))).commit("writing", 2, [new_table("a"), new_table("b")])
        assert caught.value.errno == errno.ENOENT
