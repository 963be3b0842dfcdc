"""Measures one real daemon, in a network namespace, through the events that a fleet meets."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

from ..bench.clock import DEADLINE, BenchError, now, pause, progress, until
from ..bench.site import OTHER_SUBNET, SUBNET, Site
from ..bench.usage import usage_of
from .journal import Journal
from .model import Cost

REST_SECONDS = 3.0  # after an event, for all that it has the daemon do: the check of foreign rules comes last
_METRICS = '[metrics]\ntextfile = "{}"\n'
_BAD = '[masquerade]\nposition = "middle"\n'
# What flanneld writes when it starts in iptables mode, as one transaction of iptables-restore.
_FLANNEL_RULES = """\
*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"""
# Exit statuses other than 0 that are no failure: doctor may find problems of the measuring site, or be unable to tell.
_STATUSES = {"doctor": (0, 1, 2)}
_UNDO = ("iptables-nft", "-w", "-t", "nat", "-F", "FLANNELD-MASQ")


@dataclass(frozen=True, **SLOTS)
class Measured:
    """Costs on one node. `idle` is for a second, `undone` for one undoing of many, `undone_lines` the journal entries
    of all `undoings`. `metrics` and `compressed` are bytes of a scrape."""

    idle: Cost
    start: Cost
    role: Cost
    check: Cost
    refused: Cost
    restart_refused: Cost
    flannel: Cost
    lease: Cost
    drift: Cost
    undone: Cost
    undoings: int
    undone_lines: int
    metrics: int
    compressed: int


class Node:
    """One daemon to measure, and the journal that it writes to."""

    def __init__(self, site: Site, journal: Journal) -> None:
        self.site, self.journal = site, journal
        self._good = site.config.read_text() + _METRICS.format(site.directory / "metrics.prom")
        site.config.write_text(self._good)
        journal.expect_from(site.log)

    def measure(self, idle_seconds: float, undoings: int) -> Measured:
        """Go through all events. Both arguments say how long: seconds without an event, and undoings, one a second."""
        start = self._start()
        role = self._role()
        metrics = (self.site.directory / "metrics.prom").read_bytes()
        idle = self._idle(idle_seconds)
        flannel, lease, drift = self._flannel(), self._lease(), self._drift()
        check, refused = self._bad_file()
        undone, lines = self._undone(undoings)
        self.site.stop()
        return Measured(
            idle=idle,
            start=start,
            role=role,
            check=check,
            refused=refused,
            restart_refused=self._restart_refused(),
            flannel=flannel,
            lease=lease,
            drift=drift,
            undone=undone.times(1 / undoings),
            undoings=undoings,
            undone_lines=lines,
            metrics=len(metrics),
            compressed=len(zlib.compress(metrics, 6)),
        )

    # ---- events

    def _start(self) -> Cost:
        progress("fleet: the daemon starts")
        self.site.start()
        self.site.until_synced()
        pause(REST_SECONDS)
        used = usage_of(self.site.pid)
        return Cost(self.journal.entries, self.journal.size, used.cpu + used.children)

    def _role(self) -> Cost:
        """The commands that the Ansible role runs on a node in a first rollout with a takeover."""
        progress("fleet: the commands of the role")
        wait = ("wait", "--timeout", "60")
        verify = (wait, ("plan",), ("doctor", "--json"))
        commands = (("check",), ("check",), ("plan",), ("doctor", "--json"), *verify * 3, ("cleanup", "--flannel"))
        return sum((self._command(*command, allowed=_STATUSES.get(command[0], (0,))) for command in commands), Cost())

    def _idle(self, seconds: float) -> Cost:
        progress(f"fleet: nothing happens for {seconds:g} s")
        cost = self._cost(lambda: pause(seconds), lambda: True)
        return cost.times(1 / (seconds + REST_SECONDS))

    def _flannel(self) -> Cost:
        """flanneld writes the same subnet file again, and its own rules."""
        progress("fleet: flannel restarts")

        def restart() -> None:
            self.site.write_subnet(SUBNET)
            self.site.run("iptables-nft-restore", "--noflush", stdin=_FLANNEL_RULES)

        return self._cost(restart, lambda: True)

    def _lease(self) -> Cost:
        progress("fleet: flannel writes another subnet")
        cost = self._cost(lambda: self._write(OTHER_SUBNET), self._logged("rules applied"))
        self._cost(lambda: self._write(SUBNET), self._logged("rules applied"))
        return cost

    def _drift(self) -> Cost:
        progress("fleet: a program removes the rules once")
        repairs = self.site.repairs()
        return self._cost(self._undo, lambda: self.site.repairs() > repairs)

    def _bad_file(self) -> tuple[Cost, Cost]:
        """The reload by systemctl, whose check fails, and the one by a bare SIGHUP."""
        progress("fleet: a bad configuration")
        self.site.config.write_text(self._good + _BAD)
        check = self._command("check", allowed=(2,))
        refused = self._cost(self._reload, self._logged("position"))
        self.site.config.write_text(self._good)
        self._cost(self._reload, self._logged("reload"))
        return check, refused

    def _undone(self, number: int) -> tuple[Cost, int]:
        progress(f"fleet: a program removes the rules each second, {number} times")
        entries = self.journal.entries

        def undo_all() -> None:
            started = now()
            for turn in range(number):
                pause(started + turn - now())
                self._undo()

        cost = self._cost(undo_all, self.site.synced)
        return cost, self.journal.entries - entries

    def _restart_refused(self) -> Cost:
        """A restart with a bad configuration: the daemon refuses to start, and its rules stay."""
        progress("fleet: a restart with a bad configuration")
        self.site.config.write_text(self._good + _BAD)
        entries, size, used = self.journal.entries, self.journal.size, _cpu_of_children()
        self.site.start()
        assert self.site.process is not None
        self.site.process.wait()
        until(lambda: self.journal.entries > entries, "the daemon says why it does not start")
        return Cost(self.journal.entries - entries, self.journal.size - size, _cpu_of_children() - used)

    # ---- how

    def _cost(self, act: Callable[[], None], done: Callable[[], bool]) -> Cost:
        """Return what the daemon spends from before `act` until it is done and rests."""
        pause(REST_SECONDS)
        self._first = entries = self.journal.entries
        size, before = self.journal.size, usage_of(self.site.pid)
        act()
        until(done, "the daemon reacts", every=0.01)
        pause(REST_SECONDS)
        used = usage_of(self.site.pid).since(before)
        return Cost(self.journal.entries - entries, self.journal.size - size, used.cpu + used.children)

    def _logged(self, word: str) -> Callable[[], bool]:
        return lambda: any(word in message for message in self.journal.messages(self._first))

    def _command(self, *argv: str, allowed: Sequence[int]) -> Cost:
        """Run a command of flanneld-masq on the node. Raises BenchError for an exit status that is not allowed."""
        used = _cpu_of_children()
        program = (sys.executable, "-m", "flanneld_masq", "--config", str(self.site.config), *argv)
        with self.site.entered():
            done = subprocess.run(
                program,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=self.site.environment,
                timeout=DEADLINE,
            )
        if done.returncode not in allowed or ("--json" in argv and not done.stdout):  # a crash is status 1, too
            raise BenchError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
        return Cost(cpu=_cpu_of_children() - used)

    def _write(self, text: str) -> None:
        self.site.write_subnet(text)

    def _reload(self) -> None:
        os.kill(self.site.pid, signal.SIGHUP)

    def _undo(self) -> None:
        self.site.run(*_UNDO)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
