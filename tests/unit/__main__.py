"""Runs the unit tests, in so many processes that share what they import: `python -m tests.unit PROCESSES`.

Each is a fork of this one, and takes one file after the other, the largest first, until none is left: so they end
together. A process of pytest-xdist would import and collect all.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import hypothesis.strategies  # noqa: F401
import pytest

from flanneld_masq.selftest import netns

from .. import preloaded  # noqa: F401
from ..common import measure_patience

_OPTIONS = ("-q", "-p", "no:cacheprovider", "-o", "console_output_style=classic", "-m", "not timing")
_NUMBER = 2
"""Bytes of the number of a file."""


class _Turns:
    """A plugin of pytest that collects and runs each file that no other process has taken.

    `turns` is a pipe with their numbers, `current` a file for the name of the one that runs.
    """

    def __init__(self, files: Sequence[Path], turns: int, current: int) -> None:
        self._files = files
        self._turns = turns
        self._current = current

    def pytest_collection(self) -> bool:
        """Keep pytest from collecting all at once."""
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        collected = 0
        while number := os.read(self._turns, _NUMBER):
            name = str(self._files[int.from_bytes(number, "big")])
            os.ftruncate(self._current, 0)
            os.pwrite(self._current, name.encode(), 0)
            session.perform_collect([name])
            collected += len(session.items)
            for item, following in zip_longest(session.items, session.items[1:]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        session.testscollected = collected
        return True

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Show no dot for a test that passed: the output comes at the end."""
        return ("passed", "", "") if report.passed and report.when == "call" else None


def main(processes: int) -> int:
    """Print what each process has said when it ends. Return 0 if some tests passed and none failed."""
    measure_patience()
    files = sorted(Path(__file__).parent.rglob("test_*.py"), key=lambda path: path.stat().st_size, reverse=True)
    turns, write_end = os.pipe()
    os.write(write_end, b"".join(number.to_bytes(_NUMBER, "big") for number in range(len(files))))
    os.close(write_end)
    running = {}
    for _ in range(processes):
        output, current = os.memfd_create("output"), os.memfd_create("current")
        pid = os.fork()
        if not pid:
            return _run(_Turns(files, turns, current), output)
        running[pid] = output, current
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # each process ends by it, and says what has failed so far
    codes = set()
    while running:
        pid, status = os.wait()
        said, in_file = map(_content, running.pop(pid))
        print(said, end="", flush=True)
        code = os.waitstatus_to_exitcode(status)
        if code not in set(pytest.ExitCode):
            print(f"\nexit status {code}, in a test of {in_file}", flush=True)
        codes.add(code)
    passed = pytest.ExitCode.OK in codes and codes <= {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    return int(not passed)


def _run(turns: _Turns, output: int) -> int:
    """Be pytest, in a process that has just been forked."""
    netns.die_with_parent()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    return pytest.main([*_OPTIONS, str(Path(__file__).parent)], plugins=[turns])


def _content(descriptor: int) -> str:
    """Read what a process has written there, and close it."""
    with os.fdopen(descriptor, errors="replace") as file:
        file.seek(0)
        return file.read()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
