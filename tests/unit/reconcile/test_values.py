"""The text that describes changes."""

from __future__ import annotations

from flanneld_masq.model import Change, ChangeKind
from flanneld_masq.reconcile.values import describe


def test_few_changes_are_described_one_by_one() -> None:
    changes = (Change(ChangeKind.MISSING, "nat A", "rule a"), Change(ChangeKind.EXTRA, "nat A", found="drop"))
    assert describe(changes) == "missing in nat A: rule a; extra in nat A: drop"


def test_many_changes_are_counted() -> None:
    changes = (*(Change(ChangeKind.MISSING, "nat A", "rule a"),) * 3, Change(ChangeKind.MOVED, "nat B", "x", "y"))
    assert describe(changes) == "3 missing in nat A; 1 moved in nat B"
