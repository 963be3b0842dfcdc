"""The console examples of README.md, CONTRIBUTING.md and docs/: which there are, and how each is proved.

A block is a console example if its first line begins with `$ ` or with a program of `PROGRAMS`, or if its fence says
so. With `$ `, the lines below a command are what it prints. Other blocks show logs, files and drawings.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from flanneld_masq.model import SLOTS

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))),
)
MANUALS = tuple(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/man/*.rst")))


class Proof(Enum):
    """How the tests prove that an example is right."""

    COMMAND = "tests/unit/test_examples.py has argparse accept it, tests/system/test_examples.py runs it"
    NODE = "tests/system/test_examples.py runs it in a booted machine"
    TARGET = "tests/unit/test_examples.py looks up the target"
    PLUGINS = "tests/unit/test_docs.py runs it"
    MONITORING = "make monitoring runs it"
    ILLUSTRATION = "an illustration"


PROGRAMS = {
    "flanneld-masq": Proof.COMMAND,
    ".venv/bin/flanneld-masq": Proof.COMMAND,
    "make": Proof.TARGET,
    "python3": Proof.PLUGINS,
    "promtool": Proof.MONITORING,
    **dict.fromkeys(("busctl", "grep", "iptables", "journalctl", "nft", "systemctl", "systemd-tmpfiles"), Proof.NODE),
    # They need a network, a cluster or a key. tests/system/test_repositories.py does the same with apt, dnf and gpg.
    **dict.fromkeys(("apt", "cd", "curl", "dnf", "git", "gpg", "kubectl", "rsync"), Proof.ILLUSTRATION),
    **dict.fromkeys(("scripts/release", "sha256sum"), Proof.ILLUSTRATION),  # tests/unit/scripts/test_release.py
}
_CONSOLE = ("console", "sh", "bash", "shell")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}(?! *[-*\d]).*\n(?:(?:\n+(?= {4}))? {4}.*\n)*", re.MULTILINE)
_SPAN = re.compile(r"`((?:sudo )?flanneld-masq [^`\n]+)`")
_COMMENT = re.compile(r"(?:^|\s+)#\s.*$")


@dataclass(frozen=True, **SLOTS)
class Example:
    """One command of a document, without prompt, `sudo` and comment. `output` is what the document says it prints."""

    document: str
    command: str
    output: str = ""

    @property
    def program(self) -> str:
        return (self.command.split() or [""])[0]

    @property
    def arguments(self) -> list[str]:
        """The words behind the program, up to the next program."""
        return shlex.split(re.split(r" (?:&&|\||;) ", self.command)[0])[1:]

    def parts(self) -> Iterator[Example]:
        """Yield the command itself, and what follows it behind `&&`."""
        yield from (replace(self, command=_plain(part)) for part in self.command.split(" && "))


def examples(document: str) -> list[Example]:
    """Return the console examples of a document in their order."""
    return list(found_in(document, (ROOT / document).read_text(encoding="utf-8")))


def found_in(document: str, text: str) -> Iterator[Example]:
    for block in _blocks(text):
        yield from _examples_of(document, block)


def spans(document: str) -> list[Example]:
    """Return the commands of flanneld-masq in the sentences of a Markdown document."""
    text = _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    return [Example(document, _plain(span)) for span in _SPAN.findall(text)]


def _blocks(text: str) -> Iterator[str]:
    """Yield each block that is a console example."""
    for fence in _FENCE.finditer(text):
        if fence["language"] in _CONSOLE:
            yield textwrap.dedent(fence["body"])
    for block in _INDENTED.findall(_FENCE.sub("", text)):
        first = textwrap.dedent(block).lstrip("\n")
        if first.startswith("$ ") or _plain(first.splitlines()[0]).split(" ")[0] in PROGRAMS:
            yield first


def _examples_of(document: str, block: str) -> Iterator[Example]:
    prompted = block.startswith("$ ")
    lines = re.sub(r"(?:\\\n\s*|(?<=\|)\n\s*)", " ", block).splitlines()
    command, output = "", ""
    for line in filter(str.strip, lines):
        if prompted and not line.startswith("$ "):
            output += f"{line}\n"
            continue
        if command:
            yield Example(document, command, output)
        command, output = _plain(line), ""
    yield Example(document, command, output)


def _plain(line: str) -> str:
    return _COMMENT.sub("", line).strip().removeprefix("$ ").removeprefix("sudo ").strip()
