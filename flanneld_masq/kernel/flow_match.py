"""Encodes rules that match one flow of packets, to trace them or to drop them. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel; the offsets are those of RFC 791 and RFC 8200.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32, nested
from flanneld_masq.kernel.objects import Expression, KernelRule
from flanneld_masq.model import SLOTS, Address, Family, family_of

_OFFSETS = {Family.IPV4: (12, 16), Family.IPV6: (8, 24)}  # bytes, of source and destination in the network header
_DPORT = (2, 2)  # offset and length in bytes, in the header of TCP and UDP
_LOOPBACK = (1).to_bytes(4, sys.byteorder)  # the kernel gives `lo` the index 1 in every network namespace


@dataclass(frozen=True, **SLOTS)
class Flow:
    """The packets from one address to another, as their sender sends them.

    `dst` is None for any, and `proto` (the number of an IP protocol) and `dport` (a port of TCP or UDP) are 0.
    """

    src: Address
    dst: Address | None
    proto: int = 0
    dport: int = 0

    @property
    def family(self) -> Family:
        return family_of(self.src)


def trace_rule(flow: Flow, chain: str, *, rate: int, burst: int, arriving: bool) -> KernelRule:
    """Return the rule that turns tracing on for packets of the flow: `rate` of them a second, and `burst` at once.

    If they are `arriving`, those from `lo` do not match: the chain of the output hook has seen them.
    """
    expressions = [
        *(_not_from_loopback() if arriving else ()),
        *_matches(flow),
        _limit(rate, burst),
        *_set_nftrace(),
    ]
    return KernelRule(chain, 0, tuple(expressions), b"")


def guard_rule(src: Address, chain: str, devices: Iterable[int]) -> KernelRule:
    """Return the rule that drops packets from an address that leave by none of these devices (indexes)."""
    expressions = list(_matches(Flow(src, None)))
    for device in devices:
        expressions.append(_load_meta(uapi.NFT_META_OIF))
        expressions.append(_compare(device.to_bytes(4, sys.byteorder), uapi.NFT_CMP_NEQ))
    verdict = nested(uapi.NFTA_DATA_VERDICT, be32(uapi.NFTA_VERDICT_CODE, uapi.NF_DROP))
    drop = be32(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_VERDICT) + nested(uapi.NFTA_IMMEDIATE_DATA, verdict)
    return KernelRule(chain, 0, (*expressions, Expression("immediate", drop)), b"")


def _matches(flow: Flow) -> Iterator[Expression]:
    for offset, value in zip(_OFFSETS[flow.family], (flow.src, flow.dst)):
        if value is None:
            continue
        yield _load_payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, len(value.packed))
        yield _compare(value.packed)
    if flow.proto:
        yield _load_meta(uapi.NFT_META_L4PROTO)
        yield _compare(bytes((flow.proto,)))
    if flow.dport:
        yield _load_payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, *_DPORT)
        yield _compare(flow.dport.to_bytes(2, "big"))


def _not_from_loopback() -> Iterator[Expression]:
    yield _load_meta(uapi.NFT_META_IIF)
    yield _compare(_LOOPBACK, uapi.NFT_CMP_NEQ)


def _set_nftrace() -> Iterator[Expression]:
    value = nested(uapi.NFTA_IMMEDIATE_DATA, attribute(uapi.NFTA_DATA_VALUE, b"\1"))
    yield Expression("immediate", be32(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_1) + value)
    key = be32(uapi.NFTA_META_KEY, uapi.NFT_META_NFTRACE)
    yield Expression("meta", key + be32(uapi.NFTA_META_SREG, uapi.NFT_REG_1))


def _load_payload(base: int, offset: int, length: int) -> Expression:
    numbers = (
        (uapi.NFTA_PAYLOAD_DREG, uapi.NFT_REG_1),
        (uapi.NFTA_PAYLOAD_BASE, base),
        (uapi.NFTA_PAYLOAD_OFFSET, offset),
        (uapi.NFTA_PAYLOAD_LEN, length),
    )
    return Expression("payload", b"".join(be32(kind, number) for kind, number in numbers))


def _load_meta(key: int) -> Expression:
    return Expression("meta", be32(uapi.NFTA_META_KEY, key) + be32(uapi.NFTA_META_DREG, uapi.NFT_REG_1))


def _compare(value: bytes, operator: int = uapi.NFT_CMP_EQ) -> Expression:
    data = nested(uapi.NFTA_CMP_DATA, attribute(uapi.NFTA_DATA_VALUE, value))
    return Expression("cmp", be32(uapi.NFTA_CMP_SREG, uapi.NFT_REG_1) + be32(uapi.NFTA_CMP_OP, operator) + data)


def _limit(rate: int, burst: int) -> Expression:
    body = attribute(uapi.NFTA_LIMIT_RATE, rate.to_bytes(8, "big"))
    body += attribute(uapi.NFTA_LIMIT_UNIT, (1).to_bytes(8, "big"))  # second
    body += be32(uapi.NFTA_LIMIT_BURST, burst) + be32(uapi.NFTA_LIMIT_TYPE, uapi.NFT_LIMIT_PKTS)
    return Expression("limit", body)
