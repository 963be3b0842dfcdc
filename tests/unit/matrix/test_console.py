"""The host reads the lines of a machine among those of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...matrix.guest.console import Console, Outcome, parse

OUTCOME = Outcome("nft", True, 'repaired, "0.5" CPU seconds', {"cpu_seconds": 0.5, "modules": ["nft_masq"]})


@pytest.mark.parametrize("outcome", [OUTCOME, Outcome("cgroup-v1", None, "no such systemd", {})])
def test_an_outcome_is_read_back(outcome: Outcome) -> None:
    assert parse(outcome.line()) == outcome
    assert parse(f"[   12.3] random: crng {outcome.line()}\r") == outcome


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Welcome to Debian",
        "MATRIX ",
        "MATRIX {",
        "MATRIX []",
        "MATRIX null",
        'MATRIX {"cell": "nft"}',
        'MATRIX {"cell": "nft", "ok": 1, "detail": "", "facts": {}}',
        'MATRIX {"cell": "nft", "ok": "no", "detail": "", "facts": {}}',
        'MATRIX {"cell": "nft", "ok": true, "detail": "", "facts": 3}',
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


def test_a_line_stands_alone(tmp_path: Path) -> None:
    device = tmp_path / "console"
    device.write_text("half a line of the kernel")
    with device.open("a") as before:
        before.flush()
    Console(device).say(OUTCOME.line())
    assert device.read_text().splitlines()[-1] == OUTCOME.line()
