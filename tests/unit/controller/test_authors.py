"""The command lines of authors are kept beside the status, and come back to the repair that they belong to."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given

from flanneld_masq.controller import authors
from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.status import FamilyStatus, LastWrite, State, Status, from_json, to_json
from flanneld_masq.model import BackendName, Family

from ..json_documents import JSON, mutated

REPAIR = LastWrite(
    "then", BackendName("nft"), "why", True, 1, culprits=(Culprit("sh", 1), Culprit("nft", 2, "nft -f x", "x.service"))
)
STATUS = Status(
    State.SYNCED,
    families={Family.IPV4: FamilyStatus(State.SYNCED, last_repair=REPAIR), Family.IPV6: FamilyStatus(State.SYNCED)},
)
DOCUMENT = {"ipv4": {"time": "then", "commands": ["", "nft -f x"]}}
READ = from_json(json.loads(json.dumps(to_json(STATUS))))


def test_they_come_back() -> None:
    assert authors.to_json(STATUS) == DOCUMENT
    assert READ != STATUS, "the status itself has none"
    assert authors.restored(READ, DOCUMENT) == STATUS


def test_without_any() -> None:
    assert authors.to_json(READ) == {}


@pytest.mark.parametrize(
    "content", [None, [], {"ipv4": {**DOCUMENT["ipv4"], "time": "now"}}, {"ipv4": {"time": "then", "commands": ["x"]}}]
)
def test_those_of_another_repair_are_left_out(content: Any) -> None:
    assert authors.restored(READ, content) == READ


@given(JSON | mutated(DOCUMENT))
def test_any_document(content: Any) -> None:
    restored = authors.restored(READ, content)
    assert dataclasses.replace(restored, families=READ.families) == READ
