"""Changes of nf_tables as messages, of which a transaction consists. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32, nested, nft_msg_type, string
from flanneld_masq.kernel.objects import Chain, Expression, KernelRule, chain_key, rules_key, table_key
from flanneld_masq.model import SLOTS

_NEWTABLE, _DELTABLE = nft_msg_type(uapi.NFT_MSG_NEWTABLE), nft_msg_type(uapi.NFT_MSG_DELTABLE)
_NEWCHAIN, _DELCHAIN = nft_msg_type(uapi.NFT_MSG_NEWCHAIN), nft_msg_type(uapi.NFT_MSG_DELCHAIN)
_NEWRULE, _DELRULE = nft_msg_type(uapi.NFT_MSG_NEWRULE), nft_msg_type(uapi.NFT_MSG_DELRULE)


@dataclass(frozen=True, **SLOTS)
class Message:
    """One change: its nlmsg_type, the attributes of the object, and NLM_F_* flags."""

    kind: int
    body: bytes
    flags: int = 0


def new_table(table: str, flags: int = 0) -> Message:
    """Add a table, or leave the one that is there as it is. With NFT_TABLE_F_OWNER it belongs to this socket; that of
    another living socket is refused, and one that is there can get the flag only if it has NFT_TABLE_F_PERSIST."""
    flagged = be32(uapi.NFTA_TABLE_FLAGS, flags) if flags else b""
    return Message(_NEWTABLE, table_key(table) + flagged, uapi.NLM_F_CREATE)


def delete_table(table: str) -> Message:
    """Delete a table with all that is in it. The kernel refuses if it is not there."""
    return Message(_DELTABLE, table_key(table))


def new_chain(table: str, chain: Chain, *, policy: int | None = None) -> Message:
    """Add a chain, or leave the one that is there as it is. Without a policy (NF_DROP or NF_ACCEPT) a new base chain
    accepts, and one that is there keeps its own."""
    body = chain_key(table, chain.name)
    if chain.hook is not None:
        priority = attribute(uapi.NFTA_HOOK_PRIORITY, struct.pack(">i", chain.priority))
        body += nested(uapi.NFTA_CHAIN_HOOK, be32(uapi.NFTA_HOOK_HOOKNUM, chain.hook) + priority)
        body += string(uapi.NFTA_CHAIN_TYPE, chain.type)
    if policy is not None:
        body += be32(uapi.NFTA_CHAIN_POLICY, policy)
    return Message(_NEWCHAIN, body, uapi.NLM_F_CREATE)


def delete_chain(table: str, chain: str) -> Message:
    """Delete a chain. The kernel refuses if rules are in it or jump to it."""
    return Message(_DELCHAIN, chain_key(table, chain))


def new_rule(table: str, rule: KernelRule, *, ahead: bool = False, before: int = 0) -> Message:
    """Add a rule to the chain that it was read from: behind all others, `ahead` of them, or right `before` the rule
    with that handle. The kernel refuses if that rule is not there."""
    expressions = b"".join(map(_expression, rule.expressions))
    body = rules_key(table, rule.chain) + nested(uapi.NFTA_RULE_EXPRESSIONS, expressions)
    body += attribute(uapi.NFTA_RULE_USERDATA, rule.userdata) if rule.userdata else b""
    body += attribute(uapi.NFTA_RULE_POSITION, before.to_bytes(8, "big")) if before else b""
    return Message(_NEWRULE, body, uapi.NLM_F_CREATE | (0 if ahead or before else uapi.NLM_F_APPEND))


def delete_rule(table: str, chain: str, handle: int) -> Message:
    """Delete one rule. The kernel refuses if it is not there."""
    body = rules_key(table, chain) + attribute(uapi.NFTA_RULE_HANDLE, handle.to_bytes(8, "big"))
    return Message(_DELRULE, body)


def flush_chain(table: str, chain: str) -> Message:
    """Delete all rules of a chain."""
    return Message(_DELRULE, rules_key(table, chain))


def _expression(expression: Expression) -> bytes:
    data = nested(uapi.NFTA_EXPR_DATA, expression.data)
    return nested(uapi.NFTA_LIST_ELEM, string(uapi.NFTA_EXPR_NAME, expression.name) + data)
