"""Requests whose answers are compared as bytes, not decoded. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import FIXED_SEQUENCE, attribute, attributes, message, nft_msg_type, string
from flanneld_masq.kernel.objects import chain_key, rules_key, table_key
from flanneld_masq.model import SLOTS, Family

_CACHED_REQUESTS = 256
_PLACE_OF_A_RULE = (uapi.NFTA_RULE_HANDLE, uapi.NFTA_RULE_POSITION)
# NFTA_EXPR_NAME "counter", then NFTA_EXPR_DATA with two numbers of 64 bits
_COUNTER = re.compile(re.escape(string(uapi.NFTA_EXPR_NAME, "counter")) + rb".{28}", re.DOTALL)


@dataclass(frozen=True, **SLOTS)
class FingerprintRequest:
    """Requests that are encoded once and sent many times: `gets` have one reply each, `dumps` any number."""

    gets: tuple[bytes, ...] = ()
    dumps: tuple[bytes, ...] = ()

    @classmethod
    @lru_cache(_CACHED_REQUESTS)
    def of_table(
        cls, family: Family, table: str, chains: tuple[str, ...], dumped: tuple[str | None, ...]
    ) -> FingerprintRequest:
        """Ask for a table, for its chains of these names, and for the rules of the chains in `dumped`, in which None
        stands for all chains."""
        asked = [(uapi.NFT_MSG_GETTABLE, table_key(table))]
        asked += [(uapi.NFT_MSG_GETCHAIN, chain_key(table, chain)) for chain in chains]
        gets = tuple(_request(kind, family, key) for kind, key in asked)
        return cls(gets) + cls.of_rules(family, table, dumped)

    @classmethod
    @lru_cache(_CACHED_REQUESTS)
    def of_rules(cls, family: Family, table: str, dumped: tuple[str | None, ...]) -> FingerprintRequest:
        """Ask for the rules of these chains; None stands for all chains of the table."""
        rules = [rules_key(table, chain) for chain in dumped]
        dumps = [_request(uapi.NFT_MSG_GETRULE, family, key, uapi.NLM_F_DUMP) for key in rules]
        return cls(dumps=tuple(dumps))

    def __add__(self, other: FingerprintRequest) -> FingerprintRequest:
        return FingerprintRequest(self.gets + other.gets, self.dumps + other.dumps)


def fingerprint_of(replies: list[bytes]) -> bytes:
    """Return the replies without counters: equal bytes mean equal objects."""
    joined = b"\n".join(replies)
    return _COUNTER.sub(b"counter", joined) if b"counter" in joined else joined


def contents_of(replies: list[bytes]) -> bytes:
    """Return the rules of a dump without counters, handles and positions: equal bytes mean rules that do the same.

    A program may have written them again. Raises KernelError if a reply is not made of attributes.
    """
    return fingerprint_of([_without_place(reply) for reply in replies])


def _without_place(reply: bytes) -> bytes:
    kept = (attribute(kind, value) for kind, value in attributes(reply) if kind not in _PLACE_OF_A_RULE)
    return b"".join(kept)


def _request(kind: int, family: Family, body: bytes, flags: int = 0) -> bytes:
    flags |= uapi.NLM_F_REQUEST
    return message(nft_msg_type(kind), flags, family.data.nfproto, 0, body, FIXED_SEQUENCE)
