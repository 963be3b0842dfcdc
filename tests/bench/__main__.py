"""`python -m tests.bench`: measures in throwaway namespaces, prints the table, leaves dist/bench/."""

from __future__ import annotations

import argparse
import compileall
import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable

from flanneld_masq.errors import MasqError
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import netns

from . import clock, daemon, flannel, foreign, gaps, idle, kube_churn, machine, plots, repair, report, row, tables
from .record import Record
from .reflex import reflexes
from .scale import FULL, QUICK, SIZES, Scale
from .site import UNPROTECTED, Site, can_protect
from .watch import watch_of

ROOT = Path(__file__).parents[2]
OUTPUT, PUBLISHED = ROOT / "dist" / "bench", ROOT / "docs" / "bench"
PARTS = ("start", "idle", "repair", "busy", "lease", "restart", "gaps", "verify", "tables", "kube", "flannel")


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
    _write(
        record,
        {**where, "load_after": os.getloadavg(), "scale": scale.name},
        publish=options.publish and not record.notes,
    )
    for note in record.notes:
        print(f"bench: {note}", file=sys.stderr)
    return int(bool(record.notes))


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
        _try(record, "reflex", lambda: reflexes(scale, record))
    if parts - {"flannel", "tables", "kube"}:
        with _sites(sizes) as sites:
            _measure_daemons(sites, record, scale, parts)
    if "tables" in parts:
        _try(record, "tables", lambda: tables.tables(row.BACKENDS, scale, record))
    if "kube" in parts:
        _try(record, "kube", lambda: kube_churn.kube_churn(scale, record))
    if "flannel" in parts:
        with flannel.replays(sizes) as (replays, nftables):
            for step in (
                lambda: flannel.starts(replays, record),
                lambda: flannel.idle(replays, nftables, scale, record),
                lambda: flannel.repairs(replays, scale, record),
                lambda: flannel.restarts(replays, scale, record),
                lambda: flannel.gaps(replays, scale, record),
                lambda: flannel.never(replays, nftables, scale, record),
            ):
                _try(record, "flannel", step)


def _try(record: Record, part: str, step: Callable[[], None]) -> None:
    """Do a part of the bench. If it fails, its rows are missing, those of the other parts are not."""
    try:
        step()
    except MasqError as error:
        clock.progress(f"{part}: {error}")
        record.notes.append(f"{part}: {error}")


def _measure_daemons(sites: Sequence[Site], record: Record, scale: Scale, parts: frozenset[str]) -> None:
    daemon.table_writes(sites, record)
    watches = {site: watch_of(site) for site in sites}
    usual = {site: watch for site, watch in watches.items() if site.subject != UNPROTECTED}
    daemon.starts(usual, scale.starts if "start" in parts else 0, record)
    daemon.starts({site: watch for site, watch in watches.items() if site not in usual}, 0, record)
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("idle", lambda: idle.idle(list(usual), scale, record)),
        ("idle", lambda: idle.processes(list(usual), scale, record)),
        ("idle", lambda: idle.beside_flannel(list(usual), scale, record)),
        ("", lambda: daemon.memory(sites, record)),
        ("repair", lambda: repair.repairs(watches, scale, record)),
        ("busy", lambda: repair.busy(watches, scale, record)),
        ("lease", lambda: daemon.leases(usual, scale, record)),
        ("", lambda: daemon.memory(sites, record)),
        ("restart", lambda: daemon.restarts(usual, scale, record)),
        ("gaps", lambda: gaps.gaps(watches, scale, record)),
        ("gaps", lambda: gaps.rulesets(watches, record)),
        ("verify", lambda: _stop(sites)),
        ("verify", lambda: daemon.verifies(list(usual), scale, record)),
    )
    for part, step in steps:
        if not part or part in parts:
            _try(record, part or "memory", step)


def _stop(sites: Sequence[Site]) -> None:
    for site in sites:
        site.stop()


@contextmanager
def _sites(sizes: Sequence[int]) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        sites = []
        subjects = [subject for subject in row.SUBJECTS if subject != UNPROTECTED or can_protect()]
        for size in sizes:
            for subject in subjects:
                site = Site(f"{re.sub('[^a-z]+', '-', subject)}-{size}", subject, size)
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
        "rows": [dict(zip(row.HEADERS, each.cells())) for each in found],
        "notes": record.notes,
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
