"""Endpoints of a real kube-proxy's rules change beside the daemon: its CPU, and how long the restores take."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Iterator
from contextlib import closing

from flanneld_masq.model import Family

from ..kube_proxy import Rules, churn
from .clock import BenchError, progress
from .record import Record
from .row import Row, each, seconds
from .scale import Scale
from .site import Site
from .usage import settle, usage_of

PAIRS = (
    ("nft", "nftables"),
    ("nft", "iptables-nft"),
    ("nft", "iptables-legacy"),
    ("iptables-nft", "iptables-nft"),
    ("iptables-legacy", "iptables-legacy"),
)
_ALONE_FIRST = (False, True, True, False)  # whether the daemon runs in a window; a machine that slows down hits both


def kube_churn(scale: Scale, record: Record) -> None:
    """Measure each pair of a backend and a mode of kube-proxy, at each number of services."""
    for services in scale.churn_services:
        for subject, mode in PAIRS:
            with closing(Site(f"kube-{subject}-{mode}-{services}", subject, 0)) as site:
                progress(f"{subject} beside kube-proxy in mode {mode} with {services:,} services")
                rules = Rules(mode, Family.IPV4, services=services)
                with site.entered():
                    rules.load(site.run)
                for daemon in _ALONE_FIRST:
                    _window(site, rules, daemon, services, scale, record)


def _window(site: Site, rules: Rules, daemon: bool, services: int, scale: Scale, record: Record) -> None:
    if not daemon:
        _churn(site, rules, "alone", services, scale, record)
        return
    site.start()
    site.until_synced()
    settle(site.pid)
    repairs, before = site.repairs(), usage_of(site.pid)
    number = _churn(site, rules, "beside", services, scale, record)
    used = usage_of(site.pid).since(before)
    if site.repairs() != repairs:
        raise BenchError(f"{site}: a repair without cause: {site.said()}")
    record.add(f"kube-cpu {rules.mode}", site.subject, services, "%", [used.share * 100])
    record.add(f"kube-rate {rules.mode}", site.subject, services, "1/s", [number / used.moment])
    site.stop()


def _churn(site: Site, rules: Rules, where: str, services: int, scale: Scale, record: Record) -> int:
    """Return the number of restores. Record their time, and the CPU time of their processes for a busy machine."""
    before = _cpu_of_children()
    taken = churn(rules, site.run, scale.churn_seconds)
    cpu = (_cpu_of_children() - before) / len(taken)
    record.add(f"kube-{where} {rules.mode}", site.subject, services, "s", taken)
    record.add(f"kube-{where}-cpu {rules.mode}", site.subject, services, "s", [cpu])
    return len(taken)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def churn_rows(record: Record) -> Iterator[Row]:
    """Two rows for each pair; their number of foreign rules is one of services."""
    for mode in dict.fromkeys(mode for _, mode in PAIRS):
        for cpu, _ in each(record, f"kube-cpu {mode}"):
            key = (cpu.subject, cpu.foreign)
            found = [record.get(f"kube-{name} {mode}", *key) for name in _FIGURES]
            rate, beside, alone, beside_cpu, alone_cpu = (sample.median if sample else 0.0 for sample in found)
            shown = f"{statistics.mean(cpu.values):.1f} % of a core at {rate:.0f} restores/s"
            yield Row(f"CPU while 50 endpoints change a second, so many services, kube-proxy {mode}", *key, shown)
            shown = f"{seconds(beside)} ({seconds(beside_cpu)} of CPU)"
            shown += f", without the daemon {seconds(alone)} ({seconds(alone_cpu)})"
            yield Row("the restore's own time, median", *key, shown)


_FIGURES = ("rate", "beside", "alone", "beside-cpu", "alone-cpu")
