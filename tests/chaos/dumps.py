"""Read listings of the kernel's rules: foreign rules in a form to compare, and each copy of the daemon's. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_nft import render

from flanneld_masq.model import COMMENT_PREFIX, SLOTS, Desired, Family, Group, Position

FLAVOURS = ("nft", "legacy")
_OUR_CHAINS = frozenset(place.chain for place in PLACES.values())
_TAG = re.compile(COMMENT_PREFIX + r'([0-9a-f]{12})(?=["\s]|$)')
_TO_OURS = re.compile(r"(?:-[jg]|\bjump|\bgoto) (?:" + "|".join(_OUR_CHAINS) + r")(?=\s|$)")
_DROPS = re.compile(r"-A FORWARD (?:-m comment --comment (?:\"[^\"]*\"|\S+) )?-j (?:DROP|REJECT)\b")


@dataclass(frozen=True, **SLOTS)
class Listings:
    """`nft list ruleset`, and of each family and flavour the output of iptables-save, all of one namespace."""

    nft: str
    saved: Mapping[tuple[Family, str], str]


@dataclass(frozen=True, **SLOTS)
class Copy:
    """The rules of one group in one backend: their tags in order, and how many jumps lead there."""

    tags: tuple[str, ...]
    jumps: int = 1


Copies = dict[tuple[Family, str, Group], Copy]


@dataclass
class Table:
    """A table of a save: the policies of its chains and their rules, in order."""

    policies: dict[str, str] = field(default_factory=dict)
    rules: dict[str, list[str]] = field(default_factory=dict)


def tables(saved: str) -> dict[str, Table]:
    """Read the output of iptables-save."""
    found: dict[str, Table] = {}
    table = Table()
    for line in saved.splitlines():
        if line.startswith("*"):
            table = found[line[1:]] = Table()
        elif line.startswith(":"):
            chain, declared = line[1:].split()[:2]
            table.policies[chain] = declared
            table.rules.setdefault(chain, [])
        elif line.startswith("-A "):
            table.rules[line.split()[1]].append(line)
    return found


# ---- foreign rules


def foreign(listings: Listings) -> tuple[str, ...]:
    """Return the objects that are not the daemon's, a line each. Built-in chains without rules and without a policy
    count as missing: the tools make them when they look."""
    lines = list(_foreign_nft(listings.nft))
    for (family, flavour), saved in listings.saved.items():
        for name, table in sorted(tables(saved).items()):
            for chain, rules in sorted(table.rules.items()):
                kept = [rule for rule in rules if not is_ours(rule)]
                bare = not kept and table.policies[chain] == "ACCEPT"
                if chain not in _OUR_CHAINS and not bare:
                    place = f"{family.data.tools}-{flavour} {name}"
                    lines += [f"{place} :{chain} {table.policies[chain]}", *(f"{place} {rule}" for rule in kept)]
    return tuple(lines)


def is_ours(line: str) -> bool:
    """Return True for a rule with a tag of flanneld-masq, and for one that jumps to a chain of it."""
    return bool(_TAG.search(line) or _TO_OURS.search(line))


def _foreign_nft(listing: str) -> Iterator[str]:
    for head, blocks in sorted(_blocks(listing, indent="")):
        if head.split()[2] == render.TABLE and head.split()[1] in ("ip", "ip6"):
            continue
        for below, content in sorted(_blocks("\n".join(blocks), indent="\t")):
            kept = [line.strip() for line in content if line.strip() and not is_ours(line)]
            kind, name = below.split()[:2]
            bare = all(re.fullmatch(r"type .* policy accept;", line) for line in kept) and kept
            if not (kind == "chain" and (name in _OUR_CHAINS or bare)):
                yield from (f"{head}: {below}: {line}" for line in kept or [""])


def _blocks(text: str, indent: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the head and the lines of each block at this indent."""
    head, content = "", list[str]()
    for line in text.splitlines():
        if line == f"{indent}}}":
            yield head, content
        elif line.startswith(indent) and line.endswith(" {") and not line[len(indent)].isspace():
            head, content = line[len(indent) : -2], []
        else:
            content.append(line)


