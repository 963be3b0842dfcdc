"""The tables: what was measured on one node, and what follows for a fleet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

from .measure import Measured
from .model import Cost, Load, drift_lines, in_batches, jittered, load, scraped

BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
SCRAPE_SECONDS = 15.0
ROLE_SECONDS = 40.0  # that one batch of the role takes, in round figures
CANARY_SHARE = 0.05
HOUR = 3600
_FLEET = ("event on the fleet", "lasts", "entries", "most in 1 s", "to journald", "CPU, all nodes")


@dataclass(frozen=True, **SLOTS)
class Scenario:
    """An event on the fleet: its cost on one node, and when it reaches each."""

    name: str
    cost: Cost
    moments: Sequence[float]


def scenarios(found: Measured, nodes: int) -> Iterator[Scenario]:
    """Yield what the document's second table has."""
    rollout = found.start + found.role
    batch = max(1, int(nodes * CANARY_SHARE))
    yield Scenario("rollout by the role, one node at a time", rollout, in_batches(nodes, 1, ROLE_SECONDS))
    yield Scenario(f"the same, {batch} nodes at a time", rollout, in_batches(nodes, batch, ROLE_SECONDS))
    yield Scenario("bad configuration by the role: the first node refuses it", found.check, [0.0])
    yield Scenario("bad configuration on all, `systemctl reload` within 60 s", found.check, jittered(nodes, 60))
    yield Scenario("the same, a bare SIGHUP within 60 s", found.refused, jittered(nodes, 60))
    yield Scenario("the same, a restart within 60 s", found.restart_refused, jittered(nodes, 60))
    yield Scenario("flannel restarts on all within 10 s", found.flannel, jittered(nodes, 10))
    yield Scenario("flannel restarts on all in the same second", found.flannel, [0.0] * nodes)
    yield Scenario("flannel gives all another subnet within 10 s", found.lease, jittered(nodes, 10))
    yield Scenario("a program removes the rules once on all, in 1 s", found.drift, jittered(nodes, 1))


def markdown(found: Measured, nodes: int, where: str) -> str:
    """Return both tables with the sentences between them. `where` names the machine."""
    parts = (
        f"Measured on one daemon (backend `iptables-nft`, IPv4) in a network namespace: {where}.",
        _table(("event on one node", "journal entries", "bytes to journald", "CPU"), map(_row, _measured(found))),
        f"A scrape is {found.metrics:,} bytes before any repair, {found.compressed:,} compressed. Of {found.undoings} "
        f"undoings, one each second, the journal has {found.undone_lines} entries; the rate limit by itself gives "
        f"{drift_lines(found.undoings, 1.0)}.",
        f"Computed from these for {nodes:,} nodes; a batch of the role is taken to need {ROLE_SECONDS:.0f} s:",
        _table(_FLEET, (_fleet_row(each.name, load(each.moments, each.cost)) for each in scenarios(found, nodes))),
        _undoings(found, nodes),
        _scrapes(found, nodes),
    )
    return "\n\n".join(parts) + "\n"


def published(document: str, text: str) -> str:
    """Return the document with `text` between its two markers. Raises ValueError if it has none."""
    before, _, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("the document has no place for figures")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _measured(found: Measured) -> tuple[tuple[str, Cost], ...]:
    return (
        ("a minute without an event", found.idle.times(60)),
        ("first start", found.start),
        ("commands of the role: a first rollout with takeover", found.role),
        ("bad file: `systemctl reload` (its `check` fails)", found.check),
        ("bad file: a bare SIGHUP", found.refused),
        ("bad file: a restart, which is refused", found.restart_refused),
        ("flannel restarts: same subnet file, its rules written", found.flannel),
        ("flannel writes another subnet", found.lease),
        ("a program removes the rules once", found.drift),
        ("the same, one of many, each second", found.undone),
    )


def _undoings(found: Measured, nodes: int) -> str:
    """The rate limit: an hour of undoings, and the same without it."""
    logged, repaired = drift_lines(HOUR, 1.0), HOUR
    size = found.drift.size / max(found.drift.entries, 1.0)
    cpu = found.undone.cpu * HOUR
    rows = (
        (name, f"{lines:,}", f"{lines * nodes:,}", f"{lines * nodes / HOUR:,.0f}", _bytes(lines * nodes * size))
        for name, lines in (("with the rate limit", logged), ("if each repair were logged", repaired))
    )
    headers = (
        "a program undoes the rules each second, for an hour",
        "entries of a node",
        "of the fleet",
        "a second",
        "to journald",
    )
    return (
        _table(headers, rows)
        + f"\n\nThe repairs themselves go on: {cpu:.0f} s of CPU in that hour on each node, {cpu / HOUR:.1%} of a core."
    )


def _scrapes(found: Measured, nodes: int) -> str:
    plain, compressed = (scraped(nodes, size, SCRAPE_SECONDS) for size in (found.metrics, found.compressed))
    return (
        f"Scrapes, one each {SCRAPE_SECONDS:.0f} s: {_bytes(plain)} a second from the fleet, {_bytes(compressed)} "
        f"compressed; {_bytes(plain * 86400)} and {_bytes(compressed * 86400)} a day. Each author of repairs "
        "adds a series, up to a limit."
    )


def _row(each: tuple[str, Cost]) -> tuple[str, ...]:
    name, cost = each
    return name, f"{cost.entries:.2g}", f"{cost.size:,.0f}", f"{cost.cpu * 1000:,.1f} ms"


def _fleet_row(name: str, found: Load) -> tuple[str, ...]:
    total = found.total
    return (
        name,
        _duration(found.seconds),
        f"{total.entries:,.0f}",
        f"{found.peak_entries:,.0f}",
        _bytes(total.size),
        f"{total.cpu:,.1f} s",
    )


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (headers, ("---", *("---:" for _ in headers[1:])), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.0f} h"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:.0f} B"
