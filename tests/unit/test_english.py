"""The texts of the project use plain words, and docstrings begin with a subject or an imperative verb."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIRECTORIES = ("flanneld_masq", "plugins", "tests", "docs", "systemd", "packaging", "scripts", "completions")
NOT_WRITTEN_HERE = {"corpus", "__pycache__"}  # captures of other programs, and compiled code

# As whole words; `_` separates words, so that names of tests are read too. "is told" may stand on two lines.
WORDS = re.compile(r"(?<![a-z])(?:mend(?:s|ed|ing)?|anew|whoever|somebody|is[\s#*]+told)(?![a-z])", re.IGNORECASE)
BEGINNINGS = re.compile(r"(?:of|whose|whether|what|for who)\b", re.IGNORECASE)
OPENINGS = re.compile(rf"[\"'][\s\\]*{BEGINNINGS.pattern}", re.IGNORECASE)
RELEASED = re.compile(r"^## \[\d", re.MULTILINE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def files() -> Iterator[Path]:
    """Yield each file that the project wrote, but for binary ones."""
    yield from ROOT.glob("*.md")
    for top in DIRECTORIES:
        for directory, below, names in os.walk(ROOT / top):
            below[:] = [name for name in below if name not in NOT_WRITTEN_HERE and not name.endswith(".egg-info")]
            yield from (Path(directory, name) for name in names)


def text_of(path: Path) -> str:
    """Return the text of a file; "" for a binary one. The released versions in the changelog stay as they are."""
    data = path.read_bytes()
    text = "" if b"\0" in data else data.decode("utf-8", "replace")
    return RELEASED.split(text)[0] if path.name == "CHANGELOG.md" else text


def words(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each word that readers stumbled over."""
    for hit in WORDS.finditer(text):
        yield text.count("\n", 0, hit.start()) + 1, " ".join(hit[0].split())


def beginnings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and first word of each docstring that begins with a clause. A question, with its `?`, may."""
    if not OPENINGS.search(source):  # most modules: this is quicker than to parse them
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED):
            docstring = ast.get_docstring(node) or ""
            hit = BEGINNINGS.match(docstring)
            if hit and not docstring.split("\n\n")[0].endswith("?"):
                yield node.body[0].lineno, hit[0]


TEXTS = {path: text_of(path) for path in files()}


def test_no_text_uses_a_refused_word() -> None:
    others = {path: text for path, text in TEXTS.items() if path != Path(__file__)}
    assert [f"{path}:{line}: {word}" for path, text in others.items() for line, word in words(text)] == []


def test_no_docstring_begins_with_a_refused_word() -> None:
    modules = {path: text for path, text in TEXTS.items() if path.suffix == ".py"}
    assert [f"{path}:{line}: {word}" for path, text in modules.items() for line, word in beginnings(text)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it works\nMended, anew.", [(2, "Mended"), (2, "anew")]),
        ("def test_made_anew_by_somebody_else() -> None:", [(1, "anew"), (1, "somebody")]),
        ("# who asks is\n    # told: Whoever", [(1, "is # told"), (2, "Whoever")]),
        ("amend, commended, a new one, this told, was told", []),
    ],
)
def test_words_are_found(text: str, expected: list[tuple[int, str]]) -> None:
    assert list(words(text)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""What it is."""', [(1, "What")]),
        ('"""What is it?"""', []),
        ('class A:\n    """Of others."""\n    async def f(): "whether it is"', [(2, "Of"), (3, "whether")]),
        ('def f():\n    """\\\n    For who asks.\n    """', [(2, "For who")]),
        ('def f():\n    """Return what it is."""\n    "Whose"', []),
        ('def f():\n    """Offer it."""', []),
    ],
)
def test_beginnings_are_found(source: str, expected: list[tuple[int, str]]) -> None:
    assert list(beginnings(source)) == expected
