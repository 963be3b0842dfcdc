"""The column of the oldest tools: `scripts/test-oldest`, on the kernel of this machine and without an emulator."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

from ..system.packages import TREE
from ..system.roots import cache
from .guest.console import Outcome
from .results import VERSIONS

_SCRIPT = TREE / "scripts" / "test-oldest"
_ROOT = cache() / "oldest"
_SECONDS = 2400.0
_NAMED = 8
_SUMMARY = re.compile(r"^(\d+ (?:passed|failed|skipped|error).*) in [\d.]+s", re.MULTILINE)
_VERSION = re.compile(r"\d+(?:\.\d+)+")


@dataclass(frozen=True, **SLOTS)
class Oldest:
    """The column, as the page shows it beside the machines."""

    name: str = "oldest"
    title: str = "Debian 11's tools and Python on another kernel"
    cells: tuple[str, ...] = ("unit-tests", "kernel-tests")
    note: str = "`scripts/test-oldest`, with watchdog 2.1.6; tomli and dbus-next are those of the machine that ran it."

    def run(self, cells: tuple[str, ...]) -> Iterator[Outcome]:
        """Run these cells, the versions last: the script makes the root."""
        for cell in cells:
            yield self._outcome(cell, f"tests/{cell.partition('-')[0]}")
        yield Outcome(VERSIONS, True, "", dict(self._versions()))

    def _outcome(self, cell: str, tests: str) -> Outcome:
        with subprocess.Popen(
            (str(_SCRIPT), tests),
            cwd=TREE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                return Outcome(cell, False, f"not done within {_SECONDS:g} s", {})
            finally:
                if process.poll() is None:  # the script's programs too, which would outlive it
                    os.killpg(process.pid, signal.SIGTERM)
        return Outcome(cell, process.returncode == 0, summary(stdout, stderr), {})

    def _versions(self) -> Iterator[tuple[str, str]]:
        yield "kernel", platform.release()
        for name, program in (("iptables", "iptables"), ("nft", "nft"), ("python", "python3")):
            argv = ("chroot", str(_ROOT), program, "--version")
            found = _VERSION.search(subprocess.run(argv, capture_output=True, text=True).stdout)
            yield name, found[0] if found else "unknown"


def summary(stdout: str, stderr: str) -> str:
    """Return what pytest says at its end, with the first tests that failed; else the last line of anything."""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", stdout, re.MULTILINE)
    found = _SUMMARY.search(stdout)
    if found is None:
        return (stdout + stderr).strip().rpartition("\n")[2] or "nothing printed"
    more = [f"and {len(failed) - _NAMED} more"] if len(failed) > _NAMED else []
    return ": ".join((found[1], ", ".join(failed[:_NAMED] + more))) if failed else found[1]
