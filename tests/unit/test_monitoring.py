"""The alerts and the dashboard ask for metrics that the daemon writes. `make monitoring` asks a real Prometheus."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from flanneld_masq.controller.status import State, Status
from flanneld_masq.service import prometheus

from ..monitoring import dashboard, picture
from ..monitoring.dashboard import Panel, Query
from ..monitoring.picture import Plot

WRITTEN = {metric.name for metric in prometheus.metrics(Status(State.SYNCED))}
MAN = (dashboard.DIRECTORY.parent / "man" / "flanneld-masq.8.rst").read_text()
README = (dashboard.DIRECTORY / "README.md").read_text()


@pytest.mark.parametrize(
    "path", [dashboard.RULES, dashboard.RULES_TEST, dashboard.DASHBOARD], ids=lambda path: path.name
)
def test_each_metric_that_is_named_is_written(path: Path) -> None:
    named = dashboard.named_metrics(path.read_text())
    assert named
    assert named <= WRITTEN


def test_the_manual_page_has_each_metric_and_no_other() -> None:
    section = MAN.split("\nMETRICS\n")[1].split("\nD-BUS\n")[0]
    assert dashboard.named_metrics(section) == WRITTEN


def test_the_readme_has_each_alert_and_no_other() -> None:
    alerts = re.findall(r"- alert: (\w+)", dashboard.RULES.read_text())
    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE) == alerts


def test_each_alert_is_tested_with_its_cause() -> None:
    tested = dashboard.RULES_TEST.read_text()
    for alert in re.findall(r"- alert: (\w+)", dashboard.RULES.read_text()):
        cases = tested.split(f"alertname: {alert}\n")[1:]
        assert any(case.lstrip().startswith("exp_alerts") for case in cases), alert


def test_the_alerts_of_the_manual_page_are_those_of_the_file() -> None:
    rules = re.sub(r" +", " ", dashboard.RULES.read_text())
    for expression in re.findall(r"^      expr: (.*)$", MAN, re.MULTILINE):
        assert f" expr: {expression}\n" in rules


class TestDashboard:
    def test_each_query_can_be_filled(self) -> None:
        known = dict.fromkeys((*dashboard.variables(), "__rate_interval"), "x")
        for panel in dashboard.panels():
            assert panel.queries
            for query in panel.queries:
                assert "$" not in query.filled(**known)

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for place in (one["gridPos"] for one in dashboard.content()["panels"]):
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells

    def test_ids_are_unique_and_each_panel_is_described(self) -> None:
        panels = dashboard.content()["panels"]
        assert len({one["id"] for one in panels}) == len(panels)
        assert all(one["description"] and one["title"] for one in panels)

    def test_the_published_picture_has_each_panel(self) -> None:
        drawn = (dashboard.DIRECTORY / "dashboard.svg").read_text()
        assert all(f">{panel.title}</text>" in drawn for panel in dashboard.panels())

    def test_a_legend_names_the_labels(self) -> None:
        assert Query("x", "{{a}} of {{b}}").named({"a": "1"}) == "1 of "


def test_a_picture_of_nothing_and_of_one_value() -> None:
    panel = Panel("One", "timeseries", "s", ())
    plots = [Plot(panel.title, panel.kind, panel.unit, {"<a>": ((0.0, 0.0), (9.0, 3.0))}), Plot("None", "x", "x", {})]
    states = Plot("State", "state-timeline", "short", {"node synced": ((0.0, 1.0), (1.0, 1.0), (5.0, 1.0))})
    drawn = picture.render([*plots, states], 10.0, f"At {datetime(2026, 1, 1, tzinfo=timezone.utc):%Y}")
    assert "&lt;a&gt;" in drawn
    assert "no data" in drawn
    assert drawn.count(f'fill="{picture.STATES["synced"]}"') == 3, "two spans and the legend"
