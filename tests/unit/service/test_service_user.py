"""Files that the user of the service may not read, as root finds out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.service.service_user import Unreadable, unreadable

from ...common import is_root, unable


class Run(ProcessRunner):
    """systemd says that the service has this user; None for a host without the service."""

    def __init__(self, user: str | None) -> None:
        super().__init__()
        self.user = user

    def __call__(self, argv: tuple[str, ...], **rest: object) -> Completed:
        if argv[0] != "systemctl":
            return super().__call__(argv)
        if self.user is None:
            raise CommandError(argv, "failed with exit status 1", status=1)
        return Completed(argv, f"{self.user}\n", "")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user may enter; that of pytest is for its own user alone."""
    if not is_root() or not shutil.which("setpriv"):
        unable("only root finds out what another user may read, and with setpriv")
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_a_file_that_everybody_may_read(directory: Path) -> None:
    file = directory / "subnet.env"
    file.touch(0o644)
    assert not list(unreadable((str(file), str(directory / "none")), Run("nobody")))


def test_a_file_for_root_alone(directory: Path) -> None:
    file = directory / "subnet.env"
    file.touch(0o600)
    (found,) = unreadable((str(file),), Run("nobody"))
    assert found == Unreadable("nobody", str(file), str(file), "r", "g")
    assert str(found) == (
        f"{file}: the user nobody of flanneld-masq.service may not read {file}; "
        f"`setfacl -m u:nobody:r {file}` or `chmod g+r {file}`"
    )


def test_the_remedy_is_one(directory: Path) -> None:
    inner = directory / "a b"
    inner.mkdir(0o700)
    file = inner / "subnet.env"
    file.touch(0o600)
    (found,) = unreadable((str(file),), Run("nobody"))
    assert (found.path, found.remedy.split(" or ")[1]) == (str(inner), f"`chmod g+x '{inner}'`")
    inner.chmod(0o710)
    os.chown(file, 0, 1)
    (found,) = unreadable((str(file),), Run("nobody"))
    assert (found.path, found.remedy.split(" or ")[1]) == (str(file), f"`chmod o+r '{file}'`")
    file.chmod(0o604)
    assert not list(unreadable((str(file),), Run("nobody")))


def test_the_group_root_is_that_of_the_service(directory: Path) -> None:
    file = directory / "subnet.env"
    file.touch(0o640)
    os.chown(file, 0, 0)
    assert not list(unreadable((str(file),), Run("nobody")))


@pytest.mark.parametrize("user", [None, "", "root", "no-such-user"])
def test_no_service_or_no_user_of_its_own(directory: Path, user: str | None) -> None:
    file = directory / "subnet.env"
    file.touch(0o600)
    assert not list(unreadable((str(file),), Run(user)))
