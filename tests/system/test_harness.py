"""Machines leave nothing behind, whether they are closed or the tests are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..common import eventually
from .machine import Machine
from .roots import RECIPES

_KILLED = """\
import signal, subprocess
from tests.system.cgroups import Cgroup
group = Cgroup("killed")
subprocess.Popen(("sleep", "60"), preexec_fn=group.join)
print(group.path, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("release", ["trixie"], indirect=True)
def test_a_closed_machine_is_gone(release: str, workshop: Path) -> None:
    def traces() -> tuple[list[str], ...]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return (
            [line.split()[4] for line in mounts],
            sorted(map(str, Path("/run/netns").iterdir())),
            sorted(str(path) for path in Path("/sys/fs/cgroup").rglob(f"flanneld-masq-{os.getpid()}-*")),
            sorted(map(str, workshop.iterdir())),
        )

    layers = (RECIPES[release].directory,)
    machine = Machine("first", release, layers, workshop)
    machine.boot()
    machine.close()
    before = traces()
    machine = Machine("second", release, layers, workshop)
    machine.boot()
    init = machine.outer_pid(1)
    sleeper = machine.start("sleep", "60")
    assert traces() != before
    machine.close()
    assert traces() == before
    assert not Path(f"/proc/{init}").exists()
    assert sleeper.returncode is not None


def test_with_the_tests_killed_a_machine_ends(workshop: Path) -> None:
    killed = subprocess.Popen((sys.executable, "-c", _KILLED), stdout=subprocess.PIPE, text=True)
    with killed:
        assert killed.stdout is not None
        group = Path(killed.stdout.readline().strip())
        assert (group / "cgroup.procs").read_text()
        killed.send_signal(signal.SIGKILL)
        eventually(lambda: not group.exists())
