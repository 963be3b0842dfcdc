"""Describes the changes of a pass in plain words, for log lines and commands. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Optional

from flanneld_masq.model import Change, ChangeKind, ItemKind

if TYPE_CHECKING:
    from flanneld_masq.reconcile.healing import Healed

_ORDER: tuple[Optional[ItemKind], ...] = (ItemKind.TABLE, ItemKind.CHAIN, ItemKind.RULE, ItemKind.JUMP, None)
_STATES = {
    ChangeKind.MISSING: "missing",
    ChangeKind.EXTRA: "not wanted",
    ChangeKind.CHANGED: "changed",
    ChangeKind.MOVED: "moved",
    ChangeKind.UNVERIFIED: "not verified",
    ChangeKind.FLANNEL: "flannel's",
}


def describe(changes: Iterable[Change], *, past: bool = True, limit: int = 2) -> str:
    """Return one line with a clause for each kind of change: "table, 2 chains and 7 rules were missing".

    Up to `limit` changes get a clause each, with place and text. `past` is False for what the kernel still holds.
    """
    every = tuple(changes)
    if len(every) <= limit:
        clauses = ((_clause(one.kind, (one.item,), past), one) for one in every)
        return "; ".join(f"{clause} in {one.place}: {one.found or one.wanted}" for clause, one in clauses)
    kinds = dict.fromkeys(change.kind for change in every)
    return "; ".join(_clause(kind, [one.item for one in every if one.kind is kind], past) for kind in kinds)


def describe_healed(healed: Healed) -> str:
    """Return one line: "2 flows healed in 1.5 ms: 1 had begun without masquerade, 1 had begun ..."."""
    causes = (
        f"{healed.slipped} had begun without masquerade" if healed.slipped else "",
        f"{healed.masqueraded} had begun with a masquerade that the rules exclude" if healed.masqueraded else "",
    )
    flows = "1 flow" if healed.flows == 1 else f"{healed.flows} flows"
    return f"{flows} healed in {healed.duration_us / 1000:.1f} ms: {', '.join(filter(None, causes))}"


def _clause(kind: ChangeKind, items: Sequence[Optional[ItemKind]], past: bool) -> str:
    """Return the text for the objects of one kind of change, for example "2 rules were changed"."""
    verb = ("was" if past else "is") if len(items) == 1 else ("were" if past else "are")
    return f"{_listed(list(_counted(Counter(items))))} {verb} {_STATES[kind]}"


def _counted(counts: Counter[Optional[ItemKind]]) -> Iterator[str]:
    for kind in _ORDER:
        noun = "object" if kind is None else kind.value
        if counts[kind]:
            yield noun if counts[kind] == 1 else f"{counts[kind]} {noun}s"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
