"""docs/json.md: its example is a status, and its tables name each member."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flanneld_masq.controller.status import Status, from_json, to_json
from flanneld_masq.doctor.findings import Finding
from flanneld_masq.model import Change, ChangeKind, Item, ItemKind, Protection

DOCUMENT = (Path(__file__).parents[3] / "docs/json.md").read_text()
EXAMPLE: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)[0])
EXPLAINED = set(re.findall(r"`([a-z_]+)`", DOCUMENT))


def members(value: object) -> Iterator[str]:
    """Yield the names of all members of a JSON value; backends, groups and families are no names of members."""
    if isinstance(value, dict):
        for name, member in value.items():
            if not re.search(r"^ipv|^iptables|^nft", name):
                yield name
            yield from members(member)
    elif isinstance(value, list):
        for element in value:
            yield from members(element)


def test_the_example_is_a_status() -> None:
    assert json.loads(json.dumps(to_json(from_json(EXAMPLE)))) == EXAMPLE


def test_each_member_of_the_example_is_explained() -> None:
    assert set(members(EXAMPLE)) <= EXPLAINED


def test_each_field_is_explained() -> None:
    named = {field.name for kind in (Status, Change, Finding, Item) for field in dataclasses.fields(kind)}
    assert named - {"kind"} <= EXPLAINED


def test_each_value_of_an_enumeration_is_named() -> None:
    values = {str(member.value) for kind in (ChangeKind, ItemKind, Protection) for member in kind}
    assert {value for value in values if f"`{value}`" not in DOCUMENT} == set()
