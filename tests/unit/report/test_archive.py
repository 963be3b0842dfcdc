"""Files are new, private and whole, or not there."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from flanneld_masq.errors import MasqError
from flanneld_masq.report.archive import Archive, new_file


def test_an_archive_holds_its_members_in_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "r.tar.gz"
    with new_file(path) as file:
        archive = Archive(file, "report")
        archive.add("a/b.txt", "text \udcff\n")
        archive.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as read:
        (member,) = read.getmembers()
        assert (member.name, member.mode, member.uid) == ("report/a/b.txt", 0o600, 0)
        content = read.extractfile(member)
        assert content is not None
        assert content.read() == b"text \\udcff\n"


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with new_file(tmp_path / "x"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_a_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(MasqError, match="exists already and is not replaced"), new_file(path):
        pass
    assert path.read_text() == "mine"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(MasqError), new_file(tmp_path / "link"):
        pass
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    expected = MasqError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_file(tmp_path / "x"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MasqError, match="cannot be written: No such file or directory"), new_file(tmp_path / "a/b"):
        pass
