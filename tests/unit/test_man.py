"""The manual pages say all that there is, and nothing that is gone; the example configuration says the defaults."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.cli import main
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.errors import ConfigError
from flanneld_masq.hookspecs import HookSpecs
from flanneld_masq.inputs import config
from flanneld_masq.model import Settings
from flanneld_masq.service import journal

from ..common import patience, unable

ROOT = Path(__file__).parents[2]
PROGRAM = (ROOT / "docs/man/flanneld-masq.8.rst").read_text()
CONFIGURATION = (ROOT / "docs/man/flanneld-masq.toml.5.rst").read_text()
EXAMPLE = (ROOT / "packaging/config.toml").read_text()


def section(text: str, title: str) -> str:
    """The text below a heading, up to the next one."""
    (_, rest) = re.split(rf"\n{re.escape(title)}\n(?:=+|-+)\n", text)
    return re.split(r"\n\S.*\n(?:=+|-+)\n", rest)[0]


def terms(text: str) -> list[str]:
    """Return the terms of a definition list, except those that take several lines."""
    return re.findall(r"^(\S.*)\n {2}\S", text, re.MULTILINE)


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    top = main.parser()
    yield "", top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


COMMANDS = [name for name, _ in parsers() if name]
OPTIONS = sorted({option for _, parser in parsers() for action in parser._actions for option in action.option_strings})


def test_each_command_is_there_and_no_other() -> None:
    assert sorted(term.split()[0] for term in terms(section(PROGRAM, "COMMANDS"))) == sorted(COMMANDS)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_is_there(option: str) -> None:
    assert re.search(rf"(?<![\w-]){option}(?![\w-])", section(PROGRAM, "OPTIONS") + section(PROGRAM, "COMMANDS"))


def test_no_option_is_gone() -> None:
    said = re.findall(r"(?<![\w-])--?[a-z][\w-]*", section(PROGRAM, "OPTIONS") + section(PROGRAM, "COMMANDS"))
    assert set(said) <= set(OPTIONS)


@pytest.mark.parametrize(("kind", "number"), journal.MESSAGE_IDS.items())
def test_each_message_id_is_there(kind: str, number: str) -> None:
    assert f"\n{kind}\n  *{number}*. " in section(PROGRAM, "JOURNAL")


def test_no_message_id_is_gone() -> None:
    assert set(re.findall(r"[0-9a-f]{32}", PROGRAM)) == set(journal.MESSAGE_IDS.values())


def test_each_field_of_the_journal_is_there() -> None:
    fields = re.findall(r'^ {8}"([A-Z_]+)": event\.', inspect.getsource(journal.emit), re.MULTILINE)
    said = re.findall(rf"{journal.PREFIX}([A-Z_]+)", PROGRAM)
    assert sorted(fields) == sorted(said)


def test_each_d_bus_member_is_there_and_no_other() -> None:
    said = section(PROGRAM, "D-BUS")
    assert all(f"**{name}**" in said for name in (NAME, MANAGER.name))
    assert f"*{PATH}*" in said
    parts = re.split(r"^(Properties|Methods|Signals):$", said, flags=re.MULTILINE)
    documented = {title: sorted(terms(text)) for title, text in zip(parts[1::2], parts[2::2])}
    members = {"Properties": MANAGER.properties, "Methods": MANAGER.methods, "Signals": MANAGER.signals}
    assert documented == {title: sorted(names) for title, names in members.items()}


def test_each_hook_is_there_and_no_other() -> None:
    hooks = [name for name, member in vars(HookSpecs).items() if inspect.isfunction(member)]
    assert terms(section(PROGRAM, "PLUGINS")) == hooks


# ---- the configuration


def keys() -> list[str]:
    return [f"{table}.{key}" if table else key for table, names in config._TABLES.items() for key in names]


def described() -> Iterator[tuple[str, str]]:
    """Each key as the page names it, with its default."""
    titles = {"": "Keys above all tables", **{table: f"[{table}]" for table in config._SUBTABLES}}
    for table, title in titles.items():
        for term in terms(section(CONFIGURATION, title)):
            key, default = term.split(" = ")
            yield (f"{table}.{key}" if table else key), default


def test_each_key_is_there_and_no_other() -> None:
    assert [key for key, _ in described()] == keys()


@pytest.mark.parametrize(("key", "default"), described())
def test_the_default_is_what_the_page_says(key: str, default: str) -> None:
    table, _, name = key.rpartition(".")
    text = f"[{table}]\n{name} = {default}\n" if table else f"{name} = {default}\n"
    assert config.parse(text, "page") == Settings()


@pytest.mark.parametrize(("key", "default"), described())
def test_the_example_has_it_commented_out_at_its_default(key: str, default: str) -> None:
    table, _, name = key.rpartition(".")
    part = EXAMPLE.split(f"\n[{table}]\n")[1] if table else EXAMPLE
    assert part.split("\n[")[0].splitlines().count(f"#{name} = {default}") == 1


def test_the_example_names_each_key_with_its_default() -> None:
    assert config.parse(EXAMPLE, "example") == Settings()
    in_force = re.sub(r"^#(?=\w+ = )", "", EXAMPLE, flags=re.MULTILINE)
    assert config.parse(in_force, "example") == Settings()
    assert sorted(re.findall(r"^(\w+) = ", in_force, re.MULTILINE)) == sorted(key.split(".")[-1] for key in keys())


@pytest.mark.parametrize("block", re.findall(r"::\n\n((?:    .*\n|\n)+)", section(CONFIGURATION, "EXAMPLE")))
def test_the_examples_of_the_page_are_accepted(block: str) -> None:
    try:
        settings = config.parse(inspect.cleandoc(block), "page")
    except ConfigError as error:
        pytest.fail(str(error))
    assert settings != Settings()


# ---- the pages themselves


def test_tables_are_printed_as_they_are_typed(tmp_path: Path) -> None:
    if not shutil.which("rst2man", path="/usr/bin"):
        unable("rst2man is missing; `scripts/setup-packaging deb` installs it")
    made = tmp_path / "page"
    subprocess.run(
        ("/usr/bin/rst2man", str(ROOT / "docs/man/flanneld-masq.toml.5.rst"), str(made)),
        check=True,
        timeout=patience(60),
    )
    headings = re.findall(r"^\.S[HS] (.*)", made.read_text(), re.MULTILINE)
    assert {f"[{table}]" for table in config._SUBTABLES} <= set(headings)


@pytest.mark.parametrize("page", ["flanneld-masq.8", "flanneld-masq.toml.5"])
def test_a_page_is_made_without_a_complaint(page: str, tmp_path: Path) -> None:
    for program in ("rst2man", "groff"):
        if not shutil.which(program, path="/usr/bin"):
            unable(f"{program} is missing; `scripts/setup-packaging deb` installs it")
    made = tmp_path / page
    source = ROOT / f"docs/man/{page}.rst"
    done = subprocess.run(
        ("/usr/bin/rst2man", "--strict", str(source), str(made)), capture_output=True, text=True, timeout=patience(60)
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ("groff", "-man", "-Tutf8", "-ww", "-z", str(made)), capture_output=True, text=True, timeout=patience(60)
    )
    assert (done.returncode, done.stderr) == (0, "")
