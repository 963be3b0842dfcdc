"""Encodes the daemon's rules for nf_tables, in the form in which the kernel dumps them. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel for expressions, udata.h of libnftnl for user data. The
expressions are those that libnftables makes of nft's words for the rule, so `nft list ruleset` prints these words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32
from flanneld_masq.kernel.objects import CACHED_RULES, Expression, KernelRule, userdata_of
from flanneld_masq.model import Family, Mark, Network, Rule, Verdict

ALL_BITS = (1 << 32) - 1  # of a mark
_VERDICTS = {Verdict.RETURN: uapi.NFT_RETURN, Verdict.ACCEPT: uapi.NF_ACCEPT, Verdict.DROP: uapi.NF_DROP}
OFFSETS = {Family.IPV4: (12, 16), Family.IPV6: (8, 24)}  # bytes, of source and destination (RFC 791, RFC 8200)


@lru_cache(CACHED_RULES)
def encode(family: Family, chain: str, rule: Rule) -> KernelRule:
    """Return the rule as the kernel holds it in a chain of that name. Its handle is 0."""
    return KernelRule(chain, 0, (*_matches(family, rule), _verdict(rule)), userdata_of(rule.comment))


def _matches(family: Family, rule: Rule) -> Iterator[Expression]:
    source, destination = OFFSETS[family]
    if rule.mark is not None:
        yield from _mark(rule.mark)
    if rule.src is not None:
        yield from _address(source, rule.src)
    if rule.dst is not None:
        yield from _address(destination, rule.dst)
    if rule.dst_not is not None:
        yield from _address(destination, rule.dst_not, uapi.NFT_CMP_NEQ)
    if rule.invalid:
        yield Expression("ct", register(uapi.NFTA_CT_DREG) + be32(uapi.NFTA_CT_KEY, uapi.NFT_CT_STATE))
        yield _masked(host_order(uapi.NF_CT_STATE_INVALID_BIT))
        yield compared(uapi.NFT_CMP_NEQ, host_order(0))


def _mark(mark: Mark) -> Iterator[Expression]:
    yield load_meta(uapi.NFT_META_MARK)
    if mark.mask != ALL_BITS:
        yield _masked(host_order(mark.mask))
    yield compared(uapi.NFT_CMP_EQ, host_order(mark.value))


def _address(offset: int, network: Network, operator: int = uapi.NFT_CMP_EQ) -> Iterator[Expression]:
    """Compare an address with a network. Only the bytes of a prefix of whole bytes are loaded."""
    whole, rest = divmod(network.prefixlen, 8)
    packed = network.network_address.packed
    length = whole if whole and not rest else len(packed)
    yield load_payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, length)
    if length * 8 != network.prefixlen:
        yield _masked(network.netmask.packed)
    yield compared(operator, packed[:length])


def _verdict(rule: Rule) -> Expression:
    if rule.verdict is Verdict.MASQUERADE:
        flags = be32(uapi.NFTA_MASQ_FLAGS, uapi.NF_NAT_RANGE_PROTO_RANDOM_FULLY) if rule.fully_random else b""
        return Expression("masq", flags)
    return immediate_verdict(_VERDICTS[rule.verdict])


def immediate_verdict(code: int) -> Expression:
    """End the rule with a verdict (NF_* or NFT_*)."""
    data = attribute(uapi.NFTA_VERDICT_CODE, code.to_bytes(4, "big", signed=True))
    verdict = attribute(uapi.NFTA_IMMEDIATE_DATA, attribute(uapi.NFTA_DATA_VERDICT, data))
    return Expression("immediate", be32(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_VERDICT) + verdict)


def load_meta(key: int) -> Expression:
    """Load into the register what the kernel knows of a packet (NFT_META_*)."""
    return Expression("meta", be32(uapi.NFTA_META_KEY, key) + register(uapi.NFTA_META_DREG))


def load_payload(base: int, offset: int, length: int) -> Expression:
    """Load bytes of a header (NFT_PAYLOAD_*) into the register. Offset and length are in bytes."""
    where = be32(uapi.NFTA_PAYLOAD_BASE, base) + be32(uapi.NFTA_PAYLOAD_OFFSET, offset)
    return Expression("payload", register(uapi.NFTA_PAYLOAD_DREG) + where + be32(uapi.NFTA_PAYLOAD_LEN, length))


def _masked(mask: bytes) -> Expression:
    """Return the expression that keeps only the bits of this mask in the register."""
    registers = register(uapi.NFTA_BITWISE_SREG) + register(uapi.NFTA_BITWISE_DREG)
    operation = be32(uapi.NFTA_BITWISE_LEN, len(mask)) + be32(uapi.NFTA_BITWISE_OP, uapi.NFT_BITWISE_MASK_XOR)
    values = value(uapi.NFTA_BITWISE_MASK, mask) + value(uapi.NFTA_BITWISE_XOR, bytes(len(mask)))
    return Expression("bitwise", registers + operation + values)


def compared(operator: int, data: bytes) -> Expression:
    """Compare the register with a value, and leave the rule unless the operator (NFT_CMP_*) holds."""
    return Expression(
        "cmp", register(uapi.NFTA_CMP_SREG) + be32(uapi.NFTA_CMP_OP, operator) + value(uapi.NFTA_CMP_DATA, data)
    )


def register(kind: int) -> bytes:
    """Return the attribute of this kind that names the register."""
    return be32(kind, uapi.NFT_REG_1)


def value(kind: int, data: bytes) -> bytes:
    """Return a netlink attribute of this kind with the data nested as NFTA_DATA_VALUE, as expressions carry values."""
    return attribute(kind, attribute(uapi.NFTA_DATA_VALUE, data))


def host_order(number: int) -> bytes:
    """Return 32 bits as the kernel holds them in a register."""
    return number.to_bytes(4, sys.byteorder)
