"""The message catalog: each kind of entry in each language, with fields that the entry has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flanneld_masq.service.journal import MESSAGE_IDS, PREFIX

DIRECTORY = Path(__file__).parents[2] / "systemd"
ENGLISH, CHINESE = "flanneld-masq.catalog", "flanneld-masq.zh_CN.catalog"
KINDS = {message_id: kind for kind, message_id in MESSAGE_IDS.items()}
_CHINESE_TEXT = re.compile(r"[\u4e00-\u9fff]")

# The fields that each entry of a kind has, and that are never so long that journalctl would not put them in.
FIELDS = {
    "backend-chosen": {"FAMILY", "GROUP", "BACKEND"},
    "mark-chosen": {"FAMILY", "GROUP", "REASON"},
    "rules-applied": {"FAMILY", "BACKEND", "REASON", "DURATION_US"},
    "verified": {"FAMILY"},
    "drift-repaired": {"FAMILY", "BACKEND", "REASON", "DURATION_US"},
    "flows-healed": {"FAMILY", "DURATION_US"},
    "flannel-decides": {"FAMILY"},
    "contended": {"FAMILY"},
    "recovered": {"FAMILY"},
    "lock-held": {"FAMILY"},
}


@dataclass(frozen=True)
class Entry:
    headers: dict[str, str]
    text: str


def entries(name: str) -> dict[str, Entry]:
    """As https://systemd.io/CATALOG has it: a line with the id, headers, an empty line, text."""
    text = "".join(line for line in (DIRECTORY / name).read_text("utf-8").splitlines(True) if line[0] != "#")
    found: dict[str, Entry] = {}
    for message_id, body in re.findall(r"^-- ([0-9a-f]{32})\n(.*?)(?=^-- |\Z)", text, re.DOTALL | re.MULTILINE):
        head, _, rest = body.partition("\n\n")
        assert message_id not in found, "twice"
        found[message_id] = Entry(dict(line.split(": ", 1) for line in head.splitlines()), rest.strip())
    return found


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
class TestEach:
    def test_has_every_kind_and_no_other(self, name: str) -> None:
        assert [KINDS.get(found) for found in entries(name)] == list(MESSAGE_IDS)

    def test_says_what_it_is_what_it_means_and_where_to_read_on(self, name: str) -> None:
        for found in entries(name).values():
            assert list(found.headers) == ["Subject", "Defined-By", "Support", "Documentation"]
            assert found.headers["Defined-By"] == "flanneld-masq"
            assert len(found.text.split("\n\n")) >= 2, "what it means, then what to do"

    def test_puts_in_what_the_entry_has(self, name: str) -> None:
        for message_id, found in entries(name).items():
            used = set(re.findall(r"@(.*?)@", found.headers["Subject"] + found.text))
            assert used <= {PREFIX + field for field in FIELDS.get(KINDS[message_id], ())}

    def test_names_the_id_of_the_entry_itself(self, name: str) -> None:
        for message_id, found in entries(name).items():
            assert set(re.findall(r"MESSAGE_ID=(\w+)", found.text)) <= {message_id}

    def test_fits_a_terminal(self, name: str) -> None:
        for found in entries(name).values():
            for line in found.text.splitlines():
                assert len(line) + len(_CHINESE_TEXT.findall(line)) <= 92, line


def test_both_languages_put_in_the_same() -> None:
    english, chinese = entries(ENGLISH), entries(CHINESE)
    for message_id, found in english.items():
        other = chinese[message_id]
        assert set(re.findall("@.*?@", str(found))) == set(re.findall("@.*?@", str(other)))
        assert {**found.headers, "Subject": ""} == {**other.headers, "Subject": ""}


def test_the_languages_are_what_they_are_said_to_be() -> None:
    assert not any(_CHINESE_TEXT.search(str(found)) for found in entries(ENGLISH).values())
    for found in entries(CHINESE).values():
        assert _CHINESE_TEXT.search(found.headers["Subject"])
        assert all(_CHINESE_TEXT.search(paragraph) for paragraph in found.text.split("\n\n"))
