"""`doctor --brief`: one short line within a time limit, for node-problem-detector and programs like it.

node-problem-detector takes exit status 0 for healthy, 1 for a problem and any other for unknown. It cuts what the
program prints after 80 bytes; see docs/custom_plugin_monitor.md of its source.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from flanneld_masq.doctor.findings import Finding, Severity, exit_status
from flanneld_masq.printable import one_line

MAX_BYTES = 80
UNKNOWN = 2
_HEALTHY = "healthy: nothing found that breaks masquerading"


class _Expired(KeyboardInterrupt):
    """The time is over. asyncio catches every other exception that a signal raises in a callback."""


def examine_briefly(examine: Callable[[], Sequence[Finding]], seconds: float) -> tuple[int, str]:
    """Return the exit status and one line of at most 80 bytes. Without an answer after `seconds`, and after any error,
    the node's health is unknown."""
    try:
        with _time_limit(seconds):
            findings = examine()
    except _Expired:
        return UNKNOWN, f"unknown: the node was not examined within {seconds:g} s"
    except Exception as error:  # exit status 1, that of any failure, would mean a problem of the node
        return UNKNOWN, _cut(f"unknown: {one_line(str(error) or repr(error))}")
    return exit_status(findings), line_of(findings)


def line_of(findings: Sequence[Finding]) -> str:
    """Return the worst findings by their ids, as many as fit, and how many more there are."""
    for severity in (Severity.PROBLEM, Severity.UNKNOWN):
        if names := list(dict.fromkeys(map(_name, (one for one in findings if one.severity is severity)))):
            return _list(f"{severity.value}: ", names)
    return _HEALTHY


def _name(finding: Finding) -> str:
    return f"{finding.kind.value} ({finding.family})" if finding.family else finding.kind.value


def _list(start: str, names: Sequence[str]) -> str:
    """Return as many of the names as fit. One always fits: the ids are short."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        line = f"{start}{', '.join(names[:count])}{more}"
        if len(line) <= MAX_BYTES:
            return line
    return _cut(f"{start}{names[0]}")


def _cut(line: str) -> str:
    """Return the line in at most 80 bytes of UTF-8, without half a character at its end."""
    line = line[:MAX_BYTES]
    while len(line.encode()) > MAX_BYTES:
        line = line[:-1]
    return line


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _Expired in the block after so many seconds."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise _Expired

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
