"""Walks the way to a file as the kernel does, one entry of a directory after the other, through symbolic links."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.model import SLOTS

MAX_LINKS = 40  # the kernel follows no more on the way to one file


@dataclass(frozen=True, **SLOTS)
class Step:
    """One step: an entry of a directory. The path of the directory has no symbolic links in it."""

    directory: str
    entry: str
    is_link: bool


def steps(path: str) -> Iterator[Step]:
    """Yield the steps to an absolute path. The last is the file, or the first one that is missing or is refused."""
    directory, parts, links = "/", _parts(path), 0
    while parts:
        part = parts.pop()
        if part == "..":
            directory = directory.rpartition("/")[0] or "/"
            continue
        entry = os.path.join(directory, part)
        try:
            target = str(Path(entry).readlink())
        except NotADirectoryError:
            return  # the step before was a file
        except OSError as error:
            yield Step(directory, entry, is_link=False)
            if error.errno != errno.EINVAL:
                return
            directory = entry  # it exists and is no link
            continue
        yield Step(directory, entry, is_link=True)
        links += 1
        if links > MAX_LINKS:
            return
        parts += _parts(target)
        directory = "/" if target.startswith("/") else directory


def _parts(path: str) -> list[str]:
    """Return the parts of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
