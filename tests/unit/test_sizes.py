"""A class that grows beyond what a reader holds in mind is split, or its docstring says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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


def excesses(source: str) -> Iterator[str]:
    """Yield what is too large: the name of a class without an excuse, with its lines or attributes."""
    for node in (node for node in statements(ast.parse(source)) if isinstance(node, ast.ClassDef)):
        if EXCUSE in (ast.get_docstring(node) or ""):
            continue
        if len(names := attributes(node)) > MAX_ATTRIBUTES:
            yield f"{node.name}: {', '.join(sorted(names))}"
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_LINES:
            yield f"{node.name}: {lines} lines"


def test_each_class_is_small_or_says_why_not() -> None:
    assert [f"{module}: {excess}" for module in modules() for excess in excesses((ROOT / module).read_text())] == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a: int\n    def f(self): self.b, self.c = 1, 2", []),
        ("\n    ".join(f"a{number}: int" for number in range(13)), ["C: a0, a1, a10, a11, a12, a2"]),
        ("def f(self): " + " = ".join(f"self.a{number}" for number in range(13)) + " = 0", ["C: a0, a1, a10, a11"]),
        ("\n" * 250 + "    a = 1", ["C: 252 lines"]),
        (f'"""It is {EXCUSE} of this."""' + "\n" * 250 + "    a = 1", []),
    ],
)
def test_a_large_class_is_found(body: str, expected: list[str]) -> None:
    found = list(excesses(f"class C:\n    {body}\n"))
    assert [excess[: len(begin)] for excess, begin in zip(found, expected)] == expected
    assert len(found) == len(expected)
