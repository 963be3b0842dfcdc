"""Reads from kube-proxy's rules in nf_tables which mark it gives to the packets that it masquerades itself.

Sources: kube-proxy's pkg/proxy/iptables (chain KUBE-MARK-MASQ, also written by older kubelets) and pkg/proxy/nftables
(chain masquerading, and mark-for-masquerade up to release 1.30).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import extension
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.netlink_socket import Interrupted
from flanneld_masq.kernel.netlink_wire import attributes, u32
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Expression, KernelRule
from flanneld_masq.model import SLOTS, Family, Mark, MarkEvidence

IPTABLES_CHAIN = "KUBE-MARK-MASQ"
SERVICES_CHAIN, POSTROUTING_CHAIN = "KUBE-SERVICES", "KUBE-POSTROUTING"  # of table nat, in modes iptables and ipvs
NFT_TABLE, NFT_CHAINS = "kube-proxy", ("masquerading", "mark-for-masquerade")
_ALL_BITS = 2**32 - 1
_XT_MARK = struct.Struct("=II")  # struct xt_mark_tginfo2: mark, mask


class MarkReader:
    """Reads the mark from chains of one table. A few rules are read, however many the table holds; they are decoded
    again only if they are other ones."""

    def __init__(self, family: Family, table: str, chains: tuple[str, ...]) -> None:
        self._family = family
        self._table = table
        self._chains = chains
        dumps = FingerprintRequest.of_table(family, table, (), chains).dumps
        self._request = FingerprintRequest(dumps=dumps)
        self._answer: bytes | None = None
        self._evidence: MarkEvidence | None = None

    def read(self, netlink: Nfnetlink) -> MarkEvidence | None:
        """Return the mark; None if there is no such chain, or none whose rules set or test one. Raises KernelError."""
        try:
            answer = netlink.fingerprint(self._request)
        except Interrupted:  # a commit at this very moment, of the other family perhaps; a dump of rules tries again
            return self._decode(netlink)
        if answer != self._answer:
            self._evidence = self._decode(netlink)
            self._answer = answer
        return self._evidence

    def _decode(self, netlink: Nfnetlink) -> MarkEvidence | None:
        for chain in self._chains:
            mark = mark_of(netlink.rules(self._family, self._table, chain))
            if mark is not None:
                return MarkEvidence(mark, f"chain {chain} of table {self._family.data.nft} {self._table}")
        return None


def mark_of(rules: Iterable[KernelRule]) -> Mark | None:
    """Return the first mark that these rules set, or test a bit of."""
    return next((mark for rule in rules if (mark := _mark_in(rule)) is not None), None)


def has_services(netlink: Nfnetlink, family: Family) -> bool:
    """Return True if kube-proxy has rules for services in nf_tables, in any of its modes. Raises KernelError."""
    if netlink.table(family, "nat") is not None and netlink.chain(family, "nat", SERVICES_CHAIN) is not None:
        return True
    return netlink.table(family, NFT_TABLE) is not None


def keeps_mark(rules: Iterable[KernelRule]) -> bool:
    """Return True if these rules of POSTROUTING_CHAIN masquerade, and none changes the mark, as up to release 1.18."""
    expressions = [expression for rule in rules for expression in rule.expressions]
    return any(map(_masquerades, expressions)) and not any(map(_writes_mark, expressions))


def _masquerades(expression: Expression) -> bool:
    return expression.name == "masq" or _target(expression) == "MASQUERADE"


def _writes_mark(expression: Expression) -> bool:
    if expression.name != "meta":
        return _target(expression) == "MARK"
    values = dict(attributes(expression.data))
    return uapi.NFTA_META_SREG in values and u32(values.get(uapi.NFTA_META_KEY)) == uapi.NFT_META_MARK


def _target(expression: Expression) -> str:
    return extension(expression)[0] if expression.name == "target" else ""


def usable(value: int, mask: int) -> Mark | None:
    """Return the mark of packets whose bits in `mask` were set to `value`; None if a test could not tell them from
    packets without a mark."""
    return Mark(value, mask) if value and not value & ~mask else None


def _mark_in(rule: KernelRule) -> Mark | None:
    registers: dict[int, _Bits] = {}
    for expression in rule.expressions:
        name, info = extension(expression)
        if name == "MARK" and expression.name == "target" and len(info) >= _XT_MARK.size:
            return usable(*_XT_MARK.unpack_from(info))
        values = dict(attributes(expression.data))
        mark = _follow(registers, expression.name, values)
        if mark is not None:
            return mark
    return None


@dataclass(frozen=True, **SLOTS)
class _Bits:
    """The content of a register, made from the packet's mark: `mark & kept ^ flipped`."""

    kept: int = _ALL_BITS
    flipped: int = 0


def _follow(registers: dict[int, _Bits], name: str, values: dict[int, bytes]) -> Mark | None:
    """Follow one expression. Return the mark that it sets or tests."""
    if name == "meta" and u32(values.get(uapi.NFTA_META_KEY)) == uapi.NFT_META_MARK:
        if uapi.NFTA_META_DREG in values:
            registers[u32(values[uapi.NFTA_META_DREG])] = _Bits()
            return None
        written = registers.get(u32(values.get(uapi.NFTA_META_SREG)))
        return None if written is None else usable(written.flipped, ~written.kept & _ALL_BITS)
    if name == "bitwise":
        _combine(registers, values)
    if name == "cmp" and not _number(values.get(uapi.NFTA_CMP_DATA, b"")):
        tested = registers.get(u32(values.get(uapi.NFTA_CMP_SREG)))
        # a test for all bits being zero tells a mark only if it looks at one of them
        if tested is not None and not tested.flipped and bin(tested.kept).count("1") == 1:
            return Mark(tested.kept, tested.kept)
    return None


def _combine(registers: dict[int, _Bits], values: dict[int, bytes]) -> None:
    source = registers.get(u32(values.get(uapi.NFTA_BITWISE_SREG)))
    target = u32(values.get(uapi.NFTA_BITWISE_DREG))
    registers.pop(target, None)
    if source is None or u32(values.get(uapi.NFTA_BITWISE_OP)) != uapi.NFT_BITWISE_MASK_XOR:
        return
    mask = _number(values.get(uapi.NFTA_BITWISE_MASK, b""))
    xor = _number(values.get(uapi.NFTA_BITWISE_XOR, b""))
    registers[target] = _Bits(source.kept & mask, source.flipped & mask ^ xor)


def _number(data: bytes) -> int:
    return int.from_bytes(dict(attributes(data)).get(uapi.NFTA_DATA_VALUE, b""), sys.byteorder)
