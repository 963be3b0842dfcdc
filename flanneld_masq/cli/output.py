"""How commands print: lines for people, with colour on a terminal, and JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family, Plan, Protection
from flanneld_masq.reconcile.wording import describe
from flanneld_masq.ruleset import diff

if TYPE_CHECKING:
    from flanneld_masq.reconcile.values import Repair

_RED, _GREEN, _YELLOW, _PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"
_COLOURS = {"-": _RED, "+": _GREEN, "@": "\033[36m"}
_STATE_COLOURS = {"synced": _GREEN, "waiting": _YELLOW, "degraded": _RED, "contended": _RED, "stopped": _RED}
_STATEFUL = ("flanneld-masq", *(family.value for family in Family))


def in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def in_state_colour(line: str) -> str:
    """Colour the state at the start of a line of `status_lines`, and a line that reports a trouble."""
    if line.startswith("  trouble: "):
        return f"{_YELLOW}{line}{_PLAIN}"
    for name in _STATEFUL:
        for state, colour in _STATE_COLOURS.items():
            if line.startswith(start := f"{name}: {state}"):
                return f"{name}: {colour}{state}{_PLAIN}{line[len(start) :]}"
    return line


def print_json(content: object) -> None:
    json.dump(content, sys.stdout, indent=2, default=str)
    print()


def print_errors(errors: Iterable[MasqError]) -> None:
    for error in errors:
        print(f"flanneld-masq: {error}", file=sys.stderr)


def print_plans(plans: Iterable[Plan]) -> None:
    """Print each plan as a diff."""
    colour = in_colour()
    for plan in plans:
        for line in diff.text_of(plan):
            start = _COLOURS.get(line[0], "") if colour else ""
            print(f"{start}{line}\033[0m" if start else line)


def print_repairs(repairs: list[Repair], errors: list[MasqError], as_json: bool, nothing: str) -> int:
    """Print what a command changed, or `nothing`. Return the exit status."""
    if as_json:
        changes = [{**dataclasses.asdict(repair.plan), "duration_us": repair.duration_us} for repair in repairs]
        print_json({"changed": changes, "errors": list(map(str, errors))})
    else:
        for repair in repairs:
            where, took = f"{repair.plan.family} {repair.plan.backend}", f"{repair.duration_us / 1000:.1f} ms"
            print(f"{where}: {took}: {describe(repair.plan.changes)}")
        if not repairs and not errors:
            print(nothing)
    return 1 if errors else 0


def backend_lines(families: Mapping[str, Any], failures: list[str]) -> Iterator[str]:
    """Yield the lines of `flanneld-masq backends`; `families` is the data of its JSON."""
    for name, family in families.items():
        yield f"{name}: {family['chosen'] or 'none can be used'} ({family['why']})"
        for backend in family["backends"]:
            sign = "*" if backend["name"] == family["chosen"] else " "
            known = filter(None, (*backend["versions"], backend["protects"]))
            details = ", ".join(known) if backend["usable"] else backend["reason"]
            yield f" {sign} {backend['name']:<16} {'usable  ' if backend['usable'] else 'unusable'}  {details}"
            if not backend["usable"] and backend["remedy"]:
                yield f"   {'':<16} {'':<8}  -> {backend['remedy']}"
    yield from failures


def protection_text(protection: Protection) -> str:
    """Return whether other programs can change an nft table, in words."""
    return "not protected from other programs" if protection is Protection.NONE else f"protected ({protection})"
