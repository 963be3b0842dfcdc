"""The documents for contributors name what exists: files, make targets, terms, settings. Nothing uses an old name."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import statements

ROOT = Path(__file__).parents[2]
ENTRY_DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md")
PATH_BASES = (ROOT, ROOT / "flanneld_masq")
MADE_DIRECTORIES = {"build", "dist", "__pycache__"}
MAY_NAME_OLD_MODULES = (Path(__file__), ROOT / "CHANGELOG.md")
TEXT_SUFFIXES = {"", ".py", ".md", ".rst", ".toml", ".service", ".spec", ".catalog", ".fish", ".yml", ".yaml", ".conf"}

TERMS = (
    "Drift",
    "Desired state",
    "Fingerprint",
    "Read-back",
    "Generation",
    "Foreign rule",
    "Attribution",
    "Back-off",
    "Rate limit",
    "Make-before-break",
    "Instance lock",
    "Resync",
    "Lease",
)

# Modules that had another path in 0.1.0, by the package that they were in.
OLD_MODULES = {
    "flanneld_masq": (
        "budget",
        "cases",
        "choice",
        "cli",
        "commands",
        "commits",
        "complaints",
        "config",
        "culprit",
        "dbus",
        "doctor",
        "events",
        "expressions",
        "facts",
        "flannel",
        "hearsay",
        "interface",
        "journal",
        "lab",
        "lean",
        "leases",
        "loop",
        "manager",
        "metrics",
        "monitor",
        "netlink",
        "netns",
        "notify",
        "packets",
        "plan",
        "plugins",
        "policy",
        "presence",
        "reconcile",
        "remote",
        "replay",
        "run",
        "sabotage",
        "selftest",
        "service",
        "store",
        "subnetenv",
        "trial",
        "watch",
        "worker",
    ),
    "flanneld_masq.testing": ("memory",),
    "flanneld_masq_iptables": ("entries", "getinfo", "legacy", "nft", "programs"),
    "flanneld_masq_nft": ("library",),
}
# These were modules and are packages now: their dotted name is right, their file name is not.
PACKAGES_NOW = {f"flanneld_masq.{name}" for name in ("cli", "dbus", "doctor", "reconcile", "selftest", "service")}
OLD_DOTTED = {f"{package}.{name}" for package, names in OLD_MODULES.items() for name in names}


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tree() -> Iterator[Path]:
    """Yield each text file of the project that may name no old module. What `make` builds is left out."""
    for directory, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name not in MADE_DIRECTORIES and not name.endswith(".egg-info")]
        below[:] = [name for name in below if not name.startswith(".") or name in (".github", ".ci")]
        for path in (Path(directory, name) for name in names):
            if path.suffix in TEXT_SUFFIXES and path not in MAY_NAME_OLD_MODULES:
                yield path


FILES = sorted(tree())
MODULES = [path for path in FILES if path.suffix == ".py"]


def code_spans(text: str) -> list[str]:
    """Return what stands in backticks, and the lines of indented or fenced blocks."""
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?: {4}|\t)(.+)$", text, re.MULTILINE)


def paths_in(text: str) -> list[str]:
    """Return the backticked paths of the tree: with a directory, or ending in .py. Paths of a node start with `/`."""
    spans = (span.split("::")[0] for span in re.findall(r"`([^`\n]+)`", text))
    return [span for span in spans if re.fullmatch(r"\.?[\w*-][\w*./-]*", span) and is_path(span)]


def is_path(span: str) -> bool:
    return span.endswith(".py") or ("/" in span and span.split("/")[0] not in MADE_DIRECTORIES)


@pytest.mark.parametrize("name", [*ENTRY_DOCUMENTS, "README.md"])
def test_each_path_in_a_document_exists(name: str) -> None:
    missing = [path for path in paths_in(document(name)) if not any(list(base.glob(path)) for base in PATH_BASES)]
    assert missing == []


@pytest.mark.parametrize(
    "name", [*ENTRY_DOCUMENTS, "README.md", "docs/install.md", "docs/kubernetes.md", "tests/bench/README.md"]
)
def test_each_make_target_in_a_document_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", document("Makefile"), re.MULTILINE))
    named = {target for span in code_spans(document(name)) for target in re.findall(r"\bmake ([a-z-]+)", span)}
    assert named - targets == set()


@pytest.mark.parametrize(
    "name", [*ENTRY_DOCUMENTS, "README.md", "CHANGELOG.md", "docs/kubernetes.md", "docs/plugins.md"]
)
def test_each_link_in_a_document_leads_to_a_file(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document(name))
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda path: path.stem)
def test_each_module_named_in_a_decision_exists(path: Path) -> None:
    known = {module.name for module in MODULES}
    assert [name for name in re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", path.read_text()) if name not in known] == []


def test_architecture_names_each_package() -> None:
    packages = [path.parent.name for path in (ROOT / "flanneld_masq").glob("*/__init__.py")]
    assert [package for package in packages if f"`{package}/`" not in document("ARCHITECTURE.md")] == []


@pytest.mark.parametrize("term", TERMS)
def test_the_glossary_defines_each_term_once(term: str) -> None:
    (glossary,) = re.findall(r"^## Glossary\n(.*?)^## ", document("ARCHITECTURE.md"), re.DOTALL | re.MULTILINE)
    assert len(re.findall(rf"^- \*\*{term}\*\*: \S", glossary, re.MULTILINE)) == 1


@pytest.mark.parametrize("package", OLD_MODULES)
def test_no_module_has_an_old_path(package: str) -> None:
    directory = ROOT / ("plugins" if package != "flanneld_masq" and "." not in package else "")
    directory = directory.joinpath(*package.split("."))
    assert [name for name in OLD_MODULES[package] if (directory / f"{name}.py").exists()] == []


def test_no_file_names_an_old_module() -> None:
    names = "|".join(map(re.escape, sorted(OLD_DOTTED - PACKAGES_NOW)))
    files = "|".join(re.escape(f"{name.replace('.', '/')}.py") for name in sorted(OLD_DOTTED))
    pattern = re.compile(rf"(?<![\w./])(?:{names})(?![\w-])|(?<![\w.])(?:{files})\b")
    assert {str(path): hits for path in FILES if (hits := pattern.findall(path.read_text("utf-8", "replace")))} == {}


def test_no_import_uses_an_old_module() -> None:
    old = OLD_DOTTED - PACKAGES_NOW
    maybe = re.compile("|".join(map(maybe_import, sorted(old))))  # few modules: this is quicker than to parse all
    imports = {
        str(path): old.intersection(imported(ast.parse(path.read_bytes())))
        for path in MODULES
        if maybe.search(path.read_text())
    }
    assert {path: names for path, names in imports.items() if names} == {}


def maybe_import(dotted: str) -> str:
    """Return a pattern that each import of a module matches, and other text may: no import holds a `=`."""
    package, _, name = map(re.escape, dotted.rpartition("."))
    return rf"\b{package}(?:\.|\s+import\b[^=]*?\b){name}\b"


@pytest.mark.parametrize(
    "source",
    [
        "import os, a.b.c",
        "import a.b.c as d",
        "from a.b import c",
        "if d: from a.b import (  # a comment (with a bracket): and more\n    e,\n    c as d,\n)",
        "from a.b import e, \\\n    c",
    ],
)
def test_an_import_of_an_old_module_is_seen(source: str) -> None:
    assert re.search(maybe_import("a.b.c"), source)
    assert "a.b.c" in imported(ast.parse(source))


def imported(module: ast.Module) -> Iterator[str]:
    """Yield each dotted name that an absolute import may bind."""
    for node in statements(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_readme_lists_each_setting_with_its_default() -> None:
    assert list(readme_settings()) == list(example_settings())


def example_settings() -> Iterator[tuple[str, str]]:
    """Yield each key of the example configuration, with its default."""
    table = ""
    for line in document("packaging/config.toml").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            table = f"{heading[1]}."
        elif setting := re.fullmatch(r"#(\w+) = (.+)", line):
            yield f"{table}{setting[1]}", setting[2]


def readme_settings() -> Iterator[tuple[str, str]]:
    (section,) = re.findall(r"^## Configuration\n(.*?)^## ", document("README.md"), re.DOTALL | re.MULTILINE)
    yield from re.findall(r"^\| `([\w.]+)` \| `(.+?)` \|", section, re.MULTILINE)
