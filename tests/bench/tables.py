"""A node with thousands of tables of other programs, as network policies of containers make them: start and memory."""

from __future__ import annotations

from collections.abc import Iterator

from . import damage
from .clock import LOOK_SECONDS, progress, until
from .record import Record
from .repair import repair
from .scale import Scale
from .site import Site
from .usage import resident, settle
from .watch import watch_of

START_TABLES, MEMORY_TABLES = 1_000, 5_000


def tables(subjects: tuple[str, ...], scale: Scale, record: Record) -> None:
    """Measure the start at START_TABLES, and the memory at MEMORY_TABLES after a repair. A site for each subject."""
    for subject in subjects:
        site = Site(f"tables-{subject}", subject, 0)
        progress(f"{subject}: {START_TABLES:,} and {MEMORY_TABLES:,} foreign tables")
        try:
            _measure(site, scale, record)
        finally:
            site.close()


def _measure(site: Site, scale: Scale, record: Record) -> None:
    site.run("nft", "-f", "-", stdin="".join(table_text(number) for number in range(START_TABLES)))
    site.start()
    site.until_synced()
    watch = watch_of(site)
    watch.accept()
    for _ in range(scale.starts):
        site.stop()
        site.cleanup()
        started = site.start()
        _, seen = until(watch.whole, f"{site}: rules after a start", every=LOOK_SECONDS)
        record.add("start-tables", site.subject, START_TABLES, "s", [seen - started])
        site.until_synced()
    site.run("nft", "-f", "-", stdin="".join(_more()))
    settle(site.pid)
    for act in damage.content_by_program(site):
        repair(site, watch, act)
    settle(site.pid)
    record.add("memory-tables", site.subject, MEMORY_TABLES, "MB", [resident(site.pid)])


def _more() -> Iterator[str]:
    return (table_text(number) for number in range(START_TABLES, MEMORY_TABLES))


def table_text(number: int) -> str:
    """Return a table of another program, with two chains and three rules. No packet passes it."""
    address = f"10.244.{number // 250 % 250}.{number % 250 + 2}"
    return (
        f"table ip policy-{number} {{\n"
        f" chain ingress {{ ip saddr {address} tcp dport 80 accept; counter drop; }}\n"
        f" chain egress {{ ip daddr {address} accept; }}\n"
        "}\n"
    )
