"""`python3 -m guest`: does the scenarios that the kernel's command line names, and prints a line for each."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.speed import PatientRunner, measure

from .console import Console, Outcome
from .node import Node
from .scenarios import SCENARIOS, CannotRun

ARGUMENT = "matrix.cells="


def main() -> None:
    console = Console()
    speed = measure(("flanneld-masq",), ProcessRunner(), samples=1)
    node = Node(PatientRunner(speed.limits.factor), speed.limits.factor)
    for cell in asked(Path("/proc/cmdline").read_text(encoding="ascii")):
        console.say(outcome(node, cell).line())


def asked(command_line: str) -> list[str]:
    """Return the cells that the kernel's command line names, the versions first."""
    (words,) = (word for word in command_line.split() if word.startswith(ARGUMENT))
    return ["versions", *words[len(ARGUMENT) :].split(",")]


def outcome(node: Node, cell: str) -> Outcome:
    """Do one scenario. Whatever it raises is its outcome."""
    started = time.monotonic()
    try:
        detail, facts = SCENARIOS[cell](node)
    except CannotRun as error:
        return Outcome(cell, None, str(error), {})
    except Exception as error:  # the outermost boundary: the page names the cause
        return Outcome(cell, False, f"{type(error).__name__}: {error}", {})
    return Outcome(cell, True, detail, {**facts, "took": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
