"""The daemon's interface on D-Bus, and how a status, an event and a repair are written in it. Pure.

Names and values are those of status.json. GetStatus returns the whole status as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flanneld_masq.controller.status import State, Status
from flanneld_masq.dbus.object_server import Arguments, Interface
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import BackendName, Change, ChangeKind, Family, Plan
from flanneld_masq.printable import printable
from flanneld_masq.reconcile.values import Repair

NAME = "io.github.flanneld_masq"
PATH = "/io/github/flanneld_masq"
REPAIRED, STATE_CHANGED = "Repaired", "StateChanged"
# properties that are arrays of structures, and what stands in these
ROWS: Mapping[str, Arguments] = {
    "Backends": {"family": "s", "group": "s", "backend": "s", "rules": "u", "why": "s"},
    "Lease": {"path": "s", "family": "s", "subnet": "s", "networks": "as"},
}
_TYPES: Mapping[str, tuple[type, ...]] = {"s": (str,), "u": (int,), "t": (int,), "as": (list, tuple), "": (list, tuple)}
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


def properties(status: Status) -> dict[str, Any]:
    """Return the values of all properties."""
    return {
        "Version": status.version,
        "State": status.state.value,
        "Backends": [
            (str(name), str(group), carrier.backend, carrier.rules or 0, carrier.why)
            for name, family in status.families.items()
            for group, choice in family.groups.items()
            for carrier in choice.carriers
        ],
        "Lease": [
            (printable(lease.path), str(family), str(part.subnet), list(map(str, part.networks)))
            for lease in status.leases
            for family in Family
            if (part := lease.of(family)) is not None
        ],
        "LastError": "; ".join(status.errors),
        "Repairs": sum(family.repairs or 0 for family in status.families.values()),
    }


def repaired(event: Event) -> tuple[Any, ...]:
    """Return the arguments of Repaired."""
    culprit = (event.culprit, event.culprit_pid)
    return (event.family, event.backend, event.reason, event.duration_us, *culprit, event.message)


def state_changes(before: Status, after: Status) -> Iterator[tuple[str, str, str, str]]:
    """Yield the arguments of each StateChanged that leads from one status to the other, the whole daemon's last.

    When the daemon stops, its own says it for all families.
    """
    for name, family in after.families.items():
        old = before.families[name].state
        if old is not family.state and after.state is not State.STOPPED:
            yield str(name), old.value, family.state.value, family.last_error
    if before.state is not after.state:
        yield "", before.state.value, after.state.value, "; ".join(after.errors)


def changed(repairs: Iterable[Repair]) -> list[tuple[Any, ...]]:
    """Return the answer of Reconcile."""
    return [
        (
            str(repair.plan.family),
            repair.plan.backend,
            repair.duration_us,
            [(change.kind.value, change.place, change.wanted, change.found) for change in repair.plan.changes],
        )
        for repair in repairs
    ]


def repairs(answer: Iterable[Any]) -> list[Repair]:
    """Read the answer of Reconcile, whose D-Bus signature was checked before. Raises ValueError for the name of a
    family or of a kind of change that this release does not know."""
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
    """Return the values of properties with each structure as a dictionary. Raises ValueError for one of another type
    than that of the interface."""
    return {name: _named(name, value) for name, value in properties.items()}


def _named(name: str, value: Any) -> Any:
    row = ROWS.get(name)
    if row is None:
        return _typed(name, MANAGER.properties[name], value) if name in MANAGER.properties else value
    if not isinstance(value, (list, tuple)) or any(len(_typed(name, "", values)) != len(row) for values in value):
        raise ValueError(f"{name} does not have the structure that this release knows")
    return [{key: _typed(name, kind, item) for (key, kind), item in zip(row.items(), values)} for values in value]


def _typed(name: str, signature: str, value: Any) -> Any:
    """Return a value of a property if it has that type; an empty signature stands for a structure."""
    if not isinstance(value, _TYPES[signature]):
        raise ValueError(f"{name} has a value of type {type(value).__name__}")  # noqa: TRY004  what is wrong is the release
    return value
