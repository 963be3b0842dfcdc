"""A node that was saved is read back, and what is no such file is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from flanneld_masq.errors import MasqError, SnapshotError
from flanneld_masq.packet_path.snapshot import to_json
from flanneld_masq.report import saved_node
from flanneld_masq.report.saved_node import SavedNode, parse, read

from ..packet_path.nodes import DROP, chain, rule, snapshot, table

SNAPSHOT = snapshot([table(), chain("f", "forward"), rule("f", DROP)])


def archive(members: Mapping[str, str], *, top: str = "report/") -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as made:
        for name, text in members.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(text.encode())
            made.addfile(member, io.BytesIO(text.encode()))
    file.seek(0)
    return file


def test_a_snapshot_alone() -> None:
    assert parse(io.BytesIO(to_json(SNAPSHOT).encode())) == SavedNode(SNAPSHOT)


def test_an_archive_with_the_files_that_are_needed() -> None:
    members = {
        "versions.txt": "kernel",
        "snapshot.json": to_json(SNAPSHOT),
        "config.d/1.toml": "late",
        "config.toml": "early",
        "subnet-files/1.env": "lease",
        "journal.txt": "a line",
    }
    expected = SavedNode(
        SNAPSHOT, (("config.toml", "early"), ("config.d/1.toml", "late")), (("subnet-files/1.env", "lease"),)
    )
    assert parse(archive(members)) == expected


def test_a_member_that_is_a_link_is_left_out() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as made:
        for name, kind in (("report/snapshot.json", tarfile.SYMTYPE), ("report/config.toml", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/shadow"
            made.addfile(member)
    file.seek(0)
    with pytest.raises(SnapshotError, match=r"it has no snapshot\.json"):
        parse(file)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x1f\x8b", b"\x1f\x8bno gzip", b"PK\3\4"])
def test_what_is_no_saved_node_is_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        parse(io.BytesIO(data))


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"snapshot.json": to_json(SNAPSHOT), "config.toml": "x" * 100}
    for name, limit in (("MAX_MEMBERS", 1), ("MAX_BYTES", 100), ("MAX_TEXT", 99), ("MAX_SNAPSHOT", 10)):
        with monkeypatch.context() as patched:
            patched.setattr(saved_node, name, limit)
            with pytest.raises(SnapshotError, match=r"larger|too large"):
                parse(archive(members))


def test_findings_that_are_too_large_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is of use without them."""
    monkeypatch.setattr(saved_node, "MAX_TEXT", 99)
    assert parse(archive({"snapshot.json": to_json(SNAPSHOT), "doctor.json": "x" * 100})) == SavedNode(SNAPSHOT)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MasqError, match="nothing cannot be read: No such file"):
        read(tmp_path / "nothing")
