"""Encodes rules that match one flow of packets, to trace them or to drop them. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32
from flanneld_masq.kernel.objects import Expression, KernelRule
from flanneld_masq.kernel.rule_encoding import (
    OFFSETS,
    compared,
    host_order,
    immediate_verdict,
    load_meta,
    load_payload,
    register,
    value,
)
from flanneld_masq.model import SLOTS, Address, Family, family_of

_DPORT = (2, 2)  # offset and length in bytes, in the header of TCP and UDP
_LOOPBACK = 1  # the kernel gives `lo` the index 1 in every network namespace


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
        expressions.append(load_meta(uapi.NFT_META_OIF))
        expressions.append(compared(uapi.NFT_CMP_NEQ, host_order(device)))
    return KernelRule(chain, 0, (*expressions, immediate_verdict(uapi.NF_DROP)), b"")


def _matches(flow: Flow) -> Iterator[Expression]:
    for offset, address in zip(OFFSETS[flow.family], (flow.src, flow.dst)):
        if address is None:
            continue
        yield load_payload(uapi.NFT_PAYLOAD_NETWORK_HEADER, offset, len(address.packed))
        yield compared(uapi.NFT_CMP_EQ, address.packed)
    if flow.proto:
        yield load_meta(uapi.NFT_META_L4PROTO)
        yield compared(uapi.NFT_CMP_EQ, bytes((flow.proto,)))
    if flow.dport:
        yield load_payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, *_DPORT)
        yield compared(uapi.NFT_CMP_EQ, flow.dport.to_bytes(2, "big"))


def _not_from_loopback() -> Iterator[Expression]:
    yield load_meta(uapi.NFT_META_IIF)
    yield compared(uapi.NFT_CMP_NEQ, host_order(_LOOPBACK))


def _set_nftrace() -> Iterator[Expression]:
    yield Expression("immediate", register(uapi.NFTA_IMMEDIATE_DREG) + value(uapi.NFTA_IMMEDIATE_DATA, b"\1"))
    key = be32(uapi.NFTA_META_KEY, uapi.NFT_META_NFTRACE)
    yield Expression("meta", key + register(uapi.NFTA_META_SREG))


def _limit(rate: int, burst: int) -> Expression:
    body = attribute(uapi.NFTA_LIMIT_RATE, rate.to_bytes(8, "big"))
    body += attribute(uapi.NFTA_LIMIT_UNIT, (1).to_bytes(8, "big"))  # second
    body += be32(uapi.NFTA_LIMIT_BURST, burst) + be32(uapi.NFTA_LIMIT_TYPE, uapi.NFT_LIMIT_PKTS)
    return Expression("limit", body)
