"""The daemon's status in the text format of Prometheus, for node_exporter's textfile collector.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

STATES = ("synced", "waiting", "degraded", "contended", "stopped")


def exposition(status: Mapping[str, Any]) -> str:
    """The whole file, from what `Daemon.status` gives."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    families = status["families"]
    yield "# HELP flanneld_masq_state 1 for the state that the daemon is in, 0 for the others."
    yield "# TYPE flanneld_masq_state gauge"
    for state in STATES:
        yield f'flanneld_masq_state{{state="{state}"}} {int(status["state"] == state)}'
    yield "# HELP flanneld_masq_family_in_sync 1 if the kernel holds what is wanted for the family."
    yield "# TYPE flanneld_masq_family_in_sync gauge"
    for name, family in families.items():
        yield f'flanneld_masq_family_in_sync{{family="{name}"}} {int(family["state"] == "synced")}'
    yield "# HELP flanneld_masq_rules Rules that the kernel holds for us."
    yield "# TYPE flanneld_masq_rules gauge"
    for name, family in families.items():
        for group, found in family["groups"].items():
            labels = f'family="{name}",group="{group}",backend="{found["backend"]}"'
            yield f"flanneld_masq_rules{{{labels}}} {found['rules']}"
    yield "# HELP flanneld_masq_repairs_total Times that others had changed our rules and we put them back."
    yield "# TYPE flanneld_masq_repairs_total counter"
    for name, family in families.items():
        yield f'flanneld_masq_repairs_total{{family="{name}"}} {family["repairs"]}'
