"""Objects of nf_tables: as values, decoded from what the kernel answers, and the attributes that identify them. Pure.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel, and for user data udata.h of libnftnl.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attributes, string, text, u32, u64
from flanneld_masq.model import SLOTS, Traffic

CACHED_RULES = 256  # the same few rules are decoded again and again
_VOLATILE = frozenset({"counter", "quota", "last"})  # expressions whose data change with every packet
_UDATA_COMMENT = 0  # NFTNL_UDATA_TABLE_COMMENT, NFTNL_UDATA_CHAIN_COMMENT and NFTNL_UDATA_RULE_COMMENT
_GENERATIONS = 1 << 32


@dataclass(frozen=True, **SLOTS)
class Table:
    """A table. `use` counts the chains, sets and objects in it; `owner` is a netlink port, 0 for none."""

    name: str
    flags: int
    use: int
    owner: int
    comment: str = ""


@dataclass(frozen=True, **SLOTS)
class Chain:
    """A chain. `hook` (NF_INET_*) is None for a regular chain. `use` counts its rules and the jumps to it. `policy`
    is NF_DROP or NF_ACCEPT."""

    name: str
    handle: int
    use: int
    flags: int
    hook: int | None = None
    priority: int = 0
    type: str = ""
    policy: int | None = None
    comment: str = ""


@dataclass(frozen=True, **SLOTS)
class Expression:
    """One expression of a rule. `data` are its attributes as the kernel dumps them; a counter has none."""

    name: str
    data: bytes


@dataclass(frozen=True, **SLOTS)
class KernelRule:
    """One rule, as the kernel dumps it."""

    chain: str
    handle: int
    expressions: tuple[Expression, ...]
    userdata: bytes

    @property
    def raw(self) -> str:
        """Everything but handle and counters, as text. Two rules are equal exactly if their texts are."""
        return _raw(self.expressions, self.userdata)


def parse_table(reply: bytes) -> Table:
    """Decode the attributes of an NFT_MSG_NEWTABLE reply."""
    table = dict(attributes(reply))
    return Table(
        text(table.get(uapi.NFTA_TABLE_NAME)),
        flags=u32(table.get(uapi.NFTA_TABLE_FLAGS)),
        use=u32(table.get(uapi.NFTA_TABLE_USE)),
        owner=u32(table.get(uapi.NFTA_TABLE_OWNER)),
        comment=comment_in(table.get(uapi.NFTA_TABLE_USERDATA, b"")),
    )


def parse_chain(reply: bytes) -> Chain:
    """Decode the attributes of an NFT_MSG_NEWCHAIN reply. Only newer kernels set NFT_CHAIN_BASE, which says the same
    as `hook`, so it is left out of the flags."""
    chain = dict(attributes(reply))
    hook = dict(attributes(chain.get(uapi.NFTA_CHAIN_HOOK, b"")))
    policy = chain.get(uapi.NFTA_CHAIN_POLICY)
    number, priority = hook.get(uapi.NFTA_HOOK_HOOKNUM), hook.get(uapi.NFTA_HOOK_PRIORITY)
    return Chain(
        text(chain.get(uapi.NFTA_CHAIN_NAME)),
        handle=u64(chain.get(uapi.NFTA_CHAIN_HANDLE)),
        use=u32(chain.get(uapi.NFTA_CHAIN_USE)),
        flags=u32(chain.get(uapi.NFTA_CHAIN_FLAGS)) & ~uapi.NFT_CHAIN_BASE,
        hook=None if number is None else u32(number),
        priority=0 if priority is None else int.from_bytes(priority[:4], "big", signed=True),
        type=text(chain.get(uapi.NFTA_CHAIN_TYPE)),
        policy=None if policy is None else u32(policy),
        comment=comment_in(chain.get(uapi.NFTA_CHAIN_USERDATA, b"")),
    )


@lru_cache(CACHED_RULES)
def parse_rule(reply: bytes) -> tuple[str, KernelRule]:
    """Decode the attributes of an NFT_MSG_NEWRULE reply into the name of its table, and the rule."""
    rule = dict(attributes(reply))
    expressions = []
    for _, element in attributes(rule.get(uapi.NFTA_RULE_EXPRESSIONS, b"")):
        expression = dict(attributes(element))
        name = text(expression.get(uapi.NFTA_EXPR_NAME))
        data = b"" if name in _VOLATILE else expression.get(uapi.NFTA_EXPR_DATA, b"")
        expressions.append(Expression(name, data))
    return text(rule.get(uapi.NFTA_RULE_TABLE)), KernelRule(
        text(rule.get(uapi.NFTA_RULE_CHAIN)),
        u64(rule.get(uapi.NFTA_RULE_HANDLE)),
        tuple(expressions),
        rule.get(uapi.NFTA_RULE_USERDATA, b""),
    )


def parse_counter(reply: bytes) -> Traffic:
    """Decode the counters in an NFT_MSG_NEWRULE reply; zeros for a rule without any."""
    total = Traffic(0, 0)
    for _, element in attributes(dict(attributes(reply)).get(uapi.NFTA_RULE_EXPRESSIONS, b"")):
        expression = dict(attributes(element))
        if text(expression.get(uapi.NFTA_EXPR_NAME)) == "counter":
            data = dict(attributes(expression.get(uapi.NFTA_EXPR_DATA, b"")))
            total += Traffic(u64(data.get(uapi.NFTA_COUNTER_PACKETS)), u64(data.get(uapi.NFTA_COUNTER_BYTES)))
    return total


def table_key(table: str) -> bytes:
    """Encode the attributes that identify a table."""
    return string(uapi.NFTA_TABLE_NAME, table)


def chain_key(table: str, chain: str) -> bytes:
    """Encode the attributes that identify a chain."""
    return string(uapi.NFTA_CHAIN_TABLE, table) + string(uapi.NFTA_CHAIN_NAME, chain)


def rules_key(table: str, chain: str | None = None) -> bytes:
    """Encode the attributes that identify the rules of one chain, or of all chains of the table."""
    return string(uapi.NFTA_RULE_TABLE, table) + (string(uapi.NFTA_RULE_CHAIN, chain) if chain else b"")


def comment_in(userdata: bytes) -> str:
    """Return the comment in the user data of a table, chain or rule; empty for none."""
    while len(userdata) >= 2:
        kind, length = userdata[0], userdata[1]
        if kind == _UDATA_COMMENT:
            return text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def userdata_of(comment: str) -> bytes:
    """Encode the user data of a table, chain or rule that has this comment and nothing else."""
    value = comment.encode() + b"\0"
    return bytes((_UDATA_COMMENT, len(value))) + value


def following(generation: int, transactions: int = 1) -> int:
    """Return the generation after so many transactions. The kernel counts modulo 2**32."""
    return (generation + transactions) % _GENERATIONS


def is_after(generation: int, other: int) -> bool:
    """Return True if a generation comes after the other one, by less than half of the kernel's range."""
    return 0 < (generation - other) % _GENERATIONS < _GENERATIONS // 2


@lru_cache(CACHED_RULES)
def _raw(expressions: tuple[Expression, ...], userdata: bytes) -> str:
    parts = [f"{expression.name}:{expression.data.hex()}" for expression in expressions]
    return " ".join([*parts, f"userdata:{userdata.hex()}"])
