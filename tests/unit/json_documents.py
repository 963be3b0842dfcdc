"""Strategies for documents of JSON: any, and valid ones with one value exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_Path = tuple[Any, ...]


def mutated(document: Any) -> st.SearchStrategy[Any]:
    """Return the document with one value, at any depth, replaced by any other."""
    return st.builds(
        lambda path, value: _replaced(document, path, value), st.sampled_from(list(_paths(document))), JSON
    )


def _paths(document: Any, here: _Path = ()) -> Iterator[_Path]:
    yield here
    if isinstance(document, dict):
        for key, value in document.items():
            yield from _paths(value, (*here, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from _paths(value, (*here, number))


def _replaced(document: Any, path: _Path, value: Any) -> Any:
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = _replaced(document[path[0]], path[1:], value)
    return copy
