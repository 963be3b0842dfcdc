"""The shells offer what the program takes. The tests run bash, and read the files of zsh and fish."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.cli import main

from ..common import patience

COMPLETIONS = Path(__file__).parents[2] / "completions"
ZSH = (COMPLETIONS / "_flanneld-masq").read_text()
FISH = (COMPLETIONS / "flanneld-masq.fish").read_text()
BACKENDS = ["auto", "nft", "iptables-nft", "iptables-legacy"]


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    top = main.parser()
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


COMMANDS = dict(parsers())


def bash(*words: str) -> list[str]:
    """Return what bash offers for the last of the words, which may be empty."""
    script = (
        f"source {COMPLETIONS}/flanneld-masq; COMP_WORDS=(flanneld-masq {shlex.join(words)}); "
        f'COMP_CWORD={len(words)}; _flanneld_masq; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(("bash", "--norc", "-c", script), capture_output=True, text=True, timeout=patience(30))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_offers_the_commands() -> None:
    assert sorted(bash("")) == sorted(COMMANDS)
    assert bash("ren") == ["render"]
    assert bash("--config", "file", "exp") == ["explain"]


def test_bash_offers_the_options_before_a_command() -> None:
    assert sorted(bash("--")) == sorted(options(main.parser()))


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_options_of_a_command(command: str) -> None:
    assert sorted(bash(command, "--")) == sorted(options(COMMANDS[command]))
    assert sorted(bash("--backend", "nft", command, "--")) == sorted(options(COMMANDS[command]))


def test_bash_offers_the_backends() -> None:
    assert bash("plan", "--backend", "") == BACKENDS
    assert bash("--backend", "=", "ip") == BACKENDS[2:]
    assert bash("--backend", "=") == BACKENDS


def test_bash_offers_files(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").touch()
    assert bash("--subnet-file", f"{tmp_path}/sub") == [f"{tmp_path}/subnet.env"]
    assert bash("report", f"{tmp_path}/sub") == [f"{tmp_path}/subnet.env"]
    assert bash("explain", "--html", f"{tmp_path}/sub") == [f"{tmp_path}/subnet.env"]
    assert bash("plan", "--config", f"{tmp_path}/sub") == [f"{tmp_path}/subnet.env"]


def test_bash_offers_nothing_for_an_address() -> None:
    assert bash("explain", "--src", "") == []


def test_zsh_knows_the_commands_and_no_other() -> None:
    (block,) = re.findall(r"^commands=\(\n(.*?)^\)", ZSH, re.DOTALL | re.MULTILINE)
    assert sorted(re.findall(r"^ +'([a-z]+):", block, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_knows_the_options_of_a_command(command: str) -> None:
    (common,) = re.findall(r"^common=\(\n(.*?)^\)", ZSH, re.DOTALL | re.MULTILINE)
    own = re.findall(rf"^ +{command}\)\n(.*?);;", ZSH, re.DOTALL | re.MULTILINE)
    (others,) = re.findall(r"^ +\*\)\n(.*?);;", ZSH, re.DOTALL | re.MULTILINE)
    said = re.findall(r"--[a-z][a-z-]*", common + (own[0] if own else others))
    assert sorted(set(said)) == sorted(options(COMMANDS[command]))


def test_fish_knows_the_commands_and_no_other() -> None:
    assert sorted(re.findall(r" -a ([a-z]+) -d ", FISH)) == sorted(COMMANDS)
    (known,) = re.findall(r"^set -l commands (.*)$", FISH, re.MULTILINE)
    assert sorted(known.split()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_fish_knows_the_options_of_a_command(command: str) -> None:
    (data,) = re.findall(r"^set -l data (.*)$", FISH, re.MULTILINE)
    said = []
    for condition, name in re.findall(r"^complete -c flanneld-masq (.*?)(?:-s h )?-l ([a-z-]+)", FISH, re.MULTILINE):
        seen = re.findall(r"__fish_seen_subcommand_from ([^'\"]+)", condition.replace("$data", data))
        if "not " not in condition and (not seen or command in seen[0].split()):
            said.append(f"--{name}")
    assert sorted(said) == sorted(options(COMMANDS[command]))
