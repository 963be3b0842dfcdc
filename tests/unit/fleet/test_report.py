"""The tables of a fleet, from costs that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...fleet.measure import Measured
from ...fleet.model import Cost
from ...fleet.report import BEGIN, END, markdown, published, scenarios

ONE = Cost(entries=2, size=1000, cpu=0.1)
FOUND = Measured(
    idle=Cost(cpu=0.0001),
    start=ONE,
    role=Cost(cpu=2),
    check=Cost(cpu=0.15),
    refused=ONE,
    restart_refused=ONE,
    flannel=Cost(cpu=0.01),
    lease=ONE,
    drift=ONE,
    undone=Cost(entries=0.1, size=100, cpu=0.02),
    undoings=100,
    undone_lines=22,
    metrics=3000,
    compressed=750,
)


def test_bad_configuration_reaches_one_node_by_the_role() -> None:
    reached = {each.name: len(each.moments) for each in scenarios(FOUND, 5000)}
    assert reached.pop("bad configuration by the role: the first node refuses it") == 1
    assert set(reached.values()) == {5000}


def test_tables_have_the_figures_of_the_fleet() -> None:
    text = markdown(FOUND, 5000, "a machine")
    assert "| flannel restarts on all in the same second | 1 s | 0 | 0 | 0 B | 50.0 s |" in text
    assert "1.0 MB a second from the fleet, 250.0 kB compressed" in text
    assert "| if each repair were logged | 3,600 | 18,000,000 | 5,000 |" in text


def test_figures_replace_those_before() -> None:
    document = f"before\n{BEGIN}old\n{END}after\n"
    assert published(document, "new") == f"before\n{BEGIN}\nnew\n{END}after\n"


def test_document_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        published("text", "new")


def test_fleet_document_has_a_place_for_figures() -> None:
    document = (Path(__file__).parents[3] / "docs" / "fleet.md").read_text()
    assert published(document, "new") != document
