"""The console examples of the documents, each run as an administrator would, on one booted node. With LONG=1."""

from __future__ import annotations

import pytest

from ..common import every_time
from ..examples import DOCUMENTS, MANUALS, PROGRAMS, Example, Proof, examples
from .machine import Machine

pytestmark = pytest.mark.skipif(not every_time(), reason="needs LONG=1")

# Why an example is not run here.
ELSEWHERE = {
    "flanneld-masq monitor": "it ends at Ctrl-C; tests/system/test_dbus.py runs it",
    "flanneld-masq selftest": "tests/system/test_packages.py runs it, and so does make demo",
}
# The exit statuses that the manual page gives for what may be found on a node that has nothing but rules.
STATUSES = {"plan": (0, 3), "doctor": (0, 1, 2), "probe": (0, 1, 2), "trace": (1,)}
# No pod sends while trace listens.
SECONDS = 60.0


def on_a_node() -> list[Example]:
    parts = (part for name in (*DOCUMENTS, *MANUALS) for example in examples(name) for part in example.parts())
    wanted = [part for part in parts if PROGRAMS[part.program] in (Proof.COMMAND, Proof.NODE)]
    return [part for part in wanted if not part.program.startswith(".venv") and part.command not in ELSEWHERE]


def test_each_example_runs_on_a_node(machine: Machine) -> None:
    machine.configure()
    machine.write_subnet()
    assert len(on_a_node()) > 20
    failures = [failure for example in on_a_node() if (failure := failed(machine, example))]
    assert failures == []


def failed(machine: Machine, example: Example) -> str:
    """Run an example, and return why it is wrong; empty if it is right."""
    if example.command.startswith("systemctl reload"):  # at most five in ten seconds are accepted
        machine.run("systemctl", "reset-failed", "flanneld-masq")
    done = machine.run("sh", "-c", example.command, check=False, timeout=SECONDS)
    allowed = (0,) if example.program != "flanneld-masq" else STATUSES.get(example.arguments[0], (0,))
    said = done.stdout + done.stderr
    if done.returncode in allowed and "Traceback" not in said and "not found" not in said:
        return ""
    return f"{example.document}: {example.command}: exit status {done.returncode}: {said[-500:]}"
