"""Runs the unit tests, in so many processes that share what they import: `python -m tests.unit PROCESSES`.

Each is a fork of this one, and collects its share of the files: as many large ones as the others, so that they end
together. A process of pytest-xdist would import and collect all.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies  # noqa: F401
import pytest

from flanneld_masq.selftest import netns

from .. import preloaded  # noqa: F401
from ..common import measure_patience

_OPTIONS = ("-q", "-p", "no:cacheprovider", "-m", "not timing")


def main(processes: int) -> int:
    """Print what each process has said when it ends. Return 0 if some tests passed and none failed."""
    measure_patience()
    files = sorted(Path(__file__).parent.rglob("test_*.py"), key=lambda path: path.stat().st_size)
    running = {}
    for first in range(min(processes, len(files))):
        share, output = files[first::processes], os.memfd_create("output")
        pid = os.fork()
        if not pid:
            return _run(share, output)
        running[pid] = share, output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # each process ends by it, and says what has failed so far
    codes = set()
    while running:
        pid, status = os.wait()
        share, output = running.pop(pid)
        with os.fdopen(output, errors="replace") as said:
            said.seek(0)
            print(said.read(), end="", flush=True)
        code = os.waitstatus_to_exitcode(status)
        if code not in set(pytest.ExitCode):
            print(f"\nexit status {code}, in a test of one of these: {' '.join(map(str, share))}", flush=True)
        codes.add(code)
    passed = pytest.ExitCode.OK in codes and codes <= {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    return int(not passed)


def _run(files: Sequence[Path], output: int) -> int:
    """Be pytest, in a process that has just been forked."""
    netns.die_with_parent()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    return pytest.main([*_OPTIONS, *map(str, files)])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
