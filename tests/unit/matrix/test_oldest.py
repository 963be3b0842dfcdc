"""The summary of a run of pytest on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...common import eventually, patience
from ...matrix import oldest
from ...matrix.oldest import Oldest, summary
from ...matrix.page import TITLES

PASSED = "....\n3200 passed, 12 skipped in 321.40s (0:05:21)\n"
FAILED = "FAILED tests/unit/test_a.py::test_b - AssertionError\n1 failed, 3199 passed in 12.00s\n"


@pytest.mark.parametrize(
    ("stdout", "stderr", "text"),
    [
        (PASSED, "", "3200 passed, 12 skipped"),
        (FAILED, "", "1 failed, 3199 passed: tests/unit/test_a.py::test_b"),
        ("FAILED t\n" * 10 + "10 failed in 1s\n", "", f"10 failed: {', '.join('t' * 8)}, and 2 more"),
        ("", "first\nno such root\n", "no such root"),
        ("", "", "nothing printed"),
    ],
)
def test_the_summary_names_what_failed(stdout: str, stderr: str, text: str) -> None:
    assert summary(stdout, stderr) == text


def test_a_timeout_ends_the_programs_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, child = tmp_path / "script", tmp_path / "child"
    script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{child}\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(oldest, "_SCRIPT", script)
    seconds = patience(0.5)
    monkeypatch.setattr(oldest, "_SECONDS", seconds)
    outcome = oldest.Oldest()._outcome("unit-tests", "tests/unit")
    assert (outcome.ok, outcome.detail) == (False, f"not done within {seconds:g} s")
    pid = int(child.read_text())
    eventually(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_each_cell_has_a_title() -> None:
    assert set(Oldest().cells) <= set(TITLES)
