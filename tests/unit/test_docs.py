"""docs/plugins.md says what is so: each signature, and examples that run."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from flanneld_masq import hookspecs, plugin_loader
from flanneld_masq.hookspecs import Backend, Event, HookSpecs, Host
from flanneld_masq.model import Family, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.testing import BackendConformance

from ..common import patience

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plugins.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def signature(name: str, function: Callable[..., object]) -> str:
    """As it stands in the source, without `self`."""
    signature = inspect.signature(function)
    parameters = [f"{one.name}: {one.annotation}" for one in signature.parameters.values() if one.name != "self"]
    return f"{name}({', '.join(parameters)}) -> {signature.return_annotation}"


def public(cls: type) -> Iterator[tuple[str, Callable[..., object]]]:
    return ((name, member) for name, member in vars(cls).items() if inspect.isfunction(member) and name[0] != "_")


@pytest.mark.parametrize(("name", "hook"), list(public(HookSpecs)))
def test_each_hook_has_a_heading_with_its_signature(name: str, hook: Callable[..., object]) -> None:
    assert f"\n### `{signature(name, hook)}`\n" in TEXT
    section = TEXT.split(f"### `{name}(")[1].split("\n#")[0]
    for point in ("* **Called** ", "* **May return** ", "* **If it raises**"):
        assert point in section


def test_no_heading_is_of_a_hook_that_is_gone() -> None:
    assert re.findall(r"^### `(\w+)\(", TEXT, re.MULTILINE) == [name for name, _ in public(HookSpecs)]


@pytest.mark.parametrize(("name", "method"), list(public(Backend)))
def test_each_method_of_a_backend_is_there_with_its_signature(name: str, method: Callable[..., object]) -> None:
    assert f"\n| `{signature(name, method)}` | " in TEXT


def test_no_method_is_of_a_protocol_that_was() -> None:
    assert re.findall(r"^\| `(\w+)\(", TEXT, re.MULTILINE) == [name for name, _ in public(Backend)]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The examples as files, and the distribution that they are said to be in."""
    before = set(sys.modules)
    ranges, count, paper, test_paper = EXAMPLES
    for name, text in {"ranges": ranges, "count": count, "paper": paper, "test_paper": test_paper}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    info = tmp_path / "paper_masq-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paper-masq\nVersion: 1.0\n")
    entry_points = toml.split("[project.entry-points.flanneld_masq]\n")[1].replace('"', "")
    (info / "entry_points.txt").write_text(f"[flanneld_masq]\n{entry_points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in {"ranges", "count", "paper"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_the_example_of_a_backend_is_found(installed: Path) -> None:
    plugins = plugin_loader.load()
    assert [failure for failure in plugins.failures if failure.plugin == "paper"] == []
    assert plugins.owners[plugins.backends["paper"].name] == "paper"  # type: ignore[index]
    (installed / "root").mkdir()
    backend = plugins.create(Family.IPV4, Host(ProcessRunner(), installed / "root"))["paper"]  # type: ignore[index]
    assert backend.probe().remedy == "mount a tmpfs there"


def test_it_passes_the_suite_as_shown(installed: Path) -> None:
    root = str(Path(hookspecs.__file__).parents[1])
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DEBUG_TEMPROOT": str(installed),
    }
    (command,) = re.findall(r"^\$ python3 (.*)$", TEXT, re.MULTILINE)
    done = subprocess.run(
        (sys.executable, *command.split(), "-p", "no:cacheprovider"),
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=patience(60),
        env=environ,
    )
    checks = [name for name in dir(BackendConformance) if name.startswith("test_")]
    assert f"{2 * len(checks)} passed" in done.stdout, done.stdout
    assert done.returncode == 0


def test_the_other_examples_do_as_they_say(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import count  # type: ignore[import-not-found]
    import ranges  # type: ignore[import-not-found]

    plugins = plugin_loader.load({"ranges": ranges, "count": count})
    monkeypatch.setattr(ranges, "FILE", installed / "ranges.txt")
    assert plugins.non_masquerade_cidrs(Settings()) == ((), ())
    (installed / "ranges.txt").write_text("10.0.0.0/8\nfd00::/8\n")
    networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert plugins.non_masquerade_cidrs(Settings()) == (networks, ())
    (installed / "ranges.txt").write_text("nonsense")
    assert plugins.non_masquerade_cidrs(Settings())[0] == networks
    assert plugins.tell(Event("notice", "hello", family="ipv4")) == ()
    assert count.SEEN == {("notice", "ipv4"): 1}
