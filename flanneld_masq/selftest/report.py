"""Holds the outcomes of the self-test, and shows them as JSON and as a compatibility table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from flanneld_masq.model import SLOTS, Address, Family, Probe
from flanneld_masq.selftest.packet_cases import Case, Expectation


@dataclass(frozen=True, **SLOTS)
class Sent:
    """The outcome of one packet: the source that the receiver saw, or the `problem` if none arrived."""

    case: Case
    transport: str
    expected: Expectation
    observed: Optional[Address] = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.observed == self.expected.source

    def __str__(self) -> str:
        packet = self.case.packet
        mark = f", mark {packet.mark:#x}" if packet.mark else ""
        by = f"row {self.expected.row}" if self.expected.row else "no row matches"
        seen = self.problem if self.observed is None else f"arrived as from {self.observed}"
        return (
            f"{self.case.name}, {self.transport} from {packet.src} to {packet.dst}{mark}: "
            f"expected from {self.expected.source} ({by}), {seen}"
        )

    def document(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "transport": self.transport,
            "src": str(self.case.packet.src),
            "dst": str(self.case.packet.dst),
            "mark": self.case.packet.mark,
            "row": self.expected.row or None,
            "expected": str(self.expected.source),
            "observed": None if self.observed is None else str(self.observed),
            "problem": self.problem,
            "ok": self.ok,
        }


@dataclass(frozen=True, **SLOTS)
class Repaired:
    """The outcome of one damage to the rules. Without a `problem`, rules and packets were right again afterwards."""

    name: str
    milliseconds: Optional[float] = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem

    def document(self) -> dict[str, Any]:
        return {"sabotage": self.name, "milliseconds": self.milliseconds, "problem": self.problem, "ok": self.ok}


@dataclass(frozen=True, **SLOTS)
class Result:
    """The outcome of one backend for one family. `problems` concern the daemon as a whole."""

    backend: str
    family: Family
    probe: Probe
    sent: tuple[Sent, ...] = ()
    repaired: tuple[Repaired, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the backend does what its probe promises; one that cannot be used here promises nothing."""
        if not self.probe.usable:
            return True
        fine = all(sent.ok for sent in self.sent) and all(repaired.ok for repaired in self.repaired)
        return bool(self.sent) and fine and not self.problems

    def document(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "family": str(self.family),
            "usable": self.probe.usable,
            "reason": self.probe.reason,
            "remedy": self.probe.remedy,
            "versions": list(self.probe.versions),
            "ok": self.ok,
            "problems": list(self.problems),
            "packets": [sent.document() for sent in self.sent],
            "repairs": [repaired.document() for repaired in self.repaired],
        }


def passed(results: Sequence[Result]) -> bool:
    """Return True if at least one backend can be used, and every usable one is ok."""
    return any(result.probe.usable for result in results) and all(result.ok for result in results)


_HEADINGS = ("BACKEND", "IPV4", "IPV6", "PACKETS", "REPAIRS", "MEDIAN", "SLOWEST", "VERSIONS")


def table(results: Sequence[Result]) -> list[str]:
    """Return the lines of the compatibility table, and below it the reason for each backend that cannot be used."""
    if not results:
        return ["no backend was tested: no plugin offers one (is the package installed, with its entry points?)"]
    rows = [_HEADINGS, *(_row(name, results) for name in dict.fromkeys(result.backend for result in results))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    notes = []
    for result in results:
        if not result.probe.usable:
            remedy = f"; {result.probe.remedy}" if result.probe.remedy else ""
            notes.append(f"{result.backend} cannot be used for {result.family}: {result.probe.reason}{remedy}")
    return lines + ([""] if notes else []) + notes


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    own = {result.family: result for result in results if result.backend == name}
    packets = [packet for result in own.values() for packet in result.sent]
    repairs = [repair for result in own.values() for repair in result.repaired]
    times = [repair.milliseconds for repair in repairs if repair.ok and repair.milliseconds is not None]
    return (
        name,
        *(_verdict(own.get(family)) for family in Family),
        _share(packet.ok for packet in packets),
        _share(repair.ok for repair in repairs),
        *(f"{pick(times):.1f} ms" if times else "-" for pick in (statistics.median, max)),
        ", ".join(dict.fromkeys(version for result in own.values() for version in result.probe.versions)) or "-",
    )


def _verdict(result: Optional[Result]) -> str:
    if result is None:
        return "-"
    if not result.probe.usable:
        return "unusable"
    return "ok" if result.ok else "FAILS"


def _share(outcomes: Iterable[bool]) -> str:
    all_of_them = list(outcomes)
    return f"{sum(all_of_them)}/{len(all_of_them)}" if all_of_them else "-"
