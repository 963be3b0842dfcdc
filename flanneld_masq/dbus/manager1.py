"""The daemon as others see it on D-Bus: its one object, and what a status and an event become there. Pure.

Names and values are those of status.json. What has no fixed shape goes as JSON, by GetStatus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flanneld_masq.dbus.object_server import Arguments, Interface
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, Plan
from flanneld_masq.reconcile.values import Repair

NAME = "io.github.flanneld_masq"
PATH = "/io/github/flanneld_masq"
REPAIRED, STATE_CHANGED = "Repaired", "StateChanged"
# properties that are arrays of structures, and what stands in these
ROWS: Mapping[str, Arguments] = {
    "Backends": {"family": "s", "group": "s", "backend": "s", "rules": "u", "why": "s"},
    "Lease": {"path": "s", "family": "s", "subnet": "s", "networks": "as"},
}
_CHANGE = {"kind": "s", "place": "s", "wanted": "s", "found": "s"}
_REPAIR = {"family": "s", "backend": "s", "duration_us": "t", "changes": f"a({''.join(_CHANGE.values())})"}
MANAGER = Interface(
    name=f"{NAME}.Manager1",
    properties={
        "Version": "s",
        "State": "s",
        **{name: f"a({''.join(row.values())})" for name, row in ROWS.items()},
        "LastError": "s",  # what is wrong now; empty for nothing
        "Repairs": "t",  # of what others had changed, since the start
    },
    constants=frozenset({"Version"}),
    methods={
        "Reconcile": {"changed": f"a({''.join(_REPAIR.values())})"},
        "Reload": {},
        "GetStatus": {"status": "s"},
    },
    signals={
        REPAIRED: {
            "family": "s",
            "backend": "s",
            "reason": "s",
            "duration_us": "t",
            "culprit": "s",
            "culprit_pid": "u",
            "message": "s",
        },
        # of one family, or of the daemon as a whole where the family is empty
        STATE_CHANGED: {"family": "s", "old": "s", "new": "s", "error": "s"},
    },
)
Status = Mapping[str, Any]


def properties(status: Status) -> dict[str, Any]:
    """The values of all properties, from what `Daemon.status` gives."""
    families: Mapping[str, Any] = status["families"]
    return {
        "Version": status["version"],
        "State": status["state"],
        "Backends": [
            (name, group, found["backend"], found["rules"], found["why"])
            for name, family in families.items()
            for group, found in family["groups"].items()
        ],
        "Lease": [
            (lease["path"], str(family), lease[str(family)]["subnet"], lease[str(family)]["networks"])
            for lease in status["leases"]
            for family in Family
            if str(family) in lease
        ],
        "LastError": "; ".join(_errors(status)),
        "Repairs": sum(family["repairs"] for family in families.values()),
    }


def repaired(event: Event) -> tuple[Any, ...]:
    """The arguments of Repaired."""
    culprit = (event.culprit, event.culprit_pid)
    return (event.family, event.backend, event.reason, event.duration_us, *culprit, event.message)


def state_changes(before: Status, after: Status) -> Iterator[tuple[str, str, str, str]]:
    """The arguments of each StateChanged that leads from one status to the other, the whole daemon's last."""
    for name, family in after["families"].items():
        old = before["families"][name]["state"]
        if old != family["state"]:
            yield name, old, family["state"], family["last_error"]
    if before["state"] != after["state"]:
        yield "", before["state"], after["state"], "; ".join(_errors(after))


def changed(repairs: Iterable[Repair]) -> list[tuple[Any, ...]]:
    """What Reconcile answers."""
    return [
        (
            str(found.plan.family),
            found.plan.backend,
            found.duration_us,
            [(change.kind, change.place, change.wanted, change.found) for change in found.plan.changes],
        )
        for found in repairs
    ]


def repairs(answer: Iterable[Any]) -> list[Repair]:
    """What Reconcile answered."""
    return [
        Repair(
            Plan(
                Family(family), BackendName(backend), tuple(Change(ChangeKind(kind), *rest) for kind, *rest in changes)
            ),
            duration_us,
        )
        for family, backend, duration_us, changes in answer
    ]


def named(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Values of properties, structures with the names of what stands in them."""
    return {
        name: [dict(zip(ROWS[name], row)) for row in value] if name in ROWS else value
        for name, value in properties.items()
    }


def _errors(status: Status) -> Iterator[str]:
    """Of the families, then of the subnet files."""
    for name, family in status["families"].items():
        if family["last_error"]:
            yield f"{name}: {family['last_error']}"
    yield from status["troubles"]
