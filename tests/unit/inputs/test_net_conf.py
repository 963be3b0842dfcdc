"""flannel's net-conf.json says whether flannel runs in its nftables mode."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import net_conf

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"Network": "10.244.0.0/16", "EnableNFTables": true}', True),
        ('{"Network": "10.244.0.0/16", "EnableNFTables": false}', False),
        ('{"Network": "10.244.0.0/16"}', False),
        ('{"enablenftables": true}', True),
        ('{"ENABLENFTABLES": true}', True),
        ('{"EnableNFTable\u017f": true}', True),
        ('{"EnableNFTables": true, "enableNftables": false}', False),
        ('{"enableNftables": false, "EnableNFTables": true}', True),
        ('{"EnableNFTables": true, "EnableNFTables": null}', True),
        ('{"EnableNFTables": null}', False),
        ('{"Backend": {"EnableNFTables": true}}', False),
        ('{"EnableNFTables ": true}', False),
        ('{"EnableNFTables": true, "x": %s}' % ("9" * 5000), True),
        ("null", False),
    ],
    ids=range(14),
)
def test_what_it_says_is_what_go_reads(text: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_text(text)
    assert net_conf.flannel_uses_nftables(tmp_path / "net-conf.json") is expected


@pytest.mark.parametrize("key", ["EnableNFTables", "enablenftables", "EnableIPv4", "enableipv6"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('"true"', "the string 'true'"),
        ("1", "a number"),
        ("[]", "a list"),
        ("{}", "an object"),
        ('""', "the string ''"),
    ],
)
def test_a_boolean_of_another_type_is_refused_as_flannel_does(key: str, value: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"expected true or false, found {kind}; flannel refuses it too") as caught:
        net_conf.parse(f'{{"EnableNFTables": true, "{key}": {value}}}'.encode(), "/x")
    assert caught.value.key.casefold() == key.casefold()


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "a list"), ("5", "a number"), ('"x"', "the string"), ("true", "a b")]
)
def test_what_is_no_object_is_refused(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"/x: expected an object, found {kind}"):
        net_conf.parse(text.encode(), "/x")


def test_a_missing_one_says_nothing(tmp_path: Path) -> None:
    assert net_conf.flannel_uses_nftables(tmp_path / "net-conf.json") is False


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"x": NaN}', b"\xef\xbb\xbf{}", b"{} {}", b'{"MacPrefix": 0E-2A}'],
    ids=["empty", "cut", "binary", "deep", "nan", "bom", "two", "bare word"],
)
def test_a_bad_one_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net-conf.json").write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read as JSON") as caught:
        net_conf.flannel_uses_nftables(tmp_path / "net-conf.json")
    assert caught.value.source == str(tmp_path / "net-conf.json")


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in ((tmp_path / "fifo", "is not a regular file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=f"{path}: cannot be read: {reason}"):
            net_conf.flannel_uses_nftables(path)


def test_a_huge_one_is_named(tmp_path: Path) -> None:
    with (tmp_path / "net-conf.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="cannot be read: is larger than 1024 KiB"):
        net_conf.flannel_uses_nftables(tmp_path / "net-conf.json")


@given(st.dictionaries(st.text(), JSON), st.sampled_from([True, False]))
def test_unknown_keys_do_not_matter(content: dict[str, Any], value: bool) -> None:
    known = {"enableipv4", "enableipv6", "enablenftables"}
    others = {key: inner for key, inner in content.items() if key.casefold() not in known}
    try:
        text = json.dumps({**others, "EnableNFTables": value}, allow_nan=False)
    except ValueError:
        return
    assert net_conf.parse(text.encode(), "/x") is value
