"""Reads the alerts and the dashboard of docs/monitoring: which queries they ask, and which metrics these name. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flanneld_masq.model import SLOTS

DIRECTORY = Path(__file__).parents[2] / "docs" / "monitoring"
RULES, RULES_TEST, DASHBOARD = DIRECTORY / "rules.yml", DIRECTORY / "rules-test.yml", DIRECTORY / "dashboard.json"
_METRIC = re.compile(r"\bflanneld_masq_\w+")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True, **SLOTS)
class Query:
    """A query of a panel, with the pattern of its legend: `{{label}}` stands for the value of a label."""

    expression: str
    legend: str

    def filled(self, **variables: str) -> str:
        """Return the expression with Grafana's variables replaced. Raises KeyError for one that has no value."""
        return _VARIABLE.sub(lambda found: variables[found[1]], self.expression)

    def named(self, labels: dict[str, str]) -> str:
        """Return the legend of a series."""
        return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), self.legend)


@dataclass(frozen=True, **SLOTS)
class Panel:
    """`kind` and `unit` are Grafana's words."""

    title: str
    kind: str
    unit: str
    queries: tuple[Query, ...]


def panels() -> tuple[Panel, ...]:
    return tuple(map(_panel, content()["panels"]))


def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def named_metrics(text: str) -> frozenset[str]:
    """Return the metrics of flanneld-masq that a text names."""
    return frozenset(_METRIC.findall(text))


def variables() -> Iterator[str]:
    """Yield the names of the variables of the dashboard."""
    return (one["name"] for one in content()["templating"]["list"])


def _panel(one: dict[str, Any]) -> Panel:
    queries = tuple(Query(target["expr"], target["legendFormat"]) for target in one["targets"])
    return Panel(one["title"], one["type"], one["fieldConfig"]["defaults"]["unit"], queries)
