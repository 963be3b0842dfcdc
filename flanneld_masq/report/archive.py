"""Writes files that only their owner may read, and that were not there before: an archive, or one page."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flanneld_masq.errors import MasqError
from flanneld_masq.inputs.text import shown

_MODE = 0o600


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Make a file, which is removed again if the body fails. Raises MasqError if it exists or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    except FileExistsError:
        raise MasqError(f"{shown(str(path))} exists already and is not replaced; name another file") from None
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)
            yield file
    except BaseException as error:
        path.unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> MasqError:
    return MasqError(f"{shown(str(path))} cannot be written: {error.strerror or error}")


class Archive:
    """A tar file with gzip whose members are in one directory. `file` is where it is written."""

    def __init__(self, file: IO[bytes], directory: str) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w:gz", compresslevel=6)  # noqa: SIM115  `close` closes it
        self._directory = directory
        self._time = time.time_ns() // 10**9

    def add(self, name: str, text: str) -> None:
        """Add a member. Raises OSError."""
        content = text.encode("utf-8", "backslashreplace")
        member = tarfile.TarInfo(f"{self._directory}/{name}")
        member.size, member.mode, member.mtime = len(content), _MODE, self._time
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()
