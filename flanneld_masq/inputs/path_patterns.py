"""Expands the entries of `subnet_files`: a path, a pattern with *, ? or [...] in any of its parts, or a directory.

A directory stands for the files *.env in it. Hidden files match only a pattern that names the dot, because flannel
writes `.subnet.env` before it renames that to `subnet.env`.
"""

from __future__ import annotations

import errno
import fnmatch
import heapq
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.model import SLOTS

MAX_MATCHES = 64  # of each part of a pattern
IN_DIRECTORY = "*.env"
_MAGIC = re.compile(r"[*?[]")
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})


@dataclass(frozen=True, **SLOTS)
class Expansion:
    """The files that an entry stands for now, in the order of their names.

    `plain` is True for a path of one file, which need not exist. `trouble` says why files are missing; empty if none
    is. `unread` is True if one of the directories could not be listed.
    """

    files: tuple[str, ...] = ()
    plain: bool = False
    trouble: str = ""
    unread: bool = False


def expand(entry: str) -> Expansion:
    """Return the files of an entry. A directory that cannot be listed is a trouble, not an empty one."""
    if is_pattern(entry):
        return _expand(entry)
    if _is_directory(entry):
        return _expand(os.path.join(entry, IN_DIRECTORY))
    return Expansion((entry,) if os.path.lexists(entry) else (), plain=True)


def is_pattern(entry: str) -> bool:
    return _MAGIC.search(entry) is not None


def matches(name: str, part: str) -> bool:
    """Return True if a name in a directory matches one part of a pattern."""
    return fnmatch.fnmatchcase(name, part) and (name[0] != "." or part[0] == ".")


def watched(entry: str) -> Iterator[str]:
    """Yield paths whose directories tell, by their changes, that an entry may stand for other files or content.

    The directory in which a part of a pattern is looked up is that of `directory/part`.
    """
    if not is_pattern(entry):
        yield os.path.join(entry, IN_DIRECTORY) if _is_directory(entry) else entry
        return
    bases, parts = ["/"], Path(entry).parts[1:]
    for number, part in enumerate(parts, start=1):
        if is_pattern(part) or number == len(parts):
            yield from (os.path.join(base, part) for base in bases)
        if not is_pattern(part):
            bases = [os.path.join(base, part) for base in bases]
            continue
        rest = parts[number:]
        found = [match for base in bases for match in _matches(base, part).files]
        bases = [match for match in found[:MAX_MATCHES] if _is_directory(match)]
        if rest and not is_pattern(os.path.join(*rest)):
            yield from (os.path.join(base, *rest) for base in bases)
            return


def _expand(pattern: str) -> Expansion:
    paths: tuple[str, ...] = ("/",)
    troubles: list[str] = []
    unread = False
    for part in Path(pattern).parts[1:]:
        if not is_pattern(part):
            paths = tuple(os.path.join(path, part) for path in paths)
            continue
        found = [_matches(path, part) for path in paths]
        troubles += [one.trouble for one in found if one.trouble]
        unread = unread or any(one.unread for one in found)
        paths = tuple(path for one in found for path in one.files)
        if len(paths) > MAX_MATCHES:
            troubles.append(f"{pattern} has more than {MAX_MATCHES} matches; only the first ones by name are read")
            paths = paths[:MAX_MATCHES]
    files = tuple(path for path in paths if os.path.lexists(path) and not _is_directory(path))
    return Expansion(files, trouble="; ".join(dict.fromkeys(troubles)), unread=unread)


def _matches(directory: str, part: str) -> Expansion:
    """Return the names in a directory that match one part of a pattern, at most one more than MAX_MATCHES."""
    try:
        with os.scandir(directory) as entries:
            names = (entry.name for entry in entries if matches(entry.name, part))
            first = heapq.nsmallest(MAX_MATCHES + 1, names)
    except OSError as error:
        if error.errno in _ABSENT:
            return Expansion()
        return Expansion(trouble=f"{directory} cannot be listed: {error.strerror}", unread=True)
    return Expansion(tuple(os.path.join(directory, name) for name in first))


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises where the path may not be read
