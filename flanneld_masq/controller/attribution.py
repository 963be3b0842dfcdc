"""Attribution: which commits to nf_tables concern the rules of a family, and which programs made them.

The kernel reports pid and command name of a commit; /proc still knows the process if it lives. Of the legacy tables it
reports nothing, so there the programs that held the lock file are suspected.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.inputs.processes import Process, read_process
from flanneld_masq.kernel.ruleset_events import Transaction, own_ports
from flanneld_masq.model import SLOTS
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.change_detector import ChangeDetector
from flanneld_masq.reconcile.values import Fingerprint

MAX_NAMED = 3
MAX_HEARD = 1000  # transactions; of more the first are forgotten
MAX_HOLDERS = 32  # of the lock; of more the first are forgotten
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_MAX_HARMLESS = 32  # names
_MAX_SHOWN = 300  # characters of a command line


@dataclass(frozen=True, **SLOTS)
class Culprit:
    """A program that committed a transaction. `command` (its command line) and `unit` (of systemd) are empty
    where the process is gone. The command line may hold a secret, so it is no part of the text. `pid` is 0 where the
    kernel reports no pid of this process's own pid namespace."""

    name: str
    pid: int
    command: str = ""
    unit: str = ""

    @property
    def pid_text(self) -> str:
        return f"pid {self.pid}" if self.pid else "pid not known in a pid namespace"

    def __str__(self) -> str:
        return f"{self.name} ({self.pid_text}, {self.unit})" if self.unit else f"{self.name} ({self.pid_text})"


def in_initial_pid_namespace(root: Path = Path("/")) -> bool:
    """Return True if the pids that the kernel reports with a transaction are those of this process's own /proc.

    The kernel reports the pid of the initial pid namespace. In a container that number belongs to another process or to
    none, so it must be compared with no pid there. A kernel without pid namespaces has the initial one alone.
    """
    try:
        return (root / "proc/self/ns/pid").readlink() == Path(_INITIAL_PID_NAMESPACE)
    except FileNotFoundError:
        return (root / "proc/self").exists()


def identify(transaction: Transaction, root: Path = Path("/"), *, pid_known: bool = True) -> Culprit:
    """Return what is known of its author. A process that has another name by now is another process.

    `pid_known` is False in a pid namespace, where the kernel reports pids of the initial one.
    """
    if not pid_known:
        return Culprit(_shown(transaction.name), 0)
    process = read_process(transaction.pid, str(root / "proc"))
    if process is None or _text(process.name).rstrip("\n") != transaction.name:
        return Culprit(_shown(transaction.name), transaction.pid)
    return culprit_of(process)


def culprit_of(process: Process) -> Culprit:
    """Return a process as people are to see it."""
    command = _shown(_text(process.command).replace("\0", " "))
    return Culprit(_shown(_text(process.name)), process.pid, command, _shown(_unit(_text(process.cgroup))))


def suspects(
    transactions: Iterable[Transaction],
    harmless: Collection[str] = (),
    root: Path = Path("/"),
    *,
    pids_known: bool = True,
) -> tuple[Culprit, ...]:
    """Return the programs that made these, each once, the most suspicious last: one that is not `harmless`, and of
    several the latest."""
    latest: dict[str, Transaction] = {}
    for transaction in transactions:
        latest.pop(transaction.name, None)  # so that the order is that of the latest of each
        latest[transaction.name] = transaction
    ranked = sorted(latest.values(), key=lambda found: found.name not in harmless)
    return tuple(identify(found, root, pid_known=pids_known) for found in ranked[-MAX_NAMED:])


class OwnPorts(Container[int]):
    """The netlink ports from which this process commits, and the programs that `runners` started.

    They tell own commits from foreign ones in a pid namespace too. The first netlink socket of a program has its pid
    as port.
    """

    def __init__(self, runners: Collection[ProcessRunner]) -> None:
        self._runners = runners

    def __contains__(self, port: object) -> bool:
        return any(port in runner.started_pids for runner in self._runners) or port in own_ports()


