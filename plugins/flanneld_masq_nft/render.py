"""Rules in nft's language, as `nft list table` prints what the daemon writes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.rule_encoding import ALL_BITS
from flanneld_masq.model import (
    SLOTS,
    Desired,
    Family,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Network,
    Protection,
    Rule,
    Verdict,
)

TABLE = "flanneld-masq"


@dataclass(frozen=True, **SLOTS)
class BaseChain:
    """A base chain of the daemon. `hook_number` is the kernel's NF_INET_* number of the hook."""

    name: str
    type: str
    hook: str
    hook_number: int
    priority: int

    @property
    def declaration(self) -> str:
        return describe_chain(self.type, self.hook, self.priority, "accept")


CHAINS = {
    Group.MASQUERADE: BaseChain("postrouting", "nat", "postrouting", uapi.NF_INET_POST_ROUTING, 100),
    Group.FORWARD: BaseChain("forward", "filter", "forward", uapi.NF_INET_FORWARD, 0),
}


def table_place(family: Family) -> str:
    return f"{family.data.nft} {TABLE}"


def chain_place(family: Family, group: Group) -> str:
    return f"{table_place(family)} {CHAINS[group].name}"


def describe_chain(kind: str, hook: str, priority: int, policy: str) -> str:
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


def describe_table(family: Family, uses: int, protection: Protection, flags: int = 0, owner: int = 0) -> str:
    """Return the table in words. `uses` counts its chains, sets and objects, so that a foreign one shows. `flags` and
    `owner` (a netlink port) are those that `protection` does not explain."""
    extra = "" if protection is Protection.NONE else f", protected ({protection})"
    extra += (f", flags {flags:#x}" if flags else "") + (f", owned by netlink port {owner}" if owner else "")
    return f"table {table_place(family)} holding {uses} chains, sets and objects{extra}"


def rule_text(family: Family, rule: Rule) -> str:
    return " ".join([*_matches(family, rule), _verdict(rule), f'comment "{rule.comment}"'])


def items(desired: Desired) -> tuple[Item, ...]:
    """Return the items of an observation of `desired`. The kernel's form of rules is not known beforehand."""
    if not desired.groups:
        return ()
    table, *chains = structure(desired)
    all_items = [table]
    for chain, group in zip(chains, desired.groups):
        rules = (
            Item(ItemKind.RULE, chain.place, rule_text(desired.family, rule), tag=rule.tag) for rule in group.rules
        )
        all_items += [chain, *rules]
    return tuple(all_items)


def structure(desired: Desired) -> tuple[Item, ...]:
    """Return the table and its chains, as an observation has them."""
    table = describe_table(desired.family, len(desired.groups), desired.protection)
    return (
        Item(ItemKind.TABLE, table_place(desired.family), table, raw=table),
        *(_chain_item(desired.family, group.group) for group in desired.groups),
    )


def render(desired: Desired) -> str:
    """Return the table as a block for `nft -f`; empty if nothing is desired."""
    if not desired.groups:
        return ""
    blocks = "\n".join(_block(desired.family, group) for group in desired.groups)
    return f"table {table_place(desired.family)} {{\n{blocks}}}\n"


def _chain_item(family: Family, group: Group) -> Item:
    declaration = CHAINS[group].declaration
    return Item(ItemKind.CHAIN, chain_place(family, group), declaration, raw=declaration)


def _block(family: Family, group: GroupRules) -> str:
    chain = CHAINS[group.group]
    rules = "".join(f"\t\t{rule_text(family, rule)}\n" for rule in group.rules)
    return f"\tchain {chain.name} {{\n\t\t{chain.declaration}\n{rules}\t}}\n"


def _matches(family: Family, rule: Rule) -> Iterator[str]:
    if rule.mark is not None:
        masked = "" if rule.mark.mask == ALL_BITS else f"& {rule.mark.mask:#010x} == "
        yield f"meta mark {masked}{rule.mark.value:#010x}"
    if rule.src is not None:
        yield f"{family.data.nft} saddr {_network(rule.src)}"
    if rule.dst is not None:
        yield f"{family.data.nft} daddr {_network(rule.dst)}"
    if rule.dst_not is not None:
        yield f"{family.data.nft} daddr != {_network(rule.dst_not)}"
    if rule.invalid:
        yield "ct state invalid"


def _network(network: Network) -> str:
    """Return the network in nft's words, which give a single address no prefix length."""
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _verdict(rule: Rule) -> str:
    if rule.verdict is Verdict.MASQUERADE and rule.fully_random:
        return "masquerade fully-random"
    return rule.verdict.value
