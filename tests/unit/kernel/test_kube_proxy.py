"""kube-proxy's mark in rules of the kernel: as iptables-nft and nft write them."""

from __future__ import annotations

import struct
from unittest import mock

import pytest

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.kube_proxy import NFT_CHAINS, NFT_TABLE, MarkReader, keeps_mark, mark_of
from flanneld_masq.kernel.netlink_socket import Interrupted
from flanneld_masq.kernel.netlink_wire import be32
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Expression, KernelRule
from flanneld_masq.model import Family, Mark

from .test_expressions import RETURN, bitwise, cmp, counter, host, masq, meta, rule, verdict, xt

LOAD = meta(uapi.NFT_META_MARK)
SET = Expression("meta", be32(uapi.NFTA_META_KEY, uapi.NFT_META_MARK) + be32(uapi.NFTA_META_SREG, 1))
BITS = [1, 0x4000, 0x8000, 1 << 31]


def target(mark: int, mask: int) -> Expression:
    return xt("target", "MARK", struct.pack("=II", mark, mask))


@pytest.mark.parametrize("bit", BITS)
class TestMark:
    def test_target_of_iptables(self, bit: int) -> None:
        assert mark_of([rule(counter(), target(bit, bit))]) == Mark(bit, bit)
        assert mark_of([rule(counter(), target(bit, 0xFFFFFFFF))]) == Mark(bit, 0xFFFFFFFF)

    def test_bit_that_nft_sets(self, bit: int) -> None:
        assert mark_of([rule(LOAD, bitwise(host(~bit & 0xFFFFFFFF), host(bit)), SET)]) == Mark(bit, bit)

    def test_masquerading_chain_since_release_131(self, bit: int) -> None:
        tested = (LOAD, bitwise(host(bit)), cmp(host(0), uapi.NFT_CMP_NEQ))
        flipped = (LOAD, bitwise(host(0xFFFFFFFF), host(bit)), SET)
        assert mark_of([rule(*tested, *flipped, masq(16)), rule(masq(16))]) == Mark(bit, bit)

    def test_masquerading_chain_up_to_release_130(self, bit: int) -> None:
        tested = rule(LOAD, bitwise(host(bit)), cmp(host(0)), RETURN)
        assert mark_of([tested, rule(LOAD, bitwise(host(0xFFFFFFFF), host(bit)), SET), rule(masq())]) == Mark(bit, bit)


@pytest.mark.parametrize(
    "expressions",
    [
        (),
        (counter(), verdict(uapi.NF_ACCEPT)),
        (target(0x4000, 0),),  # --xor-mark: a test for it does not exist
        (target(0, 0x4000),),
        (xt("target", "MARK", b""),),
        (xt("match", "MARK", struct.pack("=II", 1, 1)),),
        (SET,),  # of a register that does not hold the mark
        (LOAD, SET),
        (meta(uapi.NFT_META_LEN), bitwise(host(1)), cmp(host(0))),
        (LOAD, bitwise(host(3)), cmp(host(0))),  # any of several bits
        (LOAD, cmp(host(0))),
        (LOAD, bitwise(host(1)), cmp(host(1))),
        (Expression("bitwise", b""), Expression("cmp", b""), Expression("meta", b"")),
    ],
)
def test_other_rules_give_no_mark(expressions: tuple[Expression, ...]) -> None:
    assert mark_of([rule(*expressions)]) is None


def test_shift_is_not_taken_for_a_mask() -> None:
    shift = Expression("bitwise", bitwise(host(1)).data + be32(uapi.NFTA_BITWISE_OP, 1))
    assert mark_of([rule(LOAD, shift, cmp(host(0)))]) is None


MASQUERADE = rule(xt("target", "MASQUERADE", b""))


@pytest.mark.parametrize("clears", [target(0x4000, 0), SET], ids=["iptables", "nft"])
@pytest.mark.parametrize("masquerades", [MASQUERADE, rule(masq())], ids=["iptables", "nft"])
def test_chain_that_clears_the_mark(clears: Expression, masquerades: KernelRule) -> None:
    tested = rule(LOAD, bitwise(host(0x4000)), cmp(host(0)), RETURN)
    assert not keeps_mark([tested, rule(clears), masquerades])
    assert keeps_mark([tested, masquerades])
    assert not keeps_mark([tested])
    assert not keeps_mark([])


def test_the_mark_is_read_while_others_commit() -> None:
    netlink = mock.Mock(spec=Nfnetlink)
    netlink.fingerprint.side_effect = Interrupted("fingerprinting the ruleset", "the ruleset changed meanwhile")
    netlink.rules.return_value = [rule(counter(), target(0x8000, 0x8000))]
    evidence = MarkReader(Family.IPV6, NFT_TABLE, NFT_CHAINS).read(netlink)
    assert evidence is not None
    assert evidence.mark == Mark(0x8000, 0x8000)
