"""Three quarters of a minute of `make chaos`. pytest-xdist begins with it, since its name is the first one here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..common import Tell, lasting, patience

SEED = 12
ROOT = Path(__file__).parents[2]


def test_random_actions_leave_everything_right(tell: Tell) -> None:
    """LONG=1 goes on for five minutes."""
    seconds = lasting(45, 300)
    argv = (sys.executable, "-m", "tests.chaos", "--seed", str(SEED), "--seconds", str(seconds))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=seconds + patience(60))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            tell(f"chaos: {line}")
