"""A module imports its own package and earlier layers only.

Two packages of one layer never import each other: none needs to, and so there can be no cycle. An import inside a
function or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from .source import statements

ROOT = Path(__file__).parents[2]
LAYERS = (
    ("__version__", "printable"),
    ("model", "errors", "footprint", "hangup"),
    ("inputs", "ruleset", "kernel", "process", "lock_files"),
    ("state_directory",),
    ("hookspecs",),
    (
        "reconcile",
        "flanneld_masq_nft",
        "flanneld_masq_iptables",
        "flanneld_masq_ipmasqagent",
        "flanneld_masq_prometheus",
        "testing",
        "plugin_loader",
        "selftest",
        "packet_path",
    ),
    ("live",),
    ("controller",),
    ("dbus",),
    ("service",),
    ("doctor",),
    ("report",),
    ("cli",),
    ("__main__",),
)
RANKS = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
FILES = [path.relative_to(ROOT) for top in ("flanneld_masq", "plugins") for path in sorted((ROOT / top).rglob("*.py"))]


def package_of(names: tuple[str, ...]) -> str:
    """Return the package or module below flanneld_masq, or the plugin, that a dotted name lies in."""
    return names[1] if names[0] == "flanneld_masq" else names[0]


def imported_packages(file: Path) -> Iterator[str]:
    for node in statements(ast.parse((ROOT / file).read_text())):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (package_of(tuple(name.split("."))) for name in modules if name.startswith("flanneld_masq"))


def refused_imports(file: Path) -> Iterator[str]:
    own = package_of(tuple(file.with_suffix("").parts[file.parts[0] == "plugins" :]))
    later = {package for package in imported_packages(file) if package != own and RANKS[package] >= RANKS[own]}
    yield from (f"{file} may not import {package}" for package in sorted(later))


def test_each_module_imports_earlier_layers_only() -> None:
    files = [file for file in FILES if file != Path("flanneld_masq/__init__.py")]
    assert len(files) > 100
    assert [refused for file in files for refused in refused_imports(file)] == []


def test_the_table_of_packages_is_complete_and_in_this_order() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text().split("\n| package | question |")[1].split("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    names = [name for cell in first_cells for name in re.findall(r"`([a-z_]+)(?:\.py|/)`", cell)]
    plugins = names.index("plugins")
    assert RANKS[names[plugins - 1]] <= RANKS["flanneld_masq_nft"] <= RANKS[names[plugins + 1]]
    names.remove("plugins")
    assert [RANKS[name] for name in names] == sorted(RANKS[name] for name in names)
    unnamed = {"__version__", "__main__"}
    assert {*names, *unnamed} == {package for package in RANKS if not package.startswith("flanneld_masq_")}
