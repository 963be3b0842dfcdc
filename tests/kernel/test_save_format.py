"""The parser reads any text back from the output of the real iptables programs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from flanneld_masq_iptables import save_format

from flanneld_masq.errors import CommandError
from flanneld_masq.kernel.expressions import comment
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import BackendName, Family

from .conftest import Node

NASTY = ("C:\\dir\\", "\\", '"', "'", '\\"', '"\\', "", " ", "a\rb", "-j", "--comment", "it's", 'say "hi"', "#", "|41|")
WITH_NEWLINE = ("a\nb", "\n", "one\n-A POSTROUTING -j FLANNELD-MASQ", "x\\\nCOMMIT\n", '"\n"')
RANDOM = 60


def texts(seed: int, alphabet: str, longest: int) -> Iterator[str]:
    source = random.Random(seed)
    for _ in range(RANDOM):
        yield "".join(source.choice(alphabet) for _ in range(source.randint(1, longest)))


ALPHABET = "ab -\"\\'\t|:*#é\x7f\x01"


@pytest.mark.parametrize("flavour", ["legacy", "nft"])
def test_texts_are_read_back_as_they_were_put_in(node: Node, family: Family, flavour: str) -> None:
    tool = f"{family.data.tools}-{flavour}"
    wanted: list[tuple[str, str]] = []

    def add(option: str, text: str, *words: str) -> None:
        try:
            node.run((tool, "-w", "-t", "nat", "-A", "POSTROUTING", *words))
        except CommandError:  # a string of 128 bytes, for example
            return
        wanted.append((option, text))

    with node.entered():
        for text in (*NASTY, *WITH_NEWLINE, *texts(1, ALPHABET + "\n", 60)):
            add("--comment", text, "-m", "comment", "--comment", text, "-j", "RETURN")
        for text in (*NASTY, *texts(2, ALPHABET, 12)):
            add("--log-prefix", text, "-j", "LOG", "--log-prefix", text)
        for text in (*NASTY, *texts(3, ALPHABET, 30)):
            string = ("-m", "string", "--algo", "bm", "--string", text, "-m", "comment", "--comment", text)
            add("--comment", text, *string, "-j", "RETURN")
        assert len(wanted) > 200, "the tool refused nearly all"
        printed = node.run((f"{tool}-save", "-t", "nat"))
        lines = [line for line in save_format.table_lines(printed, "nat") if line.startswith("-A ")]
        assert len(lines) == len(wanted)
        for line, (option, text) in zip(lines, wanted):
            assert (option, text) in save_format.options(line) or not text, line
            if option == "--comment":
                assert save_format.comment(line) == text
            string_options = dict(save_format.options(line))
            if "--string" in string_options:
                assert string_options["--string"] == text
        if flavour == "nft":
            rules = Nfnetlink().rules(family, "nat", "POSTROUTING")
            comments = [text for option, text in wanted if option == "--comment"]
            assert [comment(rule) for rule in rules if "comment" in rule.raw or comment(rule)] or comments
            assert [comment(rule) for rule, (option, _) in zip(rules, wanted) if option == "--comment"] == comments


@pytest.mark.parametrize("backend_name", ["iptables-nft", "iptables-legacy"], indirect=True)
def test_rules_stand_beside_any_foreign_text(node: Node, backend_name: BackendName, family: Family) -> None:
    """A foreign comment that ends in a backslash once made the whole table unreadable."""
    tool = f"{family.data.tools}-{backend_name.partition('-')[2]}"
    node.configure("", backend=backend_name)
    for number, text in enumerate((*NASTY, *WITH_NEWLINE)):
        chain = ("POSTROUTING", 'a"b', '"x')[number % 3]
        if number in (1, 2):
            node.tool(tool, "-w", "-t", "nat", "-N", chain)
        node.tool(tool, "-w", "-t", "nat", "-A", chain, "-m", "comment", "--comment", text, "-j", "RETURN")
    node.tool(tool, "-w", "-t", "nat", "-A", "POSTROUTING", "-j", '"x')
    before = node.tool(tool, "-w", "-t", "nat", "-S")
    assert node.masq("apply").returncode == 0
    assert node.masq("plan").returncode == 0
    assert "-j FLANNELD-MASQ" in node.tool(tool, "-w", "-t", "nat", "-S")
    node.tool(tool, "-w", "-t", "nat", "-F", "FLANNELD-MASQ")
    assert node.masq("plan").returncode == 3
    assert node.masq("apply").returncode == 0
    assert node.masq("cleanup").returncode == 0
    assert node.tool(tool, "-w", "-t", "nat", "-S") == before
