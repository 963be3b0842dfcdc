"""Rules as the kernel holds them, remembered so that a repair can write them without the tool that wrote them first."""

from __future__ import annotations

from collections.abc import Iterable

from flanneld_masq.kernel.expressions import comment
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Chain, KernelRule
from flanneld_masq.model import Family, ItemKind, Observation, tag_of


class RuleCache:
    """Remembers the daemon's rules, by chain and comment, and the chains that hold them. A comment identifies
    everything that its rule does."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._rules: dict[tuple[str, str], KernelRule] = {}
        self._chains: dict[tuple[str, str], Chain] = {}

    def learn(self, netlink: Nfnetlink, places: Iterable[tuple[str, str]], generation: int) -> None:
        """Read these chains (table, chain) right after the daemon's write, which made that generation. Remember nothing
        if the ruleset is in another one: then another program has written as well."""
        read = [(place, netlink.chain(self._family, *place)) for place in places]
        chains = {place: chain for place, chain in read if chain is not None}
        rules = [rule for place in chains for rule in netlink.rules(self._family, *place)]
        if netlink.generation() == generation:
            self._rules = {(rule.chain, comment(rule)): rule for rule in rules if tag_of(comment(rule))}
            self._chains = chains

    def rules(self, chain: str, comments: Iterable[str]) -> tuple[KernelRule, ...]:
        """Return the rules of a chain that have these comments, in the order of the comments. Raises LookupError if the
        cache lacks one."""
        return tuple(self._rules[chain, comment] for comment in comments)

    def chain(self, table: str, name: str) -> Chain:
        """Return the chain as it was made. Raises LookupError if it is not known."""
        return self._chains[table, name]

    def forget(self) -> None:
        self._rules, self._chains = {}, {}


def holds(observed: Observation, place: str, rules: tuple[KernelRule, ...]) -> bool:
    """Return True if the chain at that place is there, with exactly these rules."""
    items = [item for item in observed.items if item.place == place and item.kind is not ItemKind.JUMP]
    raws = [item.raw for item in items if item.kind is ItemKind.RULE]
    return len(items) == len(raws) + 1 and raws == [rule.raw for rule in rules]
