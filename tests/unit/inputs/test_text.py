"""The readers that all input files share."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path

import pytest

from flanneld_masq.inputs.text import parse_cidr, read_regular, shown, why


@pytest.mark.parametrize("text", ["10.244.1.1/24", "0.0.0.0/0", "fd00:10:244:1::1/64"])
def test_an_address_keeps_its_host_bits(text: str) -> None:
    assert parse_cidr(text) == ip_interface(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.244.1.1", "'10.244.1.1' has no prefix length"),
        ("x/8", "'x/8' does not begin with an IP address"),
        ("fe80::%e/64", "'fe80::%e/64' names a zone, which a network cannot have"),
        ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' has a prefix length that is not a number from 0 to 32"),
        ("fd00::/129", "'fd00::/129' has a prefix length that is not a number from 0 to 128"),
    ],
)
def test_a_refusal_quotes_the_text(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_cidr(text)
    assert str(caught.value) == reason


def test_long_text_is_cut() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert shown("x" * 61) == repr("x" * 57 + "...")


def test_the_status_is_that_of_the_file_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    data, status = read_regular(file, 4)
    assert (data, status.st_ino) == (b"1234", file.stat().st_ino)
    with pytest.raises(ValueError, match="is larger than 0 KiB"):
        read_regular(file, 3)


def test_the_reason_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_regular(tmp_path / "file", 4)
    assert why(caught.value) == "No such file or directory"
    assert why(ValueError("is a directory, not a file")) == "is a directory, not a file"
