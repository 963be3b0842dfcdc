"""The Ansible role: its filter, and that defaults, specification and README name the same variables."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "packaging" / "ansible" / "roles" / "flanneld_masq"
PROBLEM = {"id": "flow-dropped", "severity": "problem", "what": "packets are dropped", "family": "ipv4", "owner": "ufw"}


def new_problems(after: object, before: object, allowed: tuple[str, ...] = ()) -> list[str]:
    spec = importlib.util.spec_from_file_location("role_filters", ROLE / "filter_plugins" / "flanneld_masq.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    compare = module.FilterModule().filters()["flanneld_masq_new_problems"]
    found: list[str] = compare(json.dumps({"findings": after}), json.dumps({"findings": before}), allowed)
    return found


def content(name: str) -> Any:
    return yaml.safe_load((ROLE / name).read_text())


def test_problem_that_was_there_is_not_new() -> None:
    assert new_problems([{**PROBLEM, "what": "other numbers in it"}], [PROBLEM]) == []


@pytest.mark.parametrize("field", ["id", "family", "owner"])
def test_problem_that_differs_is_new(field: str) -> None:
    other = {**PROBLEM, field: "another"}
    assert new_problems([PROBLEM, other], [PROBLEM]) == [f"{other['id']}: packets are dropped"]


@pytest.mark.parametrize("severity", ["unknown", "notice"])
def test_what_is_no_problem_does_not_count(severity: str) -> None:
    assert new_problems([{**PROBLEM, "severity": severity}], []) == []


def test_notice_that_becomes_a_problem_is_new() -> None:
    assert new_problems([PROBLEM], [{**PROBLEM, "severity": "notice"}]) == ["flow-dropped: packets are dropped"]


def test_allowed_problem_does_not_count() -> None:
    assert new_problems([PROBLEM], [], ("flow-dropped",)) == []


def test_answer_without_findings_is_an_error() -> None:
    with pytest.raises((KeyError, TypeError)):
        new_problems(None, [])


def test_each_variable_is_specified_and_documented() -> None:
    defaults = content("defaults/main.yml")
    options = content("meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults
    rows = re.findall(r"^\| `(flanneld_masq_\w+)` \| `(.*?)` \|", (ROLE / "README.md").read_text(), re.MULTILINE)
    assert {name: yaml.safe_load(text) for name, text in rows} == defaults


def test_playbook_stops_at_the_first_failed_batch() -> None:
    (play,) = yaml.safe_load((ROLE.parents[1] / "site.yml").read_text())
    assert play["max_fail_percentage"] == 0
    assert play["serial"] == "{{ flanneld_masq_serial | default(1) }}"
