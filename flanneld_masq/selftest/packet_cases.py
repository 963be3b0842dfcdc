"""What the self-test sends, what must come of it, and how the outcome is shown. Pure.

What must come of a packet is what the policy says of it: no rule and `return` keep its source, and
`masquerade` gives it the address of the device that it leaves the node by.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Optional

from flanneld_masq.model import SLOTS, Address, Family, Group, Lease, Network, Packet, Probe, Settings, Verdict
from flanneld_masq.ruleset.policy import decide, group_rules
from flanneld_masq.selftest.topology import Addresses


@dataclass(frozen=True, **SLOTS)
class Case:
    """A packet from one host of the lab to another. `device` goes with link-local and multicast destinations."""

    name: str
    sender: str
    receiver: str
    packet: Packet
    device: str = ""

    @property
    def transports(self) -> tuple[str, ...]:
        return ("UDP",) if self.packet.dst.is_multicast else ("UDP", "TCP")


def cases(of: Addresses) -> tuple[Case, ...]:
    """Every class of packets that the ruleset tells apart.

    Marks do not cross from one host to another, so marked packets start on the node itself, from its own
    address in the pod subnet.
    """

    def case(name: str, hosts: str, src: Address, dst: Address, mark: int = 0, device: str = "") -> Case:
        sender, receiver = hosts.split()
        return Case(name, sender, receiver, Packet(src, dst, mark), device)

    return (
        case("pod to outside", "pod outside", of.pod, of.far),
        case("pod to the node's neighbour", "pod outside", of.pod, of.outside),
        case("pod to remote pod", "pod remote", of.pod, of.remote_pod),
        case("node's pod address to remote pod", "node remote", of.gateway, of.remote_pod),
        case("outside to local pod", "outside pod", of.far, of.pod),
        case("node to local pod", "node pod", of.node, of.pod),
        case("remote pod to local pod", "remote pod", of.remote_pod, of.pod),
        case("outside to remote pod", "outside remote", of.far, of.remote_pod),
        case("node's other address to remote pod", "node remote", of.node, of.remote_pod),
        case("node to outside", "node outside", of.node, of.far),
        case("remote pod to outside, through here", "remote outside", of.remote_pod, of.far),
        case("outside to a pod of another subnet", "outside pod", of.far, of.next_pod),
        case("pod of another subnet to outside", "pod outside", of.next_pod, of.far),
        case("marked 0x4000 to outside", "node outside", of.gateway, of.far, 0x4000),
        case("marked 0x4001 to outside", "node outside", of.gateway, of.far, 0x4001),
        case("marked 0x8000 to outside", "node outside", of.gateway, of.far, 0x8000),
        case("marked 0x4000 to remote pod", "node remote", of.node, of.remote_pod, 0x4000),
        case("link-local", "node outside", of.gateway, of.link_local, device="eth0"),
        case("multicast", "node outside", of.gateway, of.group, device="eth0"),
    )


def excepted(of: Addresses) -> Network:
    """A range for non_masquerade_cidrs that some of the cases fall into."""
    return ip_network((of.far, of.prefix), strict=False)


@dataclass(frozen=True, **SLOTS)
class Expectation:
    """`row` is the row of the policy that decides; empty where none does."""

    source: Address
    row: str = ""


def expect(settings: Settings, leases: tuple[Lease, ...], of: Addresses, packet: Packet) -> Expectation:
    groups = group_rules(settings, leases, of.family)
    rules = next((found.rules for found in groups if found.group is Group.MASQUERADE), ())
    rule = decide(rules, packet)
    if rule is None:
        return Expectation(packet.src)
    masquerade = rule.verdict is Verdict.MASQUERADE
    return Expectation(of.masqueraded(packet.dst) if masquerade else packet.src, rule.row)


# ---- outcomes


@dataclass(frozen=True, **SLOTS)
class Sent:
    """What came of a packet: the source that the receiver saw, or why it saw nothing."""

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
    """What came of a sabotage. No `problem` means that the rules and the packets were right again."""

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
    """One backend for one family. `problems` are those of the daemon as a whole."""

    backend: str
    family: Family
    probe: Probe
    sent: tuple[Sent, ...] = ()
    repaired: tuple[Repaired, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it does what its probe promises. One that cannot be used here promises nothing."""
        if not self.probe.usable:
            return True
        fine = all(found.ok for found in self.sent) and all(found.ok for found in self.repaired)
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
            "packets": [found.document() for found in self.sent],
            "repairs": [found.document() for found in self.repaired],
        }


def passed(results: Sequence[Result]) -> bool:
    """Whether there is a backend that can be used, and all that can be do what they should."""
    return any(found.probe.usable for found in results) and all(found.ok for found in results)


_HEADINGS = ("BACKEND", "IPV4", "IPV6", "PACKETS", "REPAIRS", "MEDIAN", "SLOWEST", "VERSIONS")


def table(results: Sequence[Result]) -> list[str]:
    """The compatibility table, and after it why what cannot be used cannot."""
    if not results:
        return ["no backend was tested: no plugin offers one (is the package installed, with its entry points?)"]
    rows = [_HEADINGS, *(_row(name, results) for name in dict.fromkeys(found.backend for found in results))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    notes = []
    for found in results:
        if not found.probe.usable:
            remedy = f"; {found.probe.remedy}" if found.probe.remedy else ""
            notes.append(f"{found.backend} cannot be used for {found.family}: {found.probe.reason}{remedy}")
    return lines + ([""] if notes else []) + notes


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    own = [found for found in results if found.backend == name]
    sent = [found for result in own for found in result.sent]
    repaired = [found for result in own for found in result.repaired]
    times = [found.milliseconds for found in repaired if found.ok and found.milliseconds is not None]
    return (
        name,
        *(_verdict(next((found for found in own if found.family is family), None)) for family in Family),
        _share(found.ok for found in sent),
        _share(found.ok for found in repaired),
        *(f"{pick(times):.1f} ms" if times else "-" for pick in (statistics.median, max)),
        ", ".join(dict.fromkeys(version for found in own for version in found.probe.versions)) or "-",
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
