"""Programs that are forked by the process of the tests end with it, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flanneld_masq.inputs.processes import is_running

from ..common import eventually

FORKS = """\
import os, signal
from tests.kernel import started
started.prepare()
print(started.Started(("status", "--watch"), os.environ, 1, 2).pid, flush=True)
signal.pause()
"""


def test_sigkill_of_the_tests_leaves_no_program() -> None:
    with subprocess.Popen((sys.executable, "-c", FORKS), stdout=subprocess.PIPE, text=True) as tests:
        try:
            assert tests.stdout is not None
            pid = int(tests.stdout.readline())
            assert tests.stdout.readline().startswith("flanneld-masq: "), "it is the program by now"
            fork_server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
            assert fork_server != tests.pid
        finally:
            tests.kill()
    eventually(lambda: not is_running(pid) and not is_running(fork_server))
