"""The readers that all input files share."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_interface
from pathlib import Path

import pytest

from flanneld_masq.inputs import text
from flanneld_masq.inputs.text import parse_cidr, read_regular, read_start, shown, user_name, why


@pytest.mark.parametrize("cidr", ["10.244.1.1/24", "0.0.0.0/0", "fd00:10:244:1::1/64"])
def test_an_address_keeps_its_host_bits(cidr: str) -> None:
    assert parse_cidr(cidr) == ip_interface(cidr)


@pytest.mark.parametrize(
    ("cidr", "reason"),
    [
        ("10.244.1.1", "'10.244.1.1' has no prefix length"),
        ("x/8", "'x/8' does not begin with an IP address"),
        ("fe80::%e/64", "'fe80::%e/64' names a zone, which a network cannot have"),
        ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' has a prefix length that is not a number from 0 to 32"),
        ("fd00::/129", "'fd00::/129' has a prefix length that is not a number from 0 to 128"),
    ],
)
def test_a_refusal_quotes_the_text(cidr: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_cidr(cidr)
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


def test_the_start_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert (read_start(file, 3), read_start(file, 9)) == (b"123", b"1234")
    assert read_start(Path("/proc/self/comm"), 100).strip()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in ((tmp_path / "fifo", "is not a regular file"), (tmp_path, "is a directory, not a file")):
        for read in (read_regular, read_start):
            with pytest.raises(ValueError, match=reason):
                read(path, 4)
    with pytest.raises(ValueError, match="is not a regular file"):
        read_regular(Path("/dev/zero"), 4)
    with pytest.raises(OSError, match="No such device or address"), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        read_regular(tmp_path / "s", 4)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="is larger than 1 KiB"):
        read_regular(tmp_path / "huge", 1024)
    assert len(read_start(tmp_path / "huge", 10)) == 10


def test_the_reason_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read_regular(tmp_path / "file", 4)
    assert why(caught.value, tmp_path) == "No such file or directory"
    assert why(ValueError("is a directory, not a file"), tmp_path) == "is a directory, not a file"


class TestAFileThatThisUserMayNotRead:
    """The reason names the user, and the commands that let it in."""

    @pytest.fixture(autouse=True)
    def user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Judge by the mode for others alone: root may read everything."""

        def access(path: str, mode: int, *, effective_ids: bool) -> bool:
            foreign = Path(path) == tmp_path or tmp_path not in Path(path).parents
            return effective_ids and (foreign or Path(path).stat().st_mode & mode == mode)

        monkeypatch.setattr(os, "access", access)
        monkeypatch.setattr(text, "user_name", lambda _: "flanneld-masq")

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "file").write_text("")
        return tmp_path / "a" / "b" / "file"

    @staticmethod
    def reason(path: Path) -> str:
        return why(PermissionError(errno.EACCES, "Permission denied", str(path)), path)

    def test_the_file(self, file: Path) -> None:
        file.chmod(0o600)
        assert self.reason(file) == (
            f"Permission denied; the user flanneld-masq may not read {file}; "
            f"`setfacl -m u:flanneld-masq:r {file}` or `chmod o+r {file}` lets it"
        )

    def test_a_directory_above_it(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "a").chmod(0o700)
        assert f"may not enter {tmp_path}/a; `setfacl -m u:flanneld-masq:x {tmp_path}/a`" in self.reason(file)

    def test_a_directory_behind_a_link(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("a/b")
        file.parent.chmod(0o700)
        assert f"`chmod o+x {tmp_path}/a/b` lets it" in self.reason(tmp_path / "link" / "file")

    def test_a_directory_that_is_to_be_watched(self, file: Path) -> None:
        file.parent.chmod(0o711)
        assert f"may not list {file.parent}; " in self.reason(file.parent)
        assert f"`chmod o+rx {file.parent}`" in self.reason(file.parent)

    def test_another_cause_than_the_mode(self, file: Path) -> None:
        assert self.reason(file) == "Permission denied"

    def test_a_name_for_the_shell(self, file: Path) -> None:
        spaced = file.rename(file.with_name("a b"))
        spaced.chmod(0)
        assert f"`chmod o+r '{spaced}'`" in self.reason(spaced)


def test_a_user_without_a_name_is_a_number() -> None:
    assert (user_name(0), user_name(4_000_000_000)) == ("root", "4000000000")
