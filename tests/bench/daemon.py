"""The daemon's start, memory, restart, a new lease, and a full verify."""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_masq import plugin_loader
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Family
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.state_directory import StateDirectory

from .clock import DEADLINE, LOOK_SECONDS, BenchError, now, pause, progress, until
from .record import Record
from .scale import SIZES, Scale
from .site import OTHER_SUBNET, SUBNET, Site
from .usage import resident, settle
from .watch import Watch

Watches = dict[Site, Watch]


def table_writes(sites: Sequence[Site], record: Record) -> None:
    """How long one write of the legacy nat table takes. While no daemon runs, for it would take notice."""
    for site in sites:
        if site.flavour == "legacy":
            for line in (":BENCH - [0:0]", "-X BENCH") * 3:
                started = now()
                site.run("iptables-legacy-restore", "--noflush", stdin=f"*nat\n{line}\nCOMMIT\n")
                record.add("table-write", site.subject, site.foreign, "s", [now() - started])


def starts(watches: Watches, number: int, record: Record) -> None:
    """From before the process is made to rules in the kernel that has none. Leaves all daemons running.

    The first start of each is not counted: it says what the rules look like.
    """
    for site, watch in watches.items():
        progress(f"{site}: start")
        site.start()
        site.until_synced()
        watch.accept()
        for _ in range(number):
            site.stop()
            site.cleanup()
            spawned = site.start()
            _, seen = until(watch.whole, f"{site}: rules after a start", every=LOOK_SECONDS)
            record.add("start", site.subject, site.foreign, "s", [seen - spawned])
            site.until_synced()


def memory(sites: Sequence[Site], record: Record) -> None:
    for site in sites:
        settle(site.pid)
        record.add("memory", site.subject, site.foreign, "MB", [resident(site.pid)])


def restarts(watches: Watches, scale: Scale, record: Record) -> None:
    """Looked at all the while from SIGTERM until the next daemon is in sync."""
    for site, watch in watches.items():
        progress(f"{site}: {scale.restarts} restarts")
        for _ in range(scale.restarts):
            _whole(site, watch)
            generation = watch.generation()
            missing = _missing_while_restarted(site, watch)
            # ip_tables counts nothing that would tell, so there the daemon's word is taken
            writes = (watch.generation() - generation) & 0xFFFFFFFF or int(bool(site.last_write()))
            record.add("restart", site.subject, site.foreign, "s", [missing])
            record.add("restart-writes", site.subject, site.foreign, "", [float(writes)])


def _missing_while_restarted(site: Site, watch: Watch) -> float:
    missing, last, end = 0.0, now(), now() + DEADLINE
    stopping = site.ask_to_stop()
    stopped = False
    while now() < end:
        asked = now()
        missing += 0.0 if watch.whole() else asked - last
        last = asked
        if not stopped and stopping.poll() is not None:
            stopped = True
            site.start()
        elif stopped and site.synced():
            return missing
        pause(1e-3)
    raise BenchError(f"{site}: not in sync after a restart within {DEADLINE:g} s")


def leases(watches: Watches, scale: Scale, record: Record) -> None:
    """From the rename of the subnet file to the rules for it, there and back again."""
    for site, watch in watches.items():
        if site.foreign not in (min(SIZES), max(SIZES)):
            continue
        progress(f"{site}: {scale.leases} leases")
        _whole(site, watch)
        wanted = {SUBNET: watch.wanted}
        for number in range(scale.leases + 1):
            text = (OTHER_SUBNET, SUBNET)[number % 2]
            before, written = watch.look(), site.last_write()
            renamed = site.write_subnet(text)
            if text in wanted:
                watch.wanted = wanted[text]
                _, seen = until(watch.whole, f"{site}: rules for another lease", every=LOOK_SECONDS)
                record.add("lease", site.subject, site.foreign, "s", [seen - renamed])
            _written(site, written)
            if text not in wanted:  # the first time says what they look like
                wanted[text] = watch.look()
                if wanted[text] == before:
                    raise BenchError(f"{site}: the rules for the other lease look the same")
        site.write_subnet(SUBNET)
        watch.wanted = wanted[SUBNET]
        _whole(site, watch)


def verifies(sites: Sequence[Site], scale: Scale, record: Record) -> None:
    """A full pass with nothing to do, in this process. For daemons that were stopped and left their rules."""
    reconcilers = {}
    for site in sites:
        progress(f"{site}: full verify")
        settings, lease = config.load(site.config), subnet_env.read(site.subnet_file)
        if lease is None:
            raise BenchError(f"{site}: no subnet file")
        backends = plugin_loader.load().create(Family.IPV4, Host(ProcessRunner()))
        reconcilers[site] = (
            Reconciler(Family.IPV4, backends, StateDirectory(site.state)),
            DesiredState(settings, (lease,)),
        )
        # The first pass looks everywhere, and may find what the daemon had left for later.
        until(lambda: not _verify(site, *reconcilers[site])[1], f"{site}: nothing is left to repair", every=0.1)
    for number in range(scale.passes):
        for site, (reconciler, desired_state) in reconcilers.items():
            if site.flavour != "legacy" or number < scale.legacy_passes:
                taken, repaired = _verify(site, reconciler, desired_state)
                if repaired:
                    raise BenchError(f"{site}: a verify found something to repair")
                record.add("verify", site.subject, site.foreign, "s", [taken])


def _verify(site: Site, reconciler: Reconciler, desired_state: DesiredState) -> tuple[float, bool]:
    """Return the seconds of a pass, and True if it repaired something."""
    with site.entered():  # its sockets are made when they are first needed
        started = now()
        outcome = reconciler.reconcile(desired_state)
        return now() - started, bool(outcome.repairs)


def _whole(site: Site, watch: Watch) -> None:
    until(watch.whole, f"{site}: the rules are in order")


def _written(site: Site, before: str) -> None:
    until(lambda: site.last_write() != before and site.synced(), f"{site}: the daemon notes what it wrote")
