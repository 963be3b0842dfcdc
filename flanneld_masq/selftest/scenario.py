"""Tests one backend with the real daemon, in the node of a topology.

First every class of packets (`packet_cases`) is compared with the policy, then each damage (`fault_injection`) must be
repaired, at last the daemon must end cleanly.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable, Optional

from flanneld_masq.errors import CommandError, MasqError
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import SLOTS, Address, Family, Lease, Probe, Protection, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import packet_cases, packets
from flanneld_masq.selftest.commit_log import Commits
from flanneld_masq.selftest.daemon import Daemon, SelftestError, until
from flanneld_masq.selftest.fault_injection import PROGRAMS, TABLE, InjectionError, tools
from flanneld_masq.selftest.netns import DIRECTORY
from flanneld_masq.selftest.packet_cases import Case
from flanneld_masq.selftest.report import Repaired, Result, Sent
from flanneld_masq.selftest.speed import Limits
from flanneld_masq.selftest.topology import Addresses, Topology

_SUBNET_CHANGED = "subnet file changed"

_Listing = dict[Family, tuple[str, ...]]


@dataclass(frozen=True, **SLOTS)
class _Truth:
    """The settings and leases that the daemon was given; the expected packets follow from them."""

    settings: Settings
    leases: tuple[Lease, ...]


class Scenario:
    """One backend, for all families that it can be used for, with one daemon.

    `tell` is called after each step: with its name, True if it went well, and details.
    """

    def __init__(
        self,
        backend: str,
        probes: Mapping[Family, Probe],
        addresses: tuple[Addresses, ...],
        topology: Topology,
        run: ProcessRunner,
        limits: Limits,
        tell: Callable[[str, bool, str], None],
    ) -> None:
        self._backend = backend
        self._probes = probes
        self._addresses = addresses
        self._topology = topology
        self._tell = tell
        self._limits = limits
        self._daemon = Daemon(topology.node, DIRECTORY / backend, run, limits)
        families = [entry.family for entry in addresses]
        self._tools = {family: known for family in families if (known := tools(backend, family, run))}
        self._sent: dict[Family, list[Sent]] = {family: [] for family in families}
        self._repaired: dict[Family, list[Repaired]] = {family: [] for family in families}
        self._problems: list[str] = []

    def results(self) -> dict[Family, Result]:
        """Do all steps. The results tell what failed."""
        try:
            self._all()
        except MasqError as error:
            self._check("the scenario", False, f"{error}; the daemon said last: {self._daemon.said()}")
        return {
            family: Result(
                self._backend,
                family,
                self._probes[family],
                tuple(self._sent[family]),
                tuple(self._repaired[family]),
                tuple(self._problems),
            )
            for family in self._sent
        }

    def _all(self) -> None:
        with self._topology.node.entered():
            for backend_tools in self._tools.values():
                backend_tools.add_foreign()
        foreign = self._foreign()
        try:
            truth = self._start()
            verified_state = self._ours()
            self._send_all("packets", truth)
            self._send_exceptions(verified_state)
            with self._topology.node.entered():
                self._commits = Commits()
            with contextlib.closing(self._commits):
                for of in self._addresses:
                    for name in self._tools[of.family].damages if of.family in self._tools else ():
                        self._sabotage(of, name, truth, verified_state)
                    self._change_subnet(of, truth, verified_state)
            if all(probe.protection is Protection.PERSIST for probe in self._probes.values()):
                self._protect(verified_state)
            self._stop(verified_state, foreign)
        finally:
            self._daemon.kill()

    def _start(self) -> _Truth:
        daemon = self._daemon
        truth = _Truth(daemon.configure(self._backend), daemon.lease(self._subnet_lines()))
        daemon.start()
        took = self._until(daemon.synced, "the daemon brings its rules into the kernel")
        self._check("daemon started", True, f"in sync after {took * 1000:.0f} ms")
        return truth

    def _until(self, condition: Callable[[], bool], what: str) -> float:
        return until(condition, what, deadline=self._limits.wait)

    # ---- packets

    def _send_all(self, what: str, truth: _Truth) -> None:
        for of in self._addresses:
            sent = [
                self._send(case, transport, of, truth)
                for case in packet_cases.cases(of)
                for transport in case.transports
            ]
            self._sent[of.family] += sent
            wrong = [packet for packet in sent if not packet.ok]
            share = f"{len(sent) - len(wrong)} of {len(sent)} as expected"
            self._tell(f"{self._backend}, {of.family}, {what}", not wrong, share)
            for packet in wrong:
                self._tell("    packet", False, str(packet))

    def _send(self, case: Case, transport: str, of: Addresses, truth: _Truth) -> Sent:
        send = packets.udp if transport == "UDP" else packets.tcp
        hosts = {
            "pod": self._topology.pod,
            "node": self._topology.node,
            "remote": self._topology.remote,
            "outside": self._topology.outside,
        }
        expected = packet_cases.expect(truth.settings, truth.leases, of, case.packet)
        observed: Optional[Address] = None
        problem = ""
        try:
            sender, receiver = hosts[case.sender], hosts[case.receiver]
            observed = send(sender, receiver, case.packet, device=case.device, deadline=self._limits.packet)
        except packets.PacketError as error:
            problem = str(error)
        return Sent(case, transport, expected, observed, problem)

    def _send_exceptions(self, verified_state: _Listing) -> None:
        """Send the same packets with settings that let pods keep their address on the way to some destinations."""
        ranges = [str(packet_cases.excepted(of)) for of in self._addresses]
        listed = ", ".join(f'"{network}"' for network in ranges)
        settings = self._daemon.configure(
            self._backend, masquerade=f"non_masquerade_cidrs = [{listed}]\nmasquerade_link_local = false\n"
        )
        self._daemon.nudge()
        self._until(lambda: self._mentions(ranges), "new settings come into force")
        self._send_all(
            "packets with exceptions", _Truth(settings, self._daemon.lease(self._subnet_lines(), write=False))
        )
        self._daemon.configure(self._backend)
        self._daemon.nudge()
        self._until(lambda: self._ours() == verified_state, "the former settings come into force again")

    # ---- damage

    def _sabotage(self, of: Addresses, name: str, truth: _Truth, verified_state: _Listing) -> None:
        foreign = self._foreign()

        def damage() -> None:
            with self._topology.node.entered():
                self._tools[of.family].damages[name]()

        self._repair(of, name, truth, damage, lambda: self._ours() == verified_state)
        if self._foreign() != foreign:
            self._check(f"{of.family}, {name}", False, "the rules of others are not what they were")

    def _change_subnet(self, of: Addresses, truth: _Truth, verified_state: _Listing) -> None:
        new = _Truth(truth.settings, self._daemon.lease(self._subnet_lines(of), write=False))

        def change() -> None:
            self._daemon.lease(self._subnet_lines(of))

        self._repair(of, _SUBNET_CHANGED, new, change, lambda: self._mentions([str(of.next_subnet)]))
        self._daemon.lease(self._subnet_lines())
        self._until(lambda: self._ours() == verified_state, "the former subnet is back in the rules")

    def _repair(
        self, of: Addresses, name: str, truth: _Truth, damage: Callable[[], None], right: Callable[[], bool]
    ) -> None:
        milliseconds: Optional[float] = None
        try:
            milliseconds = self._time(damage, right) * 1000
            sent = [self._send(case, "UDP", of, truth) for case in packet_cases.cases(of)]
            problem = "; ".join(str(packet) for packet in sent if not packet.ok)
        except MasqError as error:
            problem = str(error)
        self._repaired[of.family].append(Repaired(name, milliseconds, problem))
        detail = problem or f"right again after {milliseconds:.1f} ms"
        self._tell(f"{self._backend}, {of.family}, {name}", not problem, detail)

    def _time(self, damage: Callable[[], None], right: Callable[[], bool]) -> float:
        """Do the damage; return the seconds until the rules were right again.

        Where the kernel reports changes, the time runs from the first change by a tool of the self-test to the last one
        by another program. Otherwise it runs from the end of the damage to the listing that showed the right rules.
        """
        before = time.monotonic()
        damage()
        damaged = listed = time.monotonic()
        pause = threading.Event()
        while not right():
            if listed > damaged + self._limits.repair:
                limit, said = self._limits.repair, self._daemon.said()
                raise SelftestError(f"the rules are not back within {limit:g} s; last output of the daemon: {said}")
            pause.wait(0.001)
            listed = time.monotonic()
        commits = self._commits.since(before)
        damages = [commit.moment for commit in commits if commit.program in PROGRAMS]
        repairs = [commit.moment for commit in commits if commit.program not in PROGRAMS]
        return (repairs[-1] if repairs else listed) - (damages[0] if damages else damaged)

    def _protect(self, verified_state: _Listing) -> None:
        """Check that no damage succeeds while the tables are protected."""
        self._daemon.configure(self._backend, protect=True)
        self._daemon.nudge()
        self._until(self._owned, "the tables are protected")
        protected, succeeded = self._ours(), []
        for family, known in self._tools.items():
            for name, damage in known.damages.items():
                with self._topology.node.entered(), contextlib.suppress(CommandError, InjectionError):
                    damage()
                if self._ours() != protected:
                    succeeded.append(f"{family}, {name}")
        self._check("protected tables", not succeeded, ", ".join(succeeded) or "no other program can change them")
        self._daemon.configure(self._backend)
        self._daemon.nudge()
        self._until(lambda: self._ours() == verified_state, "the tables are unprotected again")

    def _owned(self) -> bool:
        with self._topology.node.entered(), contextlib.closing(Nfnetlink()) as netlink:
            tables = [netlink.table(family, TABLE) for family in self._tools]
        return all(table is not None and table.owner for table in tables)

    # ---- the end

    def _stop(self, verified_state: _Listing, foreign: _Listing) -> None:
        took = self._daemon.stop()
        same = self._ours() == verified_state
        self._check("SIGTERM", same, f"{took * 1000:.0f} ms; the rules {'stay' if same else 'are not what they were'}")
        self._daemon.command("cleanup")
        left = [line for lines in self._ours().values() for line in lines]
        self._check("cleanup", not left, f"left behind: {left}" if left else "no rule of flanneld-masq is left")
        same = self._foreign() == foreign
        self._check("rules of others", same, "as before" if same else f"before {foreign}, now {self._foreign()}")

    # ---- the rules in the kernel

    def _check(self, what: str, ok: bool, detail: str) -> None:
        """Report a step that concerns the daemon as a whole; a failure becomes one of the problems."""
        self._tell(f"{self._backend}, {what}", ok, detail)
        if not ok:
            self._problems.append(f"{what}: {detail}")

    def _ours(self) -> _Listing:
        with self._topology.node.entered():
            return {family: backend_tools.ours() for family, backend_tools in self._tools.items()}

    def _foreign(self) -> _Listing:
        with self._topology.node.entered():
            return {family: backend_tools.foreign() for family, backend_tools in self._tools.items()}

    def _mentions(self, words: list[str]) -> bool:
        text = "\n".join(line for lines in self._ours().values() for line in lines)
        return all(word in text for word in words)

    def _subnet_lines(self, changed: Optional[Addresses] = None) -> str:
        lines = [of.subnet_lines(of.next_subnet if of is changed else None) for of in self._addresses]
        return "".join(lines) + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
