"""New flows that leave with the pod's address while other programs damage the rules, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

from . import damage
from .clock import pause, progress, until
from .daemon import Watches
from .damage import Damage
from .record import Record
from .repair import SPACING_SECONDS, repair
from .scale import SIZES, Scale
from .site import Site
from .traffic import Counts, Traffic, Wire
from .watch import Watch

MEASURED_SIZES = (min(SIZES), max(SIZES))
_DRAIN_SECONDS = 0.1  # after the rules are back, so that what was sent before has arrived
_EVERY = 1e-3  # between two looks at the rules


def gaps(watches: Watches, scale: Scale, record: Record) -> None:
    """Each kind of damage that spares the foreign rules, some times, with a stream of flows of its own."""
    for site, watch in watches.items():
        if site.foreign not in MEASURED_SIZES:
            continue
        progress(f"{site}: new flows while the rules are damaged")
        with ExitStack() as stack:
            wire = Wire(site)
            stack.callback(wire.close)
            for act in damage.content_by_program(site) if site.foreign else damage.gaps(site):
                found = measure(site, wire, watch, act, [SPACING_SECONDS] * scale.gaps)
                keep(record, site.subject, site.foreign, act.name, found)


def rulesets(watches: Watches, record: Record) -> None:
    """The whole ruleset flushed, with the foreign rules in it: the time and the flows. They are gone then, so once."""
    for site, watch in watches.items():
        if site.foreign and site.flavour == "nft":
            progress(f"{site}: ruleset flushed")
            with ExitStack() as stack:
                wire = Wire(site)
                stack.callback(wire.close)
                act = damage.everything(site)
                with wire.traffic() as traffic:
                    before = traffic.counts().wrong
                    taken = repair(site, watch, act)
                    pause(_DRAIN_SECONDS)
                    found = Found((traffic.counts().wrong - before,), traffic.finish())
                    keep(record, site.subject, site.foreign, act.name, found)
            record.add("ruleset", site.subject, site.foreign, "s", [taken])


@dataclass(frozen=True, **SLOTS)
class Found:
    """`wrong` has the flows of each damage that left with the pod's address, `last` the counts of the whole stream."""

    wrong: tuple[int, ...]
    last: Counts


def measure(site: Site, wire: Wire, watch: Watch, act: Damage, pauses: Sequence[float]) -> Found:
    """Do a damage after each of these pauses, in seconds; count the flows that leave with the pod's address."""
    with wire.traffic() as traffic:
        wrong = tuple(_wrong(traffic, watch, act, each, f"{site}: {act.name}") for each in pauses)
        return Found(wrong, traffic.finish())


def keep(record: Record, subject: str, foreign: int, name: str, found: Found) -> None:
    record.add(f"gap {name}", subject, foreign, "flows", found.wrong)
    for figure in ("stuck", "again", "lost", "late"):
        record.add(f"gap-{figure} {name}", subject, foreign, "flows", [getattr(found.last, figure)])


def _wrong(traffic: Traffic, watch: Watch, act: Damage, seconds: float, what: str) -> int:
    until(watch.whole, f"{what}: the rules are in order", every=_EVERY)
    pause(seconds)
    before = traffic.counts().wrong
    act()
    until(act.ended, f"{what}: it ends", every=_EVERY)
    act.check()
    until(watch.whole, f"{what}: the rules are back", every=_EVERY)
    pause(_DRAIN_SECONDS)
    return traffic.counts().wrong - before