# ---- the daemon's rules


def copies(listings: Listings) -> Copies:
    """Return every copy of a group that the kernel holds, whole or not."""
    found: Copies = {}
    for head, blocks in _blocks(listings.nft, indent=""):
        _, name, table = head.split()[:3]
        families = [family for family in Family if family.data.nft == name]
        if table == render.TABLE and families:
            chains = {below.split()[1]: content for below, content in _blocks("\n".join(blocks), indent="\t")}
            for group, chain in render.CHAINS.items():
                if chain.name in chains:
                    found[families[0], "nft", group] = Copy(_tags(chains.pop(chain.name)))
            for stray in chains:
                found[families[0], f"nft, chain {stray}", Group.FORWARD] = Copy(())
    for (family, flavour), saved in listings.saved.items():
        for group, place in PLACES.items():
            for name, content in tables(saved).items():
                jumps = [rule for rules in content.rules.values() for rule in rules if _leads_to(rule, place.chain)]
                if place.chain in content.rules or jumps:
                    rules = content.rules.get(place.chain, [])
                    key = (family, f"iptables-{flavour}" + ("" if name == place.table else f", {name}"), group)
                    found[key] = Copy(_tags(rules), len(jumps))
    return found


def wanted(desired: Mapping[Family, Desired], backend: str, forward: str, listings: Listings) -> Copies:
    """Return the copies that there must be. `backend` carries the masquerade group, `forward` is the setting."""
    found: Copies = {}
    for family, rules in desired.items():
        dropping = [f"iptables-{flavour}" for flavour in FLAVOURS if drops(listings.saved[family, flavour])]
        carriers = {Group.MASQUERADE: [backend], Group.FORWARD: [forward] if forward != "auto" else dropping}
        for group in rules.groups:
            tags = tuple(rule.tag for rule in group.rules)
            found.update({(family, name, group.group): Copy(tags) for name in carriers[group.group] or [backend]})
    return found


def drops(saved: str) -> bool:
    """Return True if FORWARD drops every packet, by its policy or by a rule without a condition."""
    table = tables(saved).get("filter", Table())
    return table.policies.get("FORWARD") == "DROP" or any(map(_DROPS.match, table.rules.get("FORWARD", ())))


def misplaced(desired: Mapping[Family, Desired], listings: Listings) -> Iterator[str]:
    """Yield each jump that is not in its place among the rules of others."""
    for (family, flavour), saved in listings.saved.items():
        for group, place in PLACES.items():
            rules = tables(saved).get(place.table, Table()).rules.get(place.base, [])
            where = [index for index, rule in enumerate(rules) if _leads_to(rule, place.chain)]
            position = desired[family].position_of(group)
            if not where or (group, position) == (Group.MASQUERADE, Position.LAST):
                continue
            others = [rule for rule in rules if not _leads_to(rule, place.chain)]
            blockers = [index for index, rule in enumerate(others) if _DROPS.match(rule)]
            due = {Position.FIRST: 0, Position.LAST: len(others), Position.AUTO: (blockers or [len(others)])[0]}
            if where != [due[position]]:
                yield f"{family} {flavour} {place.jump}: the jump is rule {where[0] + 1}, not {due[position] + 1}"


def differences(before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are in one of the two alone; those of `before` with a minus."""
    return (line for line in difflib.ndiff(list(before), list(after)) if line[0] in "+-")


def _tags(rules: Iterable[str]) -> tuple[str, ...]:
    """A rule without a tag counts too, for it does not belong there."""
    lines = (line.strip() for line in rules)
    rules = (line for line in lines if line and not line.startswith("type "))
    return tuple(tag[1] if (tag := _TAG.search(rule)) else f"no tag: {rule}" for rule in rules)


def _leads_to(rule: str, chain: str) -> bool:
    return re.search(rf"-[jg] {chain}(?=\s|$)", rule) is not None
