"""Who uses a lock, from the text of /proc/locks."""

from __future__ import annotations

import pytest

from flanneld_masq.lock_files import FlockUsers, users_in

PLACE = b"00:1a:1203"


@pytest.mark.parametrize(
    ("pid", "holding"),
    [
        ("4321", (4321,)),
        ("0", ()),  # it has no pid in this namespace
        ("-1", ()),
        ("9" * 5000, ()),  # int() refuses so many digits, with an error of its own
        ("\u0664", ()),
    ],
    ids=["a pid", "0", "-1", "5000 digits", "an Arabic digit"],
)
def test_only_a_pid_holds_a_lock(pid: str, holding: tuple[int, ...]) -> None:
    line = f"1: FLOCK  ADVISORY  WRITE {pid} {PLACE.decode()} 0 EOF\n"
    assert users_in(line.encode(), PLACE) == FlockUsers(holding)
