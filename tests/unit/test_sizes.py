"""A class that grows beyond what a reader holds in mind is split, or its docstring says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_ATTRIBUTES, MAX_LINES = 12, 250
EXCUSE = "one class because"  # in the docstring of a class that is larger


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for path in sorted([*(ROOT / "flanneld_masq").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", node


def attributes(node: ast.ClassDef) -> set[str]:
    """Return the fields of a dataclass, and what methods assign to self."""
    fields = {
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    assigned = {
        item.attr
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute)
        and isinstance(item.ctx, ast.Store)
        and isinstance(item.value, ast.Name)
        and item.value.id == "self"
    }
    return fields | assigned


@pytest.mark.parametrize(("name", "node"), [pytest.param(name, node, id=name) for name, node in classes()])
def test_a_class_is_small_or_says_why_not(name: str, node: ast.ClassDef) -> None:
    if EXCUSE in (ast.get_docstring(node) or ""):
        return
    assert len(attributes(node)) <= MAX_ATTRIBUTES, sorted(attributes(node))
    assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_LINES
