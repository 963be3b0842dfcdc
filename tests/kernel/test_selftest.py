"""The self-test on a machine at a twentieth of the speed: the kernel gives it that share of one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..common import Tell, is_root, patience

SHARE = 20  # of one core: one part of so many
PERIOD_US = 20_000
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


@pytest.fixture
def slow_group() -> Iterator[Path]:
    """A control group that may use a twentieth of one core."""
    if os.environ.get("LONG") != "1":
        pytest.skip("takes minutes; LONG=1 runs it")
    if not is_root():
        pytest.skip("only root makes control groups")
    group = (V1 if V1.is_dir() else V2) / f"flanneld-masq-slow-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of its own: {error}")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{PERIOD_US // SHARE} {PERIOD_US}")
        elif (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(PERIOD_US // SHARE))
        else:
            pytest.skip("control groups do not limit the processor here")
        yield group
    finally:
        group.rmdir()


def test_a_slow_machine_passes(slow_group: Path, tell: Tell) -> None:
    shell = f'echo $$ >{slow_group}/cgroup.procs; exec "$@"'
    program = (sys.executable, "-m", "flanneld_masq", "selftest", "--backend", "nft", "--json")
    done = subprocess.run(
        ("sh", "-c", shell, "sh", *program),
        capture_output=True,
        text=True,
        timeout=patience(600),
        check=False,
    )
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"]) == (0, True), done.stderr
    assert said["speed"]["limits_factor"] > SHARE / 4
    tell(f"selftest at 1/{SHARE} of a core: programs start in {said['speed']['program_seconds']:g} s, all passed")
