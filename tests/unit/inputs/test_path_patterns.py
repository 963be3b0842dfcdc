"""Paths, patterns and directories in `subnet_files`: which files they stand for, and which directories tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flanneld_masq.inputs.path_patterns import MAX_MATCHES, Expansion, expand, watched


def write(directory: Path, *names: str) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("")
    return [str(directory / name) for name in names]


class TestExpand:
    def test_plain_path_stands_for_itself(self, tmp_path: Path) -> None:
        (path,) = write(tmp_path, "subnet.env")
        assert expand(path) == Expansion((path,), plain=True)
        assert expand(f"{path}2") == Expansion(plain=True)

    def test_directory_stands_for_its_env_files(self, tmp_path: Path) -> None:
        files = write(tmp_path, "a.env", "b.env")
        write(tmp_path, "c.conf", ".subnet.env", "subnet.env.bak")
        assert expand(str(tmp_path)) == Expansion(tuple(files))

    def test_empty_directory_stands_for_no_file(self, tmp_path: Path) -> None:
        assert expand(str(tmp_path)) == Expansion()

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("*.env", ["a.env", "b.env", "c1.env"]),
            ("?.env", ["a.env", "b.env"]),
            ("[ac]*.env", ["a.env", "c1.env"]),
            (".*.env", [".a.env"]),
            ("x*", []),
        ],
    )
    def test_patterns_are_those_of_a_shell(self, tmp_path: Path, pattern: str, names: list[str]) -> None:
        write(tmp_path, "c1.env", "b.env", ".a.env", "a.env", "d.conf")
        assert expand(str(tmp_path / pattern)).files == tuple(str(tmp_path / name) for name in names)

    def test_pattern_in_the_middle(self, tmp_path: Path) -> None:
        files = [*write(tmp_path / "one", "subnet.env"), *write(tmp_path / "two", "subnet.env")]
        (tmp_path / "three").mkdir()
        (tmp_path / "file").write_text("")
        assert expand(str(tmp_path / "*/subnet.env")) == Expansion(tuple(files))
        assert expand(str(tmp_path / "t*/s*.env")) == Expansion((files[1],))

    def test_directories_are_no_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.env").mkdir()
        assert expand(str(tmp_path / "*")) == Expansion()

    def test_number_of_matches_is_bounded(self, tmp_path: Path) -> None:
        files = write(tmp_path, *(f"{number:03}.env" for number in range(MAX_MATCHES + 6)))
        expansion = expand(str(tmp_path))
        assert expansion.files == tuple(files[:MAX_MATCHES])
        assert f"more than {MAX_MATCHES} matches" in expansion.trouble
        assert not expansion.unread

    def test_missing_directory_is_an_empty_one(self, tmp_path: Path) -> None:
        assert expand(str(tmp_path / "no/*.env")) == Expansion()

    def test_unreadable_directory_is_no_empty_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        trouble = f"{tmp_path} cannot be listed: Permission denied"
        assert expand(str(tmp_path / "*.env")) == Expansion(trouble=trouble, unread=True)


class TestWatched:
    def test_plain_path(self, tmp_path: Path) -> None:
        path = str(tmp_path / "subnet.env")
        assert list(watched(path)) == [path]

    def test_directory(self, tmp_path: Path) -> None:
        assert list(watched(str(tmp_path))) == [str(tmp_path / "*.env")]

    def test_pattern_of_a_name(self, tmp_path: Path) -> None:
        assert list(watched(str(tmp_path / "no/*.env"))) == [str(tmp_path / "no/*.env")]

    def test_pattern_of_a_directory(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        found = list(watched(str(tmp_path / "*/flannel/subnet.env")))
        assert found == [
            str(tmp_path / "*"),
            *(str(tmp_path / name / "flannel/subnet.env") for name in ("one", "two")),
        ]
        assert str(tmp_path / "two/x/*.env") in list(watched(str(tmp_path / "*/x/*.env")))
