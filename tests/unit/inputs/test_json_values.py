"""Values from JSON: what was written is read back, and anything else raises ValueError."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.inputs.json_values import MAX_NUMBER, decode, parse
from flanneld_masq.model import Item, ItemKind, Neighbours, VerifiedState

from ..json_documents import JSON, mutated

TEXT = st.text(max_size=5)
NUMBER = st.integers(1 - MAX_NUMBER, MAX_NUMBER - 1)
ITEM = st.builds(Item, st.sampled_from(ItemKind), TEXT, TEXT, TEXT, TEXT, NUMBER)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
NEIGHBOURS = st.builds(Neighbours, TEXT, TEXTS, TEXTS, NUMBER)
STATE = st.builds(VerifiedState, TEXT, st.lists(ITEM).map(tuple), st.lists(NEIGHBOURS, max_size=3).map(tuple))


def written(state: VerifiedState) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(state)))


def read(content: object) -> None:
    """Decode it; what comes out must be of the right types all through, so that it could be written again."""
    try:
        state = decode(VerifiedState, content)
    except ValueError as error:
        assert len(str(error)) < 1000
    else:
        assert decode(VerifiedState, written(state)) == state


@given(STATE)
def test_what_was_written_is_read_back(state: VerifiedState) -> None:
    assert decode(VerifiedState, written(state)) == state


@given(JSON)
def test_any_json_is_read_or_refused(content: object) -> None:
    read(content)


@given(STATE.map(written).flatmap(mutated))
def test_a_document_with_one_value_exchanged_is_read_or_refused(content: object) -> None:
    read(content)


@pytest.mark.parametrize("depth", [100, 500, 900, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    text = '{"fingerprint": "f", "neighbours": [], "items": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(ValueError):
        decode(VerifiedState, parse(text.encode()))


@pytest.mark.parametrize("value", [True, 1.0, float("inf"), MAX_NUMBER, "1", None, [], {}])
def test_a_handle_is_a_whole_number(value: object) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(Item(ItemKind.RULE, "p", "t"))))
    assert decode(Item, content) == Item(ItemKind.RULE, "p", "t")
    with pytest.raises(ValueError):
        decode(Item, {**content, "handle": value})


def test_a_field_too_many_or_too_few_is_refused() -> None:
    content = dataclasses.asdict(Neighbours("p"))
    content = {**content, "before": [], "after": [], "hits": []}
    assert decode(Neighbours, content) == Neighbours("p")
    for other in ({**content, "new": 1}, {key: value for key, value in content.items() if key != "jump"}):
        with pytest.raises(ValueError, match="expected the fields of Neighbours"):
            decode(Neighbours, other)
