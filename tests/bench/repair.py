"""Rules removed or doubled, until they are back; and a ruleset that others change all the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flanneld_masq_nft.libnftables import Nftables

from flanneld_masq.controller.legacy_poller import REPAIR_PAUSE

from . import damage
from .clock import now, pause, progress, until
from .daemon import Watches
from .damage import Damage
from .record import Record
from .scale import Scale
from .site import Site
from .usage import usage_of
from .watch import Watch, outage

SPACING_SECONDS = 0.6  # between two damages of one daemon: what it repairs for ever without growing delays
BUSY_PER_SECOND, BUSY_HIT_EVERY = 100, 100
_OURS = {"nft": "ip flanneld-masq postrouting", "iptables-nft": "ip nat FLANNELD-MASQ"}


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
        record.add(figure, site.backend, site.foreign, "s", [_repair(site, watches[site], act)])
        if site.flavour == "legacy":
            # it reads and writes the tables no more than a quarter of the time
            due[site] = now() + max(SPACING_SECONDS, REPAIR_PAUSE * site.last_repair_seconds() * 1.1)
        plans = {found: plan for found, plan in plans.items() if plan}


def rulesets(watches: Watches, record: Record) -> None:
    """The whole ruleset flushed, with the foreign rules in it. They are gone then, so once, and at the end."""
    for site, watch in watches.items():
        if site.foreign and site.flavour == "nft":
            progress(f"{site}: ruleset flushed")
            taken = _repair(site, watch, damage.everything(site))
            record.add("ruleset", site.backend, site.foreign, "s", [taken])


def busy(watches: Watches, scale: Scale, record: Record) -> None:
    """Others change the ruleset a hundred times a second, and hit our chain with every hundredth time."""
    for site, watch in watches.items():
        if site.foreign or site.flavour == "legacy":
            continue
        progress(f"{site}: {BUSY_PER_SECOND} foreign transactions a second for {scale.busy_seconds:g} s")
        until(watch.whole, f"{site}: the rules are in order")
        before, repaired, generation = usage_of(site.pid), site.repairs(), watch.generation()
        hits, back = _transactions(site, watch, int(scale.busy_seconds * BUSY_PER_SECOND))
        used = usage_of(site.pid).since(before)
        record.add("busy-cpu", site.backend, 0, "%", [used.share * 100])
        record.add("busy-alone", site.backend, 0, "", [float(used.alone)])
        record.add("busy-hits", site.backend, 0, "", [hits])
        record.add("busy-back", site.backend, 0, "", [back])
        record.add("busy-repairs", site.backend, 0, "", [site.repairs() - repaired])
        record.add("busy-rate", site.backend, 0, "1/s", [(watch.generation() - generation) / used.moment])


def _transactions(site: Site, watch: Watch, number: int) -> tuple[int, int]:
    """How often our chain was hit, and how often it was whole again before the next hit."""
    hits = back = 0
    library = Nftables()
    with site.entered():
        library.commit("add table ip bench-foreign; add chain ip bench-foreign work")
        started = now()
        for count in range(number):
            pause(started + count / BUSY_PER_SECOND - now())
            if count % BUSY_HIT_EVERY == BUSY_HIT_EVERY // 2:
                back += hits > 0 and watch.whole()
                hits += 1
                library.commit(f"flush chain {_OURS[site.backend]}")
            elif count % 2:
                library.commit("flush chain ip bench-foreign work")
            else:
                library.commit("add rule ip bench-foreign work counter")
        until(watch.whole, f"{site}: the last hit is repaired")
        library.commit("delete table ip bench-foreign")
    return hits, back + 1


def _plan(site: Site, watch: Watch, scale: Scale) -> Iterator[tuple[str, Damage]]:
    """What is done to one site: (figure, damage), mixed."""
    number = scale.legacy_repairs if site.flavour == "legacy" else scale.repairs
    kinds: list[tuple[str, Sequence[Damage], int]] = [
        ("content", damage.content(site, watch), number),
        ("content-exit", damage.content_by_program(site), number),
        ("table", damage.table(site), number),
        ("duplicate", [] if site.foreign else damage.duplicate(site), min(number, scale.duplicates)),
    ]
    for turn in range(number):
        for figure, damages, wanted in kinds:
            if damages and turn < wanted:
                yield figure, damages[turn % len(damages)]


def _repair(site: Site, watch: Watch, act: Damage) -> float:
    repaired = site.repairs()
    taken = outage(watch, act, f"{site}: {act.name}")
    act.check()
    until(lambda: site.repairs() > repaired and site.synced(), f"{site}: the daemon notes its repair")
    return taken
