"""Who changed the ruleset: what the kernel says of a transaction, and what /proc still knows of the process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .events import Transaction
from .model import SLOTS

MOST_NAMED = 3
_MOST_READ = 4096  # bytes
_MOST_SHOWN = 300  # characters of a command line


@dataclass(frozen=True, **SLOTS)
class Culprit:
    """A program that committed a transaction. `command` (its command line) and `unit` (of systemd) are empty
    where the process is gone."""

    name: str
    pid: int
    command: str = ""
    unit: str = ""

    def __str__(self) -> str:
        details = [f"pid {self.pid}", *([self.unit] if self.unit else []), *([self.command] if self.command else [])]
        return f"{self.name} ({', '.join(details)})"


def identify(transaction: Transaction, root: Path = Path("/")) -> Culprit:
    """What is known of it. A process that has another name by now is another process."""
    directory = root / "proc" / str(transaction.pid)
    name = _shown(transaction.name)
    if _read(directory / "comm").rstrip("\n") != transaction.name:
        return Culprit(name, transaction.pid)
    command = _shown(_read(directory / "cmdline").replace("\0", " "))
    return Culprit(name, transaction.pid, command, _shown(_unit(_read(directory / "cgroup"))))


def suspects(transactions: Iterable[Transaction], root: Path = Path("/")) -> tuple[Culprit, ...]:
    """Who committed since the rules were last seen in order, latest last, each program once."""
    latest: dict[str, Transaction] = {}
    for transaction in transactions:
        latest.pop(transaction.name, None)  # so that the order is that of the latest of each
        latest[transaction.name] = transaction
    return tuple(identify(found, root) for found in list(latest.values())[-MOST_NAMED:])


def _unit(cgroup: str) -> str:
    """systemd names the cgroup of a unit after it (cgroup v2 has one line, "0::PATH")."""
    parts = [part for line in cgroup.splitlines() for part in line.rsplit(":", 1)[-1].split("/")]
    return next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")


def _shown(text: str) -> str:
    """What a process says of itself, as a line of the log may carry it: without control characters, not without end."""
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    return line if len(line) <= _MOST_SHOWN else line[: _MOST_SHOWN - 3] + "..."


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_READ).decode("utf-8", "replace")
    except OSError:
        return ""
