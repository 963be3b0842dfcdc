"""A control group of version 2 for each booted machine, whatever hierarchy this machine has mounted itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from flanneld_masq.process import ProcessRunner

_MOUNT = Path("/sys/fs/cgroup")
# Waits for the end of its input, which comes by `close` or with the end of the tests, however they end.
_KEEPER = """\
cat
cd "$0" && echo 1 >cgroup.kill || exit 1
until grep -q "populated 0" cgroup.events; do sleep 0.01; done
cd / && find "$0" -depth -type d -exec rmdir {} \\;
"""


def mount(run: ProcessRunner) -> None:
    """Put the unified hierarchy in its usual place. Only in a private mount namespace."""
    run(("mount", "-t", "cgroup2", "cgroup2", str(_MOUNT)))


class Cgroup:
    """A group below that of this process. It needs no controllers: systemd only counts and ends processes by it."""

    def __init__(self, name: str) -> None:
        self.path = _MOUNT / _own() / f"flanneld-masq-{os.getpid()}-{name}"
        self.path.mkdir()
        self._keeper = subprocess.Popen(
            ("sh", "-c", _KEEPER, str(self.path)), stdin=subprocess.PIPE, start_new_session=True
        )

    def join(self) -> None:
        """Move the calling process into it."""
        (self.path / "cgroup.procs").write_text("0")

    def close(self) -> None:
        """End all that runs in it, at once, and remove it."""
        self._keeper.communicate()
        assert self._keeper.returncode == 0, f"{self.path} is not removed"


def _own() -> str:
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    return next(line[3:] for line in lines if line.startswith("0::")).lstrip("/")
