"""Rules written anew as the kernel once held them, without the tool that wrote them first."""

from __future__ import annotations

from collections.abc import Iterable

from flanneld_masq.kernel.expressions import comment
from flanneld_masq.kernel.nfnetlink import Chain, KernelRule, Nfnetlink
from flanneld_masq.model import COMMENT_PREFIX, Family, ItemKind, Observation


class Replay:
    """Remembers what the kernel made of our rules, by chain and comment. A comment says all that its rule does.
    Also the chains that they were in."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._known: dict[tuple[str, str], KernelRule] = {}
        self._chains: dict[tuple[str, str], Chain] = {}

    def learn(self, netlink: Nfnetlink, places: Iterable[tuple[str, str]], generation: int) -> None:
        """Read these chains (table, chain) right after our write. Nothing is learnt where the ruleset is not in
        the generation that this write made: then somebody else has written as well."""
        chains = {place: found for place in places if (found := netlink.chain(self._family, *place)) is not None}
        rules = [rule for place in chains for rule in netlink.rules(self._family, *place)]
        if netlink.generation() == generation:
            self._known = {(rule.chain, comment(rule)): rule for rule in rules if _is_ours(rule)}
            self._chains = chains

    def rules(self, chain: str, comments: Iterable[str]) -> tuple[KernelRule, ...]:
        """The rules with these comments. Raises LookupError where one was not learnt."""
        return tuple(self._known[chain, comment] for comment in comments)

    def chain(self, table: str, name: str) -> Chain:
        """As it was made. Raises LookupError where it was not learnt."""
        return self._chains[table, name]

    def forget(self) -> None:
        self._known, self._chains = {}, {}


def holds(observed: Observation, place: str, rules: tuple[KernelRule, ...]) -> bool:
    """Whether the chain at that place is there, with just these rules."""
    items = [item for item in observed.items if item.place == place and item.kind is not ItemKind.JUMP]
    raws = [item.raw for item in items if item.kind is ItemKind.RULE]
    return len(items) == len(raws) + 1 and raws == [rule.raw for rule in rules]


def _is_ours(rule: KernelRule) -> bool:
    return comment(rule).startswith(COMMENT_PREFIX)
