"""flannel's net-conf.json says whether flannel runs in its nftables mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import net_conf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Network": "10.244.0.0/16", "EnableNFTables": true}', True),
        ('{"Network": "10.244.0.0/16", "EnableNFTables": false}', False),
        ('{"Network": "10.244.0.0/16"}', False),
        ('{"EnableNFTables": "true"}', False),
        ('{"EnableNFTables": 1}', False),
        ("[]", False),
        ("null", False),
    ],
)
def test_what_it_says(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_text(text)
    assert net_conf.flannel_uses_nftables(tmp_path / "net-conf.json") is expected


def test_a_missing_one_says_nothing(tmp_path: Path) -> None:
    assert net_conf.flannel_uses_nftables(tmp_path / "net-conf.json") is False


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_a_bad_one_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read as JSON") as caught:
        net_conf.flannel_uses_nftables(tmp_path / "net-conf.json")
    assert caught.value.source == str(tmp_path / "net-conf.json")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        net_conf.flannel_uses_nftables(tmp_path)
