"""Measures how fast this machine starts programs, and scales the time limits of the self-test with it.

A limit only ends what hangs. On a Raspberry Pi, or on a machine that is emulated at a twentieth of the speed,
everything that the self-test waits for takes as much longer as the start of a program does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from flanneld_masq.model import SLOTS
from flanneld_masq.process import DEFAULT_TIMEOUT, Completed, ProcessRunner

# seconds on the machine that the limits were chosen on
REFERENCE_PROGRAM_SECONDS = 0.15
REFERENCE_TOOL_SECONDS = 0.005
SAMPLES = 3
_ENDLESS_SECONDS = 3600.0  # for the measurement itself, before anything is known


@dataclass(frozen=True, **SLOTS)
class Limits:
    """Time limits in seconds, on a machine that is `factor` times as slow as the reference."""

    factor: float = 1.0

    @property
    def wait(self) -> float:
        """Limit of every wait without one of its own."""
        return 10.0 * self.factor

    @property
    def packet(self) -> float:
        """Limit until a packet arrives; a packet needs much less even on a busy machine."""
        return 10.0 * self.factor

    @property
    def repair(self) -> float:
        """Limit until damaged rules are right again."""
        return 3.0 * self.factor

    @property
    def stop(self) -> float:
        """Limit until the daemon ends after SIGTERM."""
        return 1.0 * self.factor


@dataclass(frozen=True, **SLOTS)
class Speed:
    """Seconds that this program and a tool take to start and end, the slowest of some tries."""

    program_seconds: float
    tool_seconds: float

    @property
    def limits(self) -> Limits:
        """The limits of this machine, never below those of the reference."""
        slower = max(self.program_seconds / REFERENCE_PROGRAM_SECONDS, self.tool_seconds / REFERENCE_TOOL_SECONDS, 1.0)
        return Limits(round(slower, 1))

    def document(self) -> dict[str, Any]:
        return {
            "program_seconds": round(self.program_seconds, 4),
            "tool_seconds": round(self.tool_seconds, 4),
            "limits_factor": self.limits.factor,
        }

    def __str__(self) -> str:
        program, tool = (f"{seconds * 1000:.0f} ms" for seconds in (self.program_seconds, self.tool_seconds))
        return f"this program starts in {program}, a tool in {tool}; time limits times {self.limits.factor:g}"


class PatientRunner(ProcessRunner):
    """Runs programs with time limits that are `factor` times as long as their callers ask for."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def __call__(
        self,
        argv: tuple[str, ...],
        *,
        executable: Optional[str] = None,
        stdin: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Completed:
        return super().__call__(argv, executable=executable, stdin=stdin, timeout=timeout * self._factor)


def measure(
    program: Sequence[str], run: ProcessRunner, clock: Callable[[], float] = time.monotonic, samples: int = SAMPLES
) -> Speed:
    """Start `program` and a tool `samples` times each, and return the longest times. Raises CommandError if one of them
    cannot be run."""

    def slowest(argv: tuple[str, ...]) -> float:
        taken = []
        for _ in range(samples):
            started = clock()
            run(argv, timeout=_ENDLESS_SECONDS)
            taken.append(clock() - started)
        return max(taken)

    return Speed(slowest((*program, "--version")), slowest(("ip", "-V")))
