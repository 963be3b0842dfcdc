"""`python -m tests.bench`: measures in throwaway namespaces, prints the table, leaves dist/bench/."""

from __future__ import annotations

import argparse
import compileall
import gc
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flanneld_masq.errors import MasqError
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import netns

from . import clock, daemon, flannel, foreign, machine, plots, repair, report
from .record import Record
from .reflex import reflexes
from .scale import FULL, QUICK, SIZES, Scale
from .site import Site
from .watch import watch_of

ROOT = Path(__file__).parents[2]
OUTPUT, PUBLISHED = ROOT / "dist" / "bench", ROOT / "docs" / "bench"
PARTS = ("start", "idle", "repair", "busy", "lease", "restart", "verify", "flannel")


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    scale = QUICK if options.quick else FULL
    try:
        netns.enter()
        _compile()
        where = machine.described()
        _load_modules()
        clock.precise()
        gc.freeze()
        record = Record()
        _measure(record, scale, frozenset(options.only or PARTS), tuple(options.sizes or SIZES))
    except MasqError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    _write(record, {**where, "load_after": os.getloadavg(), "scale": scale.name}, publish=options.publish)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description="Measure how fast and how small flanneld-masq is.")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it works, not to quote")
    parser.add_argument("--publish", action="store_true", help=f"also write {PUBLISHED.relative_to(ROOT)}/")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given more than once")
    parser.add_argument(
        "--size", action="append", type=int, choices=SIZES, dest="sizes", help="this number of foreign rules"
    )
    return parser.parse_args(argv)


def _compile() -> None:
    """As an installed package has it: no start compiles Python."""
    for name in ("flanneld_masq", "plugins"):
        compileall.compile_dir(ROOT / name, quiet=1)


def _load_modules() -> None:
    """So that no figure has the loading of a kernel module in it. The namespace that we are in is not used else."""
    for tool in ("iptables-nft", "iptables-legacy"):
        ProcessRunner()((tool, "-t", "nat", "-S"))


def _measure(record: Record, scale: Scale, parts: frozenset[str], sizes: Sequence[int]) -> None:
    if "repair" in parts:
        reflexes(scale, record)
    if parts != {"flannel"}:
        with _sites(sizes) as sites:
            _measure_daemons(sites, record, scale, parts)
    if "flannel" in parts:
        with flannel.replays(sizes) as (replays, nftables):
            flannel.starts(replays, record)
            flannel.idle(replays, nftables, scale, record)
            flannel.repairs(replays, scale, record)
            flannel.restarts(replays, scale, record)
            flannel.never(replays, nftables, scale, record)


def _measure_daemons(sites: Sequence[Site], record: Record, scale: Scale, parts: frozenset[str]) -> None:
    daemon.table_writes(sites, record)
    watches = {site: watch_of(site) for site in sites}
    daemon.starts(watches, scale.starts if "start" in parts else 0, record)
    if "idle" in parts:
        daemon.idle(sites, scale, record)
        daemon.processes(sites, scale, record)
    daemon.memory(sites, record)
    if "repair" in parts:
        repair.repairs(watches, scale, record)
    if "busy" in parts:
        repair.busy(watches, scale, record)
    if "lease" in parts:
        daemon.leases(watches, scale, record)
    daemon.memory(sites, record)
    if "restart" in parts:
        daemon.restarts(watches, scale, record)
    if "repair" in parts:
        repair.rulesets(watches, record)
    if "verify" in parts:
        for site in sites:
            site.stop()
        daemon.verifies(sites, scale, record)


@contextmanager
def _sites(sizes: Sequence[int]) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        sites = []
        for size in sizes:
            for backend in report.BACKENDS:
                site = Site(f"{backend}-{size}", backend, size)
                stack.callback(site.close)
                clock.progress(f"{site}: load")
                foreign.load(site)
                sites.append(site)
        yield sites


def _write(record: Record, where: dict[str, Any], *, publish: bool) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    found = list(report.rows(record))
    content = {
        "machine": where,
        "rows": [dict(zip(report.HEADERS, row.cells())) for row in found],
        "samples": [sample.as_json() for sample in record.samples.values()],
    }
    (OUTPUT / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (OUTPUT / "results.md").write_text(f"{machine.line(where)}\n\n{report.markdown(found)}\n")
    for name, chart in (("latency", plots.latency(record)), ("idle", plots.idle(record))):
        if chart is not None:
            (OUTPUT / f"{name}.svg").write_text(chart.render())
    print(f"{machine.line(where)}\n\n{report.text(found)}")
    if publish:
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        for name in ("results.md", "latency.svg", "idle.svg"):
            if (OUTPUT / name).exists():
                shutil.copy(OUTPUT / name, PUBLISHED / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
