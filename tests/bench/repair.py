"""Rules removed or doubled, until they are back; and a ruleset that others change all the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import Family

from . import damage
from .clock import DEADLINE, BenchError, now, pause, progress, until
from .daemon import Watches
from .damage import ByProgram, Damage
from .libnft import Nftables
from .record import Record
from .scale import SIZES, Scale
from .site import Site
from .usage import usage_of
from .watch import Watch, outage

SPACING_SECONDS = 0.6  # between two damages of one daemon: what it repairs for ever without growing delays
UNTOUCHED_ENOUGH = 10  # damages of a kind without effect, before no more of them are tried
_NOTED_SECONDS = 0.5  # in which the daemon notes a repair that no look saw
_LEGACY_REST = 3.3  # times the seconds of the last repair: the daemon reads the tables a quarter of the time at most
BUSY_PER_SECOND, BUSY_HIT_EVERY = 100, 100
_OURS = {"nft": ("flanneld-masq", "postrouting"), "iptables-nft": ("nat", "FLANNELD-MASQ")}
_FOREIGN = ("bench-foreign", "work")


def repairs(watches: Watches, scale: Scale, record: Record) -> None:
    """One at a time, of whichever daemon has rested the longest."""
    plans = {site: list(_plan(site, watch, scale))[::-1] for site, watch in watches.items()}
    due = dict.fromkeys(watches, now())
    while plans:
        left = sum(map(len, plans.values()))
        if left % 100 == 0:
            progress(f"repairs: {left} left")
        site = min(plans, key=due.__getitem__)
        pause(due[site] - now())
        figure, act = plans[site].pop()
        due[site] = now() + SPACING_SECONDS
        taken = repair(site, watches[site], act)
        record.add(figure, site.subject, site.foreign, "s", [taken])
        if taken == 0 and _without_effect(record, figure, site) >= UNTOUCHED_ENOUGH:
            plans[site] = [step for step in plans[site] if step[0] != figure]
        elif taken and figure == "content-exit" and isinstance(act, ByProgram):
            named = act.program in site.culprits()
            record.add("named", site.subject, site.foreign, "", [float(named)])
        if site.flavour == "legacy":
            due[site] = now() + max(SPACING_SECONDS, _LEGACY_REST * site.last_repair_seconds())
        plans = {found: plan for found, plan in plans.items() if plan}


def _without_effect(record: Record, figure: str, site: Site) -> int:
    sample = record.get(figure, site.subject, site.foreign)
    return sample.values.count(0.0) if sample else 0


def busy(watches: Watches, scale: Scale, record: Record) -> None:
    """Other programs change the ruleset a hundred times a second, and the daemon's chain every hundredth time."""
    for site, watch in watches.items():
        if site.foreign not in (min(SIZES), max(SIZES)) or site.flavour == "legacy":
            continue
        progress(f"{site}: {BUSY_PER_SECOND} foreign transactions a second for {scale.busy_seconds:g} s")
        until(watch.whole, f"{site}: the rules are in order")
        before, repaired, generation = usage_of(site.pid), site.repairs(), watch.generation()
        hits, back = _transactions(site, watch, int(scale.busy_seconds * BUSY_PER_SECOND))
        used = usage_of(site.pid).since(before)
        record.add("busy-cpu", site.subject, site.foreign, "%", [used.share * 100])
        record.add("busy-alone", site.subject, site.foreign, "", [float(used.alone)])
        record.add("busy-hits", site.subject, site.foreign, "", [hits])
        record.add("busy-back", site.subject, site.foreign, "", [back])
        record.add("busy-repairs", site.subject, site.foreign, "", [site.repairs() - repaired])
        record.add("busy-rate", site.subject, site.foreign, "1/s", [(watch.generation() - generation) / used.moment])


def _transactions(site: Site, watch: Watch, number: int) -> tuple[int, int]:
    """Return how often the daemon's chain was hit, and how often it was whole before the next hit.

    The commits go over a netlink socket: libnftables lists every chain of the kernel before each, and is too slow for
    that rate where there are many.
    """
    hits = back = 0
    with site.entered():
        library, netlink = Nftables(), Nfnetlink()
        library.commit("add table ip bench-foreign; add chain ip bench-foreign work")
        library.commit("add rule ip bench-foreign work counter")
        rules = netlink.rules(Family.IPV4, *_FOREIGN)
        started = now()
        for count in range(number):
            pause(started + count / BUSY_PER_SECOND - now())
            if count % BUSY_HIT_EVERY == BUSY_HIT_EVERY // 2:
                back += hits > 0 and watch.whole()
                hits += 1
                damage.committed(lambda: netlink.refill(Family.IPV4, {_OURS[site.backend]: ()}))
            else:
                netlink.refill(Family.IPV4, {_FOREIGN: rules if count % 2 else ()})
        until(watch.whole, f"{site}: the last hit is repaired")
        library.commit("delete table ip bench-foreign")
    return hits, back + 1


def _plan(site: Site, watch: Watch, scale: Scale) -> Iterator[tuple[str, Damage]]:
    """Yield the damage for one site, as (figure, damage), the kinds in turn."""
    number = scale.repairs
    if site.flavour == "legacy":
        number = scale.legacy_repairs_beside_foreign if site.foreign else scale.legacy_repairs
    kinds: list[tuple[str, Sequence[Damage], int]] = [
        ("content", damage.content(site, watch), number),
        ("content-exit", damage.content_by_program(site), number),
        ("table", damage.table(site), number),
        ("duplicate", damage.duplicate(site), min(number, scale.duplicates)),
    ]
    for turn in range(number):
        for figure, damages, wanted in kinds:
            if damages and turn < wanted:
                yield figure, damages[turn % len(damages)]


def repair(site: Site, watch: Watch, act: Damage) -> float:
    """Return the seconds for which the rules were gone; 0 for a damage without effect, as the kernel sees to it."""
    repaired = site.repairs()
    found = outage(watch, act, f"{site}: {act.name}", ended=act.ended)
    act.check()
    try:
        limit = DEADLINE if found.seen else _NOTED_SECONDS
        noted = f"{site}: the daemon notes its repair"
        until(lambda: site.repairs() > repaired and site.synced(), noted, deadline=limit)
    except BenchError:
        if found.seen:
            raise
        return 0.0
    return found.seconds
