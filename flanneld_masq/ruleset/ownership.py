"""Decides if chains and tables with one of the daemon's names belong to the daemon. Pure.

A rule or jump belongs to the daemon if its comment is the daemon's prefix and a tag. A chain or table belongs to the
daemon if one of its rules, or a jump to it, does. Without any such sign it is a stranger: another program flushed the
daemon's chain, or made a chain of that name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from flanneld_masq.errors import RulesetError
from flanneld_masq.model import Item, Observation, Stranger, VerifiedState


def settled(wanted: Collection[Item], verified_state: VerifiedState | None, observed: Observation) -> Observation:
    """Return the observation without strangers: those that belong to the daemon are among its items.

    The verified state names those that the daemon wrote. The daemon also takes an empty one that has a wanted name.
    Raises RulesetError if another program's has a wanted name.
    """
    if not observed.strangers:
        return observed
    known = {item.place for item in verified_state.items} if verified_state is not None else set()
    ours = tuple(_claimed({item.place for item in wanted}, known, observed.strangers))
    return replace(observed, items=ours + observed.items, strangers=())


def _claimed(needed: set[str], known: set[str], strangers: tuple[Stranger, ...]) -> Iterator[Item]:
    for stranger in strangers:
        head = stranger.items[0]
        if head.place in known or (head.place in needed and stranger.empty):
            yield from stranger.items
        elif head.place in needed:
            raise RulesetError(
                f"{head.kind} {head.place} has a name of flanneld-masq, but another program made it: no rule in it "
                "has the daemon's tag, so the daemon leaves it alone; rename it, or remove it if no program needs "
                "it"
            )
