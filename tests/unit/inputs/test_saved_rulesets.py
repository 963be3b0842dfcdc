"""A table of the daemon in the files that the nftables service loads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flanneld_masq.inputs.saved_rulesets import SavedTable, find, parse


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flush ruleset\ntable ip flanneld-masq {\n}\n", 2),
        ("table ip6 flanneld-masq{}", 1),
        ("\ttable flanneld-masq {\n}", 1),
        ("add table ip t; add table ip flanneld-masq", 1),
        ("add chain ip flanneld-masq forward", 1),
        ("delete table ip flanneld-masq\ntable ip flanneld-masq {}", 1),
        ("# table ip flanneld-masq {", 0),
        ("table ip flanneld-masq-trial {}", 0),
        ('ip saddr 10.0.0.1 accept comment "flanneld-masq:0123456789ab"', 0),
        ("table inet filter {\n\tchain flanneld-masq {\n\t}\n}", 0),
        ("", 0),
    ],
)
def test_the_first_line_that_names_the_table(text: str, line: int) -> None:
    assert parse(text) == (line, ())


def test_includes_are_listed() -> None:
    text = 'include "/etc/nftables/main.nft"\n # include "commented"\n  include "./local/*.nft"  # ours\n'
    assert parse(text) == (0, ("/etc/nftables/main.nft", "./local/*.nft"))


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_files_and_their_includes_are_searched_once(tmp_path: Path) -> None:
    write(tmp_path, "etc/nftables.conf", 'include "/etc/nftables.d/*.nft"\ninclude "other.nft"\n')
    write(tmp_path, "etc/sysconfig/nftables.conf", 'include "/etc/nftables.d/b.nft"\ninclude "/etc/gone.nft"\n')
    write(tmp_path, "etc/nftables.d/a.nft", 'include "/etc/nftables.conf"\n')
    write(tmp_path, "etc/nftables.d/b.nft", "\ntable ip flanneld-masq {\n}\n")
    write(tmp_path, "etc/other.nft", "table ip6 flanneld-masq {\n}\n")
    assert find(tmp_path) == (SavedTable("/etc/nftables.d/b.nft", 2), SavedTable("/etc/other.nft", 1))


def test_what_cannot_be_read_names_no_table(tmp_path: Path) -> None:
    assert find(tmp_path) == ()
    write(tmp_path, "etc/sysconfig/nftables.conf", "#" * (1 << 20) + "\ntable ip flanneld-masq {\n}\n")
    os.mkfifo(tmp_path / "etc/nftables.conf")
    assert find(tmp_path) == ()


def test_a_flood_of_includes_is_bounded(tmp_path: Path) -> None:
    for number in range(200):
        write(tmp_path, f"etc/many/{number:03}.nft", "table ip flanneld-masq {\n}\n")
    write(tmp_path, "etc/nftables.conf", 'include "/etc/many/*"\n')
    assert 0 < len(find(tmp_path)) < 64
