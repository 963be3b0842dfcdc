"""How commands print: lines for people, with colour on a terminal, and JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from flanneld_masq.controller.status import FamilyStatus, GroupStatus, LastWrite, State, Status
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family, Group, Lease, Plan, Protection
from flanneld_masq.reconcile.values import Repair
from flanneld_masq.reconcile.wording import describe
from flanneld_masq.ruleset import diff

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


def status_lines(status: Status, *, commands: bool = False) -> Iterator[str]:
    """Yield the lines of `flanneld-masq status`. `commands` adds the command lines of programs, which are for root."""
    yield f"flanneld-masq: {status.state}" + (f", pid {status.pid}" if status.pid else "")
    for trouble in status.troubles:
        yield f"  trouble: {trouble}"
    for failure in status.plugin_failures:
        yield f"  {failure}"
    if status.since.daemon is not None:
        yield f"  since: {_time_text(status.since.daemon)}"
    for lease in status.leases:
        yield f"  lease: {lease.path}: {', '.join(_subnets(lease))}"
    for name, family in status.families.items():
        named = status.names(name) or not status.leases
        head, *rest = _family_lines(name, family, named=named, commands=commands)
        yield head
        since = status.since.families.get(name)
        if named and since is not None and since != status.since.daemon:
            yield f"  since: {_time_text(since)}"
        yield from rest


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


def _subnets(lease: Lease) -> Iterator[str]:
    return (f"{family} {part.subnet}" for family in Family if (part := lease.of(family)) is not None)


def _family_lines(name: Family, family: FamilyStatus, *, named: bool, commands: bool) -> Iterator[str]:
    """Yield the lines of one family. `named` is False if there are subnet files and none names the family."""
    states = [str(family.state)] if named else ["not in the subnet file"]
    if not named and family.state in (State.DEGRADED, State.CONTENDED):
        states.append(str(family.state))
    yield f"{name}: {', '.join(filter(None, (*states, family.last_error)))}"
    for group, choice in family.groups.items():
        yield from (f"  {_group_line(group, carrier)}" for carrier in choice.carriers)
    for message in filter(None, (*family.flannel.effects, family.flannel.takeover_stopped)):
        yield f"  flannel: {message}"
    if family.kube_proxy_mark is not None:
        yield f"  kube-proxy's mark: {family.kube_proxy_mark.mark or 'none'} ({family.kube_proxy_mark.why})"
    if family.protection is not None:
        yield f"  nft table: {protection_text(family.protection)}"
    if family.kernel:
        yield f"  kernel: {family.kernel}"
    if family.verified is not None and named:
        yield f"  verified: {_time_text(family.verified)}"
    if family.repairs or (named and family.repairs is not None):
        yield f"  repairs: {family.repairs}"
    if family.healed_flows:
        yield f"  healed flows: {family.healed_flows}"
    if family.last_repair is not None:
        yield f"  last repair: {_write_text(family.last_repair)}"
        for culprit in family.last_repair.culprits:
            command = f": {culprit.command}" if commands and culprit.command else ""
            yield f"    changed by {culprit.name} ({culprit.pid_text}) {culprit.unit}".rstrip() + command
    if family.last_write is not None:
        yield f"  last write: {_write_text(family.last_write)}"


def protection_text(protection: Protection) -> str:
    """Return whether other programs can change an nft table, in words."""
    return "not protected from other programs" if protection is Protection.NONE else f"protected ({protection})"


def _time_text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")


def _group_line(group: Group, choice: GroupStatus) -> str:
    rules = "" if choice.rules is None else f"{choice.rules} rules in "
    return f"{group}: {rules}{choice.backend} ({choice.why})"


def _write_text(write: LastWrite) -> str:
    changes = describe(write.changes)
    what = f"{write.time}, {write.backend} in {write.duration_us / 1000:.1f} ms ({write.reason})"
    return f"{what}: {changes}" if changes else what
