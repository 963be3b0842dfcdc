"""Examines what the subnet files say. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.model import Family, FamilyLease, Lease


def unknown(facts: Facts) -> Iterator[Finding]:
    for trouble in facts.troubles:
        yield finding(Kind.SUBNET_UNKNOWN, trouble)


def overlapping(facts: Facts) -> Iterator[Finding]:
    for one, other in combinations(facts.leases, 2):
        for family in Family:
            first, second = one.of(family), other.of(family)
            if first and second and first.subnet != second.subnet and _overlap(first, second):
                seen = f"{_said(one, first)}; {_said(other, second)}"
                yield finding(Kind.SUBNET_FILES_OVERLAP, seen, family)


def flannel_masquerades(facts: Facts) -> Iterator[Finding]:
    effects = [effect for family in facts.families for effect in family.effects.values()]
    state = "" if effects or facts.unread.rules else ", but none of its masquerade rules is there"
    none = "" if any(effect.conflicts or effect.unread for effect in effects) else "none is needed; "
    for lease in facts.leases:
        if lease.ipmasq:
            seen = f"{lease.path} says FLANNEL_IPMASQ=true"
            yield finding(Kind.FLANNEL_MASQUERADES, seen, state=state, none=none)


def _overlap(one: FamilyLease, other: FamilyLease) -> bool:
    return any(first.overlaps(second) for first in one.networks for second in other.networks)


def _said(lease: Lease, family: FamilyLease) -> str:
    return f"{lease.path}: {', '.join(map(str, family.networks))}, subnet {family.subnet}"
