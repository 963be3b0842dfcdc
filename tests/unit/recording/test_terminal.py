"""A recorded terminal is drawn as it was, line by line."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.recording.terminal import COLUMNS, Line, Step, drawn, lines

STEPS = (Step("# A comment"), Step("nft list tables", "table ip a\ntable ip6 <b>\n", 2.0), Step("true"))


def test_each_line_appears_when_it_did() -> None:
    comment, command, first, second, last = lines(STEPS)
    assert (comment, command.text, first.text) == (
        Line("# A comment", "comment", 0.0),
        "$ nft list tables",
        "table ip a",
    )
    assert command.at > comment.at
    assert first.at == second.at > command.at + 2.0
    assert (last.text, last.kind) == ("$ true", "prompt")
    assert last.at > second.at


def test_a_long_line_is_wrapped_between_words() -> None:
    output = "word " * 60
    found = list(lines([Step("x", output)]))[1:]
    assert len(found) == 3
    assert max(len(line.text) for line in found) <= COLUMNS
    assert " ".join(" ".join(line.text for line in found).split()) == output.strip()


def test_the_drawing_holds_all_texts() -> None:
    root = ElementTree.fromstring(drawn(STEPS, "What & why"))
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert texts == ["# A comment", "$ nft list tables", "table ip a", "table ip6 <b>", "$ true"]
    assert [element.text for element in root.iter() if element.tag.endswith("}title")] == ["What & why"]


def test_the_drawing_needs_nothing_from_elsewhere() -> None:
    assert re.findall(r"(?:href|src|url)\W", drawn(STEPS, "")) == []
