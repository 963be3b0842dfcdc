"""Repairs are counted by backend, damage and author, under a bounded number of labels."""

from __future__ import annotations

from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.status import LastWrite, RepairCount
from flanneld_masq.controller.tally import MAX_AUTHORS, Tally
from flanneld_masq.model import BackendName, Change, ChangeKind

NFT = BackendName("nft")


def repair(*names: str, kinds: tuple[ChangeKind, ...] = (ChangeKind.MISSING,)) -> LastWrite:
    changes = tuple(Change(kind, "somewhere") for kind in kinds)
    culprits = tuple(Culprit(name, 1) for name in names)
    return LastWrite("", NFT, "", drift=True, duration_us=1, changes=changes, culprits=culprits)


def counts(tally: Tally) -> dict[tuple[str, str], int]:
    return {(str(count.cause), count.author): count.count for count in tally.totals.repairs}


def test_the_most_suspicious_program_is_the_author() -> None:
    tally = Tally()
    for write in (repair("kube-proxy", "nft"), repair("nft"), repair()):
        tally.add(write)
    assert tally.repairs == 3
    assert tally.totals.repairs == (
        RepairCount(NFT, ChangeKind.MISSING, "nft", 2),
        RepairCount(NFT, ChangeKind.MISSING, "unknown", 1),
    )


def test_the_worst_damage_is_the_cause() -> None:
    tally = Tally()
    tally.add(repair("nft", kinds=(ChangeKind.EXTRA, ChangeKind.MOVED)))
    tally.add(repair("nft", kinds=(ChangeKind.EXTRA, ChangeKind.MISSING)))
    tally.add(repair("nft", kinds=()))
    assert counts(tally) == {("moved", "nft"): 1, ("missing", "nft"): 1, ("unverified", "nft"): 1}


def test_programs_with_endless_names_make_no_endless_labels() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(repair(f"program-{number}"))
    tally.add(repair("program-0"))
    found = counts(tally)
    assert len(found) == MAX_AUTHORS + 1
    assert found["missing", "others"] == 1000 - MAX_AUTHORS
    assert found["missing", "program-0"] == 2
