"""Builds the base chains of a snapshot: those of nf_tables, with xtables inside, and those of iptables-legacy. Pure.

nft shows the rules of iptables-nft without what their extensions match. So a rule with extensions is read from
iptables-nft-save, where the chain has as many rules there as here; otherwise its extensions may match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path import nft_tables, save_format
from flanneld_masq.packet_path.ipsets import IpSets
from flanneld_masq.packet_path.nft_rules import Compiler as NftCompiler
from flanneld_masq.packet_path.nft_tables import RawChain, RawTable, content_of
from flanneld_masq.packet_path.nft_text import comment_of, text_of
from flanneld_masq.packet_path.queues import queues
from flanneld_masq.packet_path.rules import BaseChain, Chain, Hook, Place, Rule, Verdict
from flanneld_masq.packet_path.save_format import SavedChain, SavedTable
from flanneld_masq.packet_path.snapshot import LEGACY, NFT, Snapshot
from flanneld_masq.packet_path.xtables_rules import Compiler as XtablesCompiler
from flanneld_masq.packet_path.xtables_rules import parts

_FAMILIES = {"ip": frozenset({4}), "ip6": frozenset({6}), "inet": frozenset({4, 6}), "netdev": frozenset({4, 6})}
_HOOKS = {hook.value: hook for hook in Hook}
_OF_DEVICES = (Hook.INGRESS.value, Hook.EGRESS.value)
_POLICIES = {"accept": Verdict.ACCEPT, "drop": Verdict.DROP}
_LOSES = re.compile(r'"(?:drop|reject|queue)": ?[{n]')  # a statement, or a verdict in a map
_LEGACY_ORDER = -1  # of tables whose registration is not known
# Priorities of NAT, in which all chains of the type run whatever their own: NF_IP_PRI_NAT_DST and _SRC.
NAT_PRIORITY = {Hook.PREROUTING: -100, Hook.OUTPUT: -100, Hook.INPUT: 100, Hook.POSTROUTING: 100}


def runs_at(base: BaseChain) -> int:
    """Return the priority at which the kernel calls a chain."""
    return NAT_PRIORITY.get(base.hook, base.priority) if base.nat else base.priority


@dataclass(frozen=True, **SLOTS)
class Xtable:
    """A table of iptables: the priority and the hooks of its chains. Source: net/ipv4/netfilter/iptable_*.c."""

    priority: Mapping[str, int]
    nat: bool = False


def _xtable(hooks: str, priority: int) -> Xtable:
    return Xtable(dict.fromkeys(hooks.split(), priority))


_XTABLES = {
    "raw": _xtable("PREROUTING OUTPUT", -300),
    "mangle": _xtable("PREROUTING INPUT FORWARD OUTPUT POSTROUTING", -150),
    "nat": Xtable({hook.name: priority for hook, priority in NAT_PRIORITY.items()}, nat=True),
    "filter": _xtable("INPUT FORWARD OUTPUT", 0),
    "security": _xtable("INPUT FORWARD OUTPUT", 50),
}


@dataclass(frozen=True, **SLOTS)
class Ruleset:
    """Every base chain that sees packets of IP. `beside` names the tables with base chains that are not evaluated:
    those of bridges and of ARP, and of devices that are not known; `losing` are those of them that may drop packets."""

    bases: tuple[BaseChain, ...]
    beside: tuple[str, ...] = ()
    losing: tuple[str, ...] = ()

    def at(self, hook: Hook, family: Family, *, latest_first: bool = True) -> tuple[BaseChain, ...]:
        """Return the chains of a hook in the order in which the kernel calls them, those of NAT among them.

        Of tables with the same priority the one that was registered last comes first (`nf_hook_entries_grow`). What is
        known of that is the order of their handles; `latest_first` False assumes the contrary for different tables.
        """
        found = [base for base in self.bases if base.hook is hook and family.data.version in base.versions]
        sign = -1 if latest_first else 1
        key = {id(base): (runs_at(base), base.priority, sign * base.order[0], -base.order[1]) for base in found}
        return tuple(sorted(found, key=lambda base: key[id(base)]))

    def has_ties(self, hook: Hook, family: Family) -> bool:
        """Return True if two tables have chains of one priority at a hook, so that their order is not certain."""
        places = [(runs_at(base), base.priority) for base in self.at(hook, family)]
        return len(places) != len(set(places))


def ruleset(snapshot: Snapshot) -> Ruleset:
    """Return the ruleset of a snapshot. Raises SnapshotError."""
    tables = nft_tables.tables(snapshot.ruleset)
    sets, read_queues = IpSets(snapshot.ipsets), queues(snapshot.queues)
    saved = {
        (save.family, save.flavour): (save_format.tables(save.text), XtablesCompiler(save.family, sets, read_queues))
        for save in snapshot.saves
    }
    bases: list[BaseChain] = []
    for table in tables:
        own: SavedTable = {}
        xtables = XtablesCompiler(_family(table), sets, read_queues)
        if table.family in ("ip", "ip6") and (_family(table), NFT) in saved:
            found, xtables = saved[_family(table), NFT]
            own = found.get(table.name, {})
        bases += _nft_bases(table, NftCompiler(table, read_queues), own, xtables)
    for (family, flavour), (found, xtables) in saved.items():
        read = {table.name for table in tables if table.family == family.data.nft}
        for name, chains in found.items():
            if flavour == LEGACY or (name not in read and not snapshot.ruleset):
                bases += _saved_bases(family, flavour, name, chains, xtables)
    beside = [table for table in tables if _is_beside(table)]
    return Ruleset(tuple(bases), _names(beside), _names(filter(_may_lose, beside)))


def _family(table: RawTable) -> Family:
    return Family.IPV6 if table.family == "ip6" else Family.IPV4


def _names(tables: Iterable[RawTable]) -> tuple[str, ...]:
    return tuple(f"{table.family} {table.name}" for table in tables)


def _is_beside(table: RawTable) -> bool:
    if table.dormant:
        return False
    chains = table.chains.values()
    if table.family in ("bridge", "arp"):
        return any(chain.hook for chain in chains)
    return any(chain.hook in _OF_DEVICES and chain.devices is None for chain in chains)


def _may_lose(table: RawTable) -> bool:
    """Return True if a policy or a rule of the table drops, rejects or queues packets."""
    rules = (rule for chain in table.chains.values() for rule in chain.rules)
    policies = (chain.policy for chain in table.chains.values() if chain.hook)
    return "drop" in policies or any(_LOSES.search(rule.text) for rule in rules)


# ---- nf_tables


def _nft_bases(
    table: RawTable, compiler: NftCompiler, saved: SavedTable, xtables: XtablesCompiler
) -> Iterator[BaseChain]:
    if table.dormant or table.family not in _FAMILIES:
        return
    chains = {name: _nft_chain(table, raw, compiler, saved.get(name), xtables) for name, raw in table.chains.items()}
    for name, raw in table.chains.items():
        if raw.hook in _HOOKS and (raw.devices is not None or raw.hook not in _OF_DEVICES):
            yield BaseChain(
                _HOOKS[raw.hook],
                raw.priority,
                f"{table.family} {table.name}",
                chains[name],
                _POLICIES.get(raw.policy, Verdict.ACCEPT),
                _FAMILIES[table.family],
                raw.kind == "nat",
                (table.handle, raw.handle),
                chains,
                raw.devices or frozenset(),
            )


def _nft_chain(
    table: RawTable, raw: RawChain, compiler: NftCompiler, saved: SavedChain | None, xtables: XtablesCompiler
) -> Chain:
    """Return a chain; of a table that nft was not asked for, with the rules of iptables-nft-save."""
    if saved is not None and saved.lines and not raw.rules:
        load = partial(_saved_rule, f"{table.family} {table.name}", raw.name, saved, xtables)
        return Chain(raw.name, saved.lines, load)
    texts = [rule.text for rule in raw.rules]
    return Chain(raw.name, texts, partial(_nft_rule, table, raw, compiler, saved, xtables))


def _nft_rule(
    table: RawTable,
    chain: RawChain,
    compiler: NftCompiler,
    saved: SavedChain | None,
    xtables: XtablesCompiler,
    index: int,
) -> Rule:
    raw = chain.rules[index]
    where = f"{table.family} {table.name}"
    if saved is not None and len(saved.lines) == len(chain.rules):
        line = saved.lines[index]
        found, comment = parts(line)
        place = Place(where, chain.name, index + 1, raw.handle, line, comment)
        return xtables.rule(found, place) if raw.extensions else compiler.rule(content_of(raw.text), place)
    content = content_of(raw.text)
    place = Place(where, chain.name, index + 1, raw.handle, text_of(content), comment_of(content))
    return compiler.rule(content, place)


# ---- iptables-save


def _saved_bases(
    family: Family, flavour: str, name: str, chains: SavedTable, xtables: XtablesCompiler
) -> Iterator[BaseChain]:
    kind = _XTABLES.get(name)
    if kind is None:
        return
    where = f"{family.data.nft} {name}" if flavour == NFT else f"legacy {family.data.nft} {name}"
    loaded = {
        chain: Chain(chain, saved.lines, partial(_saved_rule, where, chain, saved, xtables))
        for chain, saved in chains.items()
    }
    for chain, priority in kind.priority.items():
        if chain in loaded and chains[chain].policy:
            yield BaseChain(
                Hook(chain.lower()),
                priority,
                where,
                loaded[chain],
                _POLICIES.get(chains[chain].policy.lower(), Verdict.ACCEPT),
                frozenset({family.data.version}),
                kind.nat,
                (_LEGACY_ORDER, 0),
                loaded,
            )


def _saved_rule(where: str, chain: str, saved: SavedChain, xtables: XtablesCompiler, index: int) -> Rule:
    line = saved.lines[index]
    found, comment = parts(line)
    return xtables.rule(found, Place(where, chain, index + 1, 0, line, comment))
