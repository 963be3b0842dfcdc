"""A boot passes on each outcome when it comes, and ends in time. A shell stands for qemu."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...matrix.emulator import boot
from ...matrix.guest.console import Outcome
from ...matrix.image import Disk
from ...matrix.plan import MACHINES, Boot

CELLS = ("nft", "service")
DISK = Disk(Path("/kernel"), Path("/initrd"), Path("/image"))
LINES = [Outcome("nft", True, "repaired", {}), Outcome("service", False, "not synced", {"seconds": 3})]


def booted(script: str, log: Path, seconds: float = 60.0) -> tuple[str, list[Outcome]]:
    machine = dataclasses.replace(MACHINES[0], emulator=("sh", "-c", script))
    heard: list[Outcome] = []
    problem = boot(machine, Boot(CELLS, seconds=seconds), CELLS, DISK, log, heard.append)
    return problem, heard


def test_outcomes_are_passed_on(tmp_path: Path) -> None:
    script = "; ".join(f"printf '%s\\r\\n' 'noise' '{outcome.line()}'" for outcome in LINES)
    assert booted(script, tmp_path / "log") == ("", LINES)
    assert (tmp_path / "log").read_text().count("MATRIX") == len(LINES)


def test_an_emulator_that_fails_says_so(tmp_path: Path) -> None:
    problem, heard = booted(f"echo '{LINES[0].line()}'; exit 3", tmp_path / "log")
    assert problem == f"qemu ended with status 3; see {tmp_path / 'log'}"
    assert heard == LINES[:1]


def test_a_machine_that_hangs_is_ended(tmp_path: Path) -> None:
    problem, heard = booted("exec sleep 60", tmp_path / "log", seconds=0.2)
    assert problem == "not powered off within 0 s"
    assert heard == []
