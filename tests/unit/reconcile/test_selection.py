"""The selection of backends: what is asked of them, when, and what comes of the answers."""

from __future__ import annotations

from pathlib import Path

from flanneld_masq.model import Family
from flanneld_masq.reconcile.selection import missing_family


def test_a_kernel_without_a_family_is_told_by_proc(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net/ipv4").mkdir(parents=True)
    assert missing_family(tmp_path, Family.IPV4) == ""
    assert "runs without ipv6 (/proc/sys/net/ipv6 is missing)" in missing_family(tmp_path, Family.IPV6)
