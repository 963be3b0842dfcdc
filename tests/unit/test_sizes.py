"""A class that grows beyond what a reader holds in mind is split, or its docstring says why not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .source import statements

ROOT = Path(__file__).parents[2]
MAX_ATTRIBUTES, MAX_LINES = 12, 250
EXCUSE = "one class because"  # in the docstring of a class that is larger


def modules() -> list[str]:
    found = [*(ROOT / "flanneld_masq").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


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


@pytest.mark.parametrize("module", modules())
def test_a_class_is_small_or_says_why_not(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text())
    for node in (node for node in statements(tree) if isinstance(node, ast.ClassDef)):
        if EXCUSE in (ast.get_docstring(node) or ""):
            continue
        assert len(attributes(node)) <= MAX_ATTRIBUTES, (node.name, sorted(attributes(node)))
        assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_LINES, node.name
