"""docs/compatibility.md, from the results. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, Protocol

from .results import VERSIONS, Kept, Results

TITLES = {
    "no-modules": "kernel modules before the service starts",
    "service": "service from boot to `synced`",
    "backends": "`backends`: each can be used",
    "nft": "nft: damage and repair",
    "iptables-nft": "iptables-nft: damage and repair",
    "iptables-legacy": "iptables-legacy: damage and repair",
    "restart": "restart writes nothing",
    "selftest-nft": "`selftest`, nft",
    "selftest-iptables-nft": "`selftest`, iptables-nft",
    "selftest-iptables-legacy": "`selftest`, iptables-legacy",
    "upgrade": "upgrade of the package",
    "protected": "protected tables",
    "cgroup-v2": "names the unit that did it, cgroup v2",
    "cgroup-v1": "the same, cgroup v1",
    "no-ip_tables": "without ip_tables, as RHEL 10",
    "no-nft_compat": "without nft_compat",
    "no-nft_masq": "without nft_masq",
    "ipv6-off": "IPv6 off at the boot",
    "unit-tests": "unit tests",
    "kernel-tests": "kernel tests",
}
_BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
_VERSIONS = ("kernel", "systemd", "iptables", "nft", "python", "byte order")
_INTRODUCTION = """\
# Compatibility

`make matrix PUBLISH=1` writes this page from the results that there are. qemu emulates each machine without help of
the processor, so everything takes many times as long as on a real one. A machine has the kernel, the tools and the
Python of its distribution, and the Debian package of this project. [tests/matrix/README.md](../tests/matrix/README.md)
explains what each cell does. "yes" is a cell that ran and held, "**no**" one that ran and failed. An empty cell was not
run, or cannot be run; what is known of it is below, at the machine.
"""


class Column(Protocol):
    """A machine, or what stands beside one in the tables."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def cells(self) -> tuple[str, ...]: ...

    @property
    def note(self) -> str: ...  # what an administrator must know of it


def render(machines: Sequence[Column], results: Results) -> str:
    """Return the page."""
    parts = (_INTRODUCTION, *_machines(machines, results), *_cells(machines, results), *_notes(machines, results))
    return "\n".join(parts)


def _machines(machines: Sequence[Column], results: Results) -> Iterator[str]:
    yield "## Machines\n"
    yield from _table(("machine", *_VERSIONS, "date", "as slow as"), (_machine(one, results) for one in machines))


def _machine(machine: Column, results: Results) -> tuple[str, ...]:
    kept = results.get(machine.name, VERSIONS)
    if kept is None:
        return (machine.title, *("" for _ in _VERSIONS), "", "")
    facts = kept.outcome.facts
    return (
        machine.title,
        *(str(facts.get(name, "")) for name in _VERSIONS),
        kept.date,
        f"{facts['factor']:g} x" if "factor" in facts else "",
    )


def _cells(machines: Sequence[Column], results: Results) -> Iterator[str]:
    yield "\n## Cells\n"
    names = dict.fromkeys(cell for machine in machines for cell in machine.cells)
    yield from _table(
        ("", *(machine.name for machine in machines)),
        ((TITLES[name], *(_cell(machine, name, results) for machine in machines)) for name in names),
    )
    yield "\n## CPU seconds of a repair\n"
    yield "Of the service and its tools, on the emulated processor.\n"
    measured = [machine for machine in machines if set(_BACKENDS) & set(machine.cells)]
    yield from _table(
        ("", *(machine.name for machine in measured)),
        ((name, *(_fact(machine, name, "cpu_seconds", results) for machine in measured)) for name in _BACKENDS),
    )


def _cell(machine: Column, name: str, results: Results) -> str:
    kept = results.get(machine.name, name)
    if name not in machine.cells or kept is None or kept.outcome.ok is None:
        return ""
    return "yes" if kept.outcome.ok else "**no**"


def _fact(machine: Column, name: str, fact: str, results: Results) -> str:
    kept = results.get(machine.name, name)
    value: Any = None if kept is None else kept.outcome.facts.get(fact)
    return "" if value is None else f"{value:g}"


def _notes(machines: Sequence[Column], results: Results) -> Iterator[str]:
    yield "\n## What was found\n"
    for machine in machines:
        yield f"### {machine.title}\n"
        if machine.note:
            yield f"{machine.note}\n"
        found = {name: results.get(machine.name, name) for name in machine.cells}
        yield from _outcomes(found) if any(found.values()) else ("Not run yet.",)
        yield ""


def _outcomes(found: Mapping[str, Optional[Kept]]) -> Iterator[str]:
    for name, kept in found.items():
        said = "not run" if kept is None else _said(kept.outcome.ok, kept.outcome.detail)
        yield f"* {TITLES[name]}: {said}"
        modules = () if kept is None else kept.outcome.facts.get("modules", ())
        if modules:
            yield f"  Modules: {', '.join(modules)}."


def _said(ok: bool | None, detail: str) -> str:
    text = " ".join(detail.split()).replace("<", "&lt;")
    return {True: text, False: f"**fails**: {text}", None: f"cannot be run: {text}"}[ok]


def _table(headings: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
