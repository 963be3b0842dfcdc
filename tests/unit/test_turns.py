"""The tests of booted systems take turns on the releases."""

from __future__ import annotations

from ..system.turns import left_out_in_turns


def on(release: str, name: str, path: str = "a.py") -> tuple[str, str]:
    return f"{path}::{name}[{release}-nft]", release


def test_each_test_runs_once_and_each_file_on_every_release() -> None:
    tests = [on(release, name) for release in ("old", "new") for name in ("one", "two", "three")]
    assert left_out_in_turns(tests) == {"a.py::one[new-nft]", "a.py::two[old-nft]", "a.py::three[new-nft]"}


def test_turns_begin_again_in_each_file() -> None:
    tests = [on(release, "one", path) for path in ("a.py", "b.py") for release in ("old", "new")]
    assert left_out_in_turns(tests) == {"a.py::one[new-nft]", "b.py::one[new-nft]"}


def test_a_test_of_one_release_or_of_none_always_runs() -> None:
    assert left_out_in_turns([on("old", "one"), on("new", "two"), ("a.py::three[nft]", "")]) == frozenset()
