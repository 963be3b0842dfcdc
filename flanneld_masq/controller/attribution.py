"""Who changed the ruleset: what the kernel says of a transaction, and what /proc still knows of the process."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import SLOTS

MAX_NAMED = 3
MAX_HEARD = 1000  # transactions; of more the first are forgotten
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_MAX_HARMLESS = 32  # names
_MAX_READ = 4096  # bytes
_MAX_SHOWN = 300  # characters of a command line


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


def in_initial_pid_namespace(root: Path = Path("/")) -> bool:
    """Return True if the pids that the kernel reports with a transaction are those of this process's own /proc.

    The kernel reports the pid of the initial pid namespace. In a container that number belongs to another process or to
    none, so it must be compared with no pid there. A kernel without pid namespaces has the initial one alone.
    """
    try:
        return (root / "proc/self/ns/pid").readlink() == Path(_INITIAL_PID_NAMESPACE)
    except FileNotFoundError:
        return (root / "proc/self").exists()


def identify(transaction: Transaction, root: Path = Path("/")) -> Culprit:
    """What is known of it. A process that has another name by now is another process."""
    directory = root / "proc" / str(transaction.pid)
    name = _shown(transaction.name)
    if _read(directory / "comm").rstrip("\n") != transaction.name:
        return Culprit(name, transaction.pid)
    command = _shown(_read(directory / "cmdline").replace("\0", " "))
    return Culprit(name, transaction.pid, command, _shown(_unit(_read(directory / "cgroup"))))


def suspects(
    transactions: Iterable[Transaction], harmless: Collection[str] = (), root: Path = Path("/")
) -> tuple[Culprit, ...]:
    """Who made these, each program once, the most suspicious last: those that are not `harmless`, and of them the one
    that was the latest."""
    latest: dict[str, Transaction] = {}
    for transaction in transactions:
        latest.pop(transaction.name, None)  # so that the order is that of the latest of each
        latest[transaction.name] = transaction
    ranked = sorted(latest.values(), key=lambda found: found.name not in harmless)
    return tuple(identify(found, root) for found in ranked[-MAX_NAMED:])


class SuspectTracker:
    """Who has committed to nf_tables since our rules were last known to be right. For one family.

    `is_ours` says of a transaction whether we have made it.
    """

    def __init__(self, is_ours: Callable[[Transaction], bool]) -> None:
        self.heard: deque[Transaction] = deque(maxlen=MAX_HEARD)  # and not yet told whether they changed anything
        self.count = 0  # of all that ever was heard
        self._is_ours = is_ours
        self._broke: deque[Transaction] = deque(maxlen=MAX_HEARD)  # those that changed something first come last
        self._broken_until: int | None = None  # the generation in which something was last seen changed
        self._harmless: deque[str] = deque(maxlen=_MAX_HARMLESS)

    @property
    def broken(self) -> bool:
        """Whether somebody is known to have changed our rules."""
        return bool(self._broke)

    def hear(self, transactions: Iterable[Transaction]) -> None:
        for found in transactions:
            self.count += 1
            if self._broken_until is None or found.after(self._broken_until):
                self.heard.append(found)
            else:
                self._suspect((found,))

    def suspected(self) -> Iterator[Transaction]:
        """Those that may have changed our rules, the most suspicious last."""
        return itertools.chain(self.heard, self._broke)

    def harmless(self) -> None:
        """What was heard has changed nothing. Programs are known by that, for they come again; not while our rules are
        broken, when another blow changes nothing either."""
        if not self._broke:
            self._harmless.extend({found.name for found in self.heard}.difference(self._harmless))
        self.heard.clear()

    def broke(self, generation: int | None) -> None:
        """What was heard, or is in that generation and still to be heard, has changed something."""
        self._suspect(self.heard)
        self.heard.clear()
        self._broken_until = generation

    def forget(self, generation: int | None) -> None:
        """What came until then is over; all of it where our rules are nowhere in nf_tables."""

        def later(transactions: Iterable[Transaction]) -> Iterator[Transaction]:
            return (found for found in transactions if generation is not None and found.after(generation))

        self._broke, self.heard = deque(later(self._broke), MAX_HEARD), deque(later(self.heard), MAX_HEARD)
        if not self._broke:
            self._broken_until = None

    def _suspect(self, transactions: Iterable[Transaction]) -> None:
        """Less than those before: who broke our rules first has mostly done all of it, and others come later."""
        self._broke = deque((*transactions, *self._broke), MAX_HEARD)

    def culprits(self, found_at: int | None = None) -> tuple[Culprit, ...]:
        """Who may have done what was found in that generation, or until now."""
        earlier = (found for found in self.suspected() if found_at is None or not found.after(found_at))
        return suspects((found for found in earlier if not self._is_ours(found)), self._harmless)


def _unit(cgroup: str) -> str:
    """systemd names the cgroup of a unit after it (cgroup v2 has one line, "0::PATH")."""
    parts = [part for line in cgroup.splitlines() for part in line.rsplit(":", 1)[-1].split("/")]
    return next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")


def _shown(text: str) -> str:
    """What a process says of itself, as a line of the log may carry it: without control characters, not without end."""
    line = "".join(character if character.isprintable() else " " for character in text).strip()
    return line if len(line) <= _MAX_SHOWN else line[: _MAX_SHOWN - 3] + "..."


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_READ).decode("utf-8", "replace")
    except OSError:
        return ""
