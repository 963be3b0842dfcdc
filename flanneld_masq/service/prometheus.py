"""Renders the daemon's status in the text format of Prometheus, for node_exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.controller.status import State, Status

STATES = (State.SYNCED, State.WAITING, State.DEGRADED, State.CONTENDED, State.STOPPED)


def exposition(status: Status) -> str:
    """Return the whole file."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Status) -> Iterator[str]:
    families = status.families
    yield "# HELP flanneld_masq_state 1 for the state that the daemon is in, 0 for the others."
    yield "# TYPE flanneld_masq_state gauge"
    for state in STATES:
        yield f'flanneld_masq_state{{state="{state}"}} {int(status.state is state)}'
    yield "# HELP flanneld_masq_family_in_sync 1 if the kernel holds what is wanted for the family."
    yield "# TYPE flanneld_masq_family_in_sync gauge"
    for name, family in families.items():
        yield f'flanneld_masq_family_in_sync{{family="{name}"}} {int(family.state is State.SYNCED)}'
    yield "# HELP flanneld_masq_rules Rules that the kernel holds for us."
    yield "# TYPE flanneld_masq_rules gauge"
    for name, family in families.items():
        for group, choice in family.groups.items():
            labels = f'family="{name}",group="{group}",backend="{choice.backend}"'
            yield f"flanneld_masq_rules{{{labels}}} {choice.rules or 0}"
    yield "# HELP flanneld_masq_repairs_total Times that others had changed our rules and we put them back."
    yield "# TYPE flanneld_masq_repairs_total counter"
    for name, family in families.items():
        yield f'flanneld_masq_repairs_total{{family="{name}"}} {family.repairs or 0}'
