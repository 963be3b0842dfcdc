"""Tests that could run on several releases, and take turns. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def left_out_in_turns(tests: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the node ids of those tests that do not run. `tests` are pairs of node id and release; a node id names
    the release between its brackets. Of the node ids that differ in nothing else one runs, and in each file one
    release after the other has its turn."""
    variants: dict[str, list[str]] = defaultdict(list)
    for node_id, release in tests:
        if release:
            variants[node_id.replace(release, "RELEASE", 1)].append(node_id)
    turns: dict[str, int] = defaultdict(int)
    left_out: set[str] = set()
    for name, node_ids in variants.items():
        path = name.split("::")[0]
        if len(node_ids) > 1:
            turn = turns[path] % len(node_ids)
            left_out.update(node_ids[:turn] + node_ids[turn + 1 :])
            turns[path] += 1
    return frozenset(left_out)
