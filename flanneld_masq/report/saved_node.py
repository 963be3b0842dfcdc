"""Reads a node that was saved: an archive of `report`, or its snapshot.json alone.

It comes from another machine, so sizes are bounded, and only the members that are needed are read. Nothing is unpacked.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flanneld_masq.errors import MasqError, SnapshotError
from flanneld_masq.inputs.text import shown
from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.snapshot import Snapshot, from_json
from flanneld_masq.printable import one_line

MAX_SNAPSHOT = 256 * 1024 * 1024  # bytes; that of 50,000 rules has 40 MiB
MAX_TEXT = 1024 * 1024  # of a configuration or subnet file
MAX_BYTES = 1024 * 1024 * 1024  # of all members
MAX_MEMBERS = 1000
_GZIP = b"\x1f\x8b"
SNAPSHOT, FINDINGS = "snapshot.json", "doctor.json"
_CONFIG, _DROP_INS, _SUBNETS = "config.toml", "config.d/", "subnet-files/"


@dataclass(frozen=True, **SLOTS)
class SavedNode:
    """A snapshot, and the texts of the node's files by their names in the archive: the configuration with its drop-ins
    behind it, and the subnet files. `findings` is what `doctor --json` printed there, empty if it is not known."""

    snapshot: Snapshot
    configuration: tuple[tuple[str, str], ...] = ()
    subnet_files: tuple[tuple[str, str], ...] = ()
    findings: str = ""


def read(path: Path) -> SavedNode:
    """Return what a file holds. Raises MasqError if it cannot be read, or is neither an archive nor a snapshot."""
    try:
        with path.open("rb") as file:
            return parse(file)
    except OSError as error:
        raise MasqError(f"{one_line(str(path))} cannot be read: {error.strerror or error}") from error
    except SnapshotError as error:
        raise MasqError(f"{one_line(str(path))}: {error}") from error


def parse(file: IO[bytes]) -> SavedNode:
    """Return what an open file holds. Raises SnapshotError, and OSError."""
    start = file.read(len(_GZIP))
    file.seek(0)
    if start != _GZIP:
        return SavedNode(from_json(_text(file.read(MAX_SNAPSHOT + 1), "the snapshot", MAX_SNAPSHOT)))
    try:
        found = dict(_members(file))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise SnapshotError(f"no archive of flanneld-masq report: {error}") from error
    if SNAPSHOT not in found:
        raise SnapshotError(f"no archive of flanneld-masq report: it has no {SNAPSHOT}")
    drop_ins = [name for name in found if name.startswith(_DROP_INS)]
    configuration = tuple((name, found[name]) for name in (_CONFIG, *drop_ins) if name in found)
    subnets = tuple((name, text) for name, text in found.items() if name.startswith(_SUBNETS))
    return SavedNode(from_json(found[SNAPSHOT]), configuration, subnets, found.get(FINDINGS, ""))


def _members(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Yield name, below the one directory, and text of the members that are needed."""
    total = 0
    # tarfile's own reader of gzip fails with an AttributeError for some damage (Python 3.11).
    with gzip.GzipFile(fileobj=file) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
        for count, member in enumerate(archive):
            total += member.size
            if count >= MAX_MEMBERS or total > MAX_BYTES:
                raise ValueError("it is too large")
            name = member.name.partition("/")[2]
            limit = MAX_SNAPSHOT if name == SNAPSHOT else MAX_TEXT
            needed = name in (SNAPSHOT, FINDINGS, _CONFIG) or name.startswith((_DROP_INS, _SUBNETS))
            fits = name != FINDINGS or member.size <= limit  # the archive is of use without them
            content = archive.extractfile(member) if needed and fits and member.isreg() else None
            if content is not None:
                yield name, _text(content.read(limit + 1), name, limit)


def _text(data: bytes, name: str, limit: int) -> str:
    if len(data) > limit:
        raise SnapshotError(f"{shown(name)} is larger than {limit} bytes")
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", "backslashreplace", newline="").read()
