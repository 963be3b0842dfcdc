"""Which objects of nf_tables are read from the answers of the kernel."""

from __future__ import annotations

import errno
from typing import Callable

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import string
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Chain, Table
from flanneld_masq.model import Family

from .answers import (
    NEWCHAIN,
    NEWGEN,
    NEWRULE,
    NEWTABLE,
    NFGENMSG,
    Socket,
    done,
    error,
    expression,
    generation_reply,
    message,
    netlink,
    rule_reply,
)

V4 = Family.IPV4


def answering(*datagrams: bytes) -> Nfnetlink:
    return Nfnetlink(netlink(Socket(*datagrams)))


class TestObjects:
    def test_the_generation_is_read(self) -> None:
        assert answering(message(NEWGEN, generation_reply(5))).generation() == 5

    def test_a_table_is_read(self) -> None:
        reply = message(NEWTABLE, NFGENMSG + string(uapi.NFTA_TABLE_NAME, "nat"))
        assert answering(reply).table(V4, "nat") == Table("nat", 0, 0, 0)
        assert answering(reply).has_inet_table("nat")

    def test_a_chain_is_read(self) -> None:
        reply = message(NEWCHAIN, NFGENMSG + string(uapi.NFTA_CHAIN_NAME, "c"))
        assert answering(reply).chain(V4, "nat", "c") == Chain("c", 0, 0, 0)

    def test_two_answers_to_one_question_are_refused(self) -> None:
        reply = message(NEWTABLE, NFGENMSG + string(uapi.NFTA_TABLE_NAME, "nat"))
        with pytest.raises(KernelError, match="reading table ip nat: the kernel gave 2 answers"):
            answering(reply + reply).table(V4, "nat")

    def test_an_object_that_is_absent_is_none(self) -> None:
        missing = error(errno.ENOENT)
        assert answering(missing).rules(V4, "nat") == ()
        assert answering(missing).table(V4, "nat") is None
        assert answering(missing).chain(V4, "nat", "c") is None
        assert not answering(missing).has_inet_table("nat")

    @pytest.mark.parametrize(
        "read", [lambda netlink: netlink.rules(V4, "nat"), lambda netlink: netlink.table(V4, "nat")]
    )
    def test_a_refusal_is_not_an_absence(self, read: Callable[[Nfnetlink], object]) -> None:
        with pytest.raises(KernelError):
            read(answering(error(errno.EPERM)))

    @pytest.mark.parametrize(("number", "offered"), [(0, True), (errno.ENOENT, False), (errno.EOPNOTSUPP, False)])
    def test_an_extension_is_offered_or_not(self, number: int, offered: bool) -> None:
        assert answering(error(number)).has_extension(V4, "MASQUERADE", 0, target=True) is offered


class TestRules:
    RULE = NFGENMSG + rule_reply(expression("cmp", b""))

    def test_all_rules_of_a_dump_are_read(self) -> None:
        rule = message(NEWRULE, self.RULE)
        assert len(answering(rule + rule, rule + done()).rules(V4, "nat")) == 3

    def test_a_disturbed_dump_is_asked_for_again(self) -> None:
        disturbed = message(NEWRULE, self.RULE, flags=uapi.NLM_F_DUMP_INTR)
        whole = message(NEWRULE, self.RULE, sequence=2) + done(sequence=2)
        assert len(answering(disturbed, whole).rules(V4, "nat")) == 1

    def test_a_dump_that_is_always_disturbed_is_an_error(self) -> None:
        endless = [message(NEWRULE, self.RULE, number, uapi.NLM_F_DUMP_INTR) for number in range(1, 99)]
        with pytest.raises(KernelError, match="the ruleset changed during each of"):
            answering(*endless).rules(V4, "nat")

    def test_rules_that_were_not_asked_for_are_left_out(self) -> None:
        """Not every kernel filters a dump by table and chain."""
        other = message(NEWRULE, NFGENMSG + rule_reply(table="filter"))
        datagram = other + message(NEWRULE, self.RULE) + done()
        assert len(answering(datagram).rules(V4, "nat", "POSTROUTING")) == 1
        assert answering(datagram).rules(V4, "nat", "OTHER") == ()