class SuspectTracker:
    """Remembers the commits to nf_tables since the rules of a family were last known to be right.

    `is_ours` returns True for a commit of this process. `pids_known` is False in a pid namespace.
    """

    def __init__(self, is_ours: Callable[[Transaction], bool], *, pids_known: bool = True) -> None:
        self.undecided: deque[Transaction] = deque(maxlen=MAX_HEARD)  # they may have changed something or not
        self.count = 0  # of all commits ever reported
        self._is_ours = is_ours
        self._pids_known = pids_known
        self._guilty: deque[Transaction] = deque(maxlen=MAX_HEARD)  # those that changed something first come last
        self._broken_until: int | None = None  # the generation in which a change was last seen
        self._harmless: deque[str] = deque(maxlen=_MAX_HARMLESS)

    @property
    def broken(self) -> bool:
        """True if a commit is known to have changed the rules."""
        return bool(self._guilty)

    def add(self, transactions: Iterable[Transaction]) -> None:
        for transaction in transactions:
            self.count += 1
            if self._broken_until is None or transaction.after(self._broken_until):
                self.undecided.append(transaction)
            else:
                self._accuse((transaction,))

    def suspected(self) -> Iterator[Transaction]:
        """Yield the commits that may have changed the rules, the most suspicious last."""
        return itertools.chain(self.undecided, self._guilty)

    def acquit(self) -> None:
        """The undecided commits changed nothing. Their programs are remembered as harmless, for they come again.

        Not while the rules are broken: then a commit that breaks them too changes nothing either.
        """
        if not self._guilty:
            names = {transaction.name for transaction in self.undecided}
            self._harmless.extend(names.difference(self._harmless))
        self.undecided.clear()

    def convict(self, generation: int | None) -> None:
        """The undecided commits, or those up to that generation that are not reported yet, changed something."""
        self._accuse(self.undecided)
        self.undecided.clear()
        self._broken_until = generation

    def forget(self, generation: int | None) -> None:
        """Forget the commits up to that generation; all of them for None, where nf_tables holds none of the rules."""

        def later(transactions: Iterable[Transaction]) -> Iterator[Transaction]:
            return (one for one in transactions if generation is not None and one.after(generation))

        self._guilty, self.undecided = deque(later(self._guilty), MAX_HEARD), deque(later(self.undecided), MAX_HEARD)
        if not self._guilty:
            self._broken_until = None

    def culprits(self, seen_in: int | None = None) -> tuple[Culprit, ...]:
        """Return the programs that may have made what was found in that generation, or until now."""
        earlier = (one for one in self.suspected() if seen_in is None or not one.after(seen_in))
        foreign = (one for one in earlier if not self._is_ours(one))
        return suspects(foreign, self._harmless, pids_known=self._pids_known)

    def _accuse(self, transactions: Iterable[Transaction]) -> None:
        """Suspect these less than those before: the first to break the rules has mostly done all of it."""
        self._guilty = deque((*transactions, *self._guilty), MAX_HEARD)


class LockSuspects:
    """Remembers the programs that used the lock of iptables-legacy since its tables were last known to be right.

    `own` has the pids of the programs that this process runs.
    """

    def __init__(self, own: Container[int] = ()) -> None:
        self._own = own
        self._since: deque[Process] = deque(maxlen=MAX_HOLDERS)  # the tables were last asked for
        self._before: deque[Process] = deque(maxlen=MAX_HOLDERS)  # a pass began

    def add(self, programs: Iterable[Process]) -> None:
        self._since.extend(programs)

    def acquit(self) -> None:
        """Forget the programs that used the lock since the last question, because the tables did not change."""
        self._since.clear()

    def pass_begins(self) -> None:
        self._before.extend(self._since)
        self._since.clear()

    def pass_succeeded(self) -> None:
        """Forget the programs of the time before the pass, because it has repaired and reported their changes."""
        self._before.clear()

    def culprits(self) -> tuple[Culprit, ...]:
        """Return the programs that may have changed the tables, each once, the latest last."""
        seen = {one.pid: one for one in (*self._before, *self._since)}
        foreign = [one for one in seen.values() if one.pid not in self._own]
        return tuple(map(culprit_of, foreign[-MAX_NAMED:]))


class EventFilter:
    """Decides which commits to nf_tables need a pass of one family, by the fingerprints that a detector reads.

    `ports` has the netlink ports of this process and of the programs that it runs.
    """

    def __init__(self, detector: ChangeDetector, own_pids: bool | None = None, ports: Container[int] = ()) -> None:
        self._detector = detector
        self._own_pids = in_initial_pid_namespace() if own_pids is None else own_pids
        self._ports = ports
        self.suspects = SuspectTracker(self._is_ours, pids_known=self._own_pids)
        self._seen: Fingerprint = ()  # the fingerprints read last

    def needs_pass(self, transactions: Iterable[Transaction], lost: bool, verified: int) -> bool:
        """Return True if commits after the generation `verified` may have changed what a pass reads.

        `lost` is True if some events are missing. What the daemon committed, and what came before, is known.
        """
        self.suspects.add(one for one in transactions if one.after(verified))
        return bool(self.suspects.undecided or lost) and not self.are_irrelevant()

    def are_irrelevant(self) -> bool:
        """Return True if the undecided commits changed nothing that a pass reads; False if that cannot be found out."""
        before = self._seen
        if not before:
            return False
        try:
            self._seen = self._detector.fingerprint_again(before)
        except MasqError:
            return False  # a pass meets the same error and reports it
        if self._seen == before:
            self.suspects.acquit()
            return True
        self.suspects.convict(self._detector.generation())
        return False

    def can_be_dropped(self) -> bool:
        """Return True if no pending commit needs a pass: all are of this process, or all are irrelevant."""
        if self.suspects.broken:
            return False
        if all(self._detector.made(one.generation) for one in self.suspects.undecided):
            self.suspects.undecided.clear()
            return True
        return self.are_irrelevant()

    def verified(self, generation: int | None, seen: Fingerprint) -> None:
        """A pass found all right in that generation, with these fingerprints."""
        self.suspects.forget(generation)
        self._seen = seen

    def _is_ours(self, transaction: Transaction) -> bool:
        """Made by a reconciler of this process, in a write that succeeded or failed."""
        if self._detector.made(transaction.generation) or transaction.port in self._ports:
            return True
        return self._own_pids and Path(f"/proc/self/task/{transaction.pid}").exists()


def _unit(cgroup: str) -> str:
    """Return the unit: systemd names its cgroup after it (cgroup v2 has one line, "0::PATH")."""
    parts = [part for line in cgroup.splitlines() for part in line.rsplit(":", 1)[-1].split("/")]
    return next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")


def _shown(text: str) -> str:
    """Return a text that a process chose, escaped and shortened for a log line."""
    return printable(text.strip(), _MAX_SHOWN)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
