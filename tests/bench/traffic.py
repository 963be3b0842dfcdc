"""New flows through a site while its rules are damaged: see traffic_program."""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from flanneld_masq.model import SLOTS
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import ROUTER, SYSCTLS, batch

from .clock import DEADLINE, BenchError, pause, until
from .site import Site
from .traffic_program import DEVICE

_HARDWARE = "02:00:00:00:00:01"
_UDP_SECONDS = 60  # a flow that goes on keeps its entry; those of this bench send twice
# A rule that no damage of the bench removes. Without it the kernel stops tracking connections when the last rule that
# needs them is removed, and forgets all flows. On a node some other rule needs them.
_TRACK = ("iptables-legacy", "-w", "-t", "mangle", "-A", "PREROUTING", "-m", "conntrack", "--ctstate", "INVALID")
_FLOWS = 600_000  # the most of a stream: ten minutes
_streams = itertools.count()
STEADY = 100  # flows before the first damage
STUCK_AFTER_SECONDS = 1.0


@dataclass(frozen=True, **SLOTS)
class Counts:
    """Flows since the start: `wrong` left with the pod's address, and of these `stuck` did once more at the end. `late`
    is the longest time in seconds by which a flow was sent too late, for the machine was busy."""

    sent: int
    arrived: int
    wrong: int
    again: int
    stuck: int
    late: float

    @property
    def lost(self) -> int:
        return self.sent - self.arrived


class Traffic:
    """A running stream of new flows."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name

    def counts(self) -> Counts:
        self._stdin.write("\n")
        self._stdin.flush()
        return self._answer()

    def finish(self) -> Counts:
        """Wait a second, stop, and send one more datagram of each flow that left with the pod's address."""
        pause(STUCK_AFTER_SECONDS)
        self._stdin.close()
        return self._answer()

    def until_steady(self) -> None:
        until(lambda: self.counts().arrived >= STEADY, f"{self._name}: flows arrive", every=0.02)

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _answer(self) -> Counts:
        stdout = self._process.stdout
        if stdout is None or not select.select([stdout], [], [], DEADLINE)[0]:
            raise BenchError(f"{self._name}: the sender of flows says nothing")
        line = stdout.readline()
        if not line:
            raise BenchError(f"{self._name}: the sender of flows ended")
        return Counts(**json.loads(line))


class Wire:
    """Joins a site to a namespace that takes all of its packets. Made once for each site."""

    def __init__(self, site: Site) -> None:
        self._site, self._sink = site, f"{site.name}-sink"
        self._run = ProcessRunner()
        with ExitStack() as undo:
            batch(self._run, [f"netns add {self._sink}"])
            undo.callback(batch, self._run, [f"netns del {self._sink}"])
            sink = Netns(self._sink)
            undo.callback(sink.close)
            site.netns.sysctl({**SYSCTLS, **ROUTER, "netfilter/nf_conntrack_udp_timeout": _UDP_SECONDS})
            sink.sysctl(SYSCTLS)
            # Without ARP a packet goes to the device's own hardware address, which is that of its peer, too.
            link = f"link add {DEVICE} address {_HARDWARE} netns {site.name} type veth"
            batch(self._run, [f"{link} peer name {DEVICE} address {_HARDWARE} netns {self._sink}"])
            # Else its end in the site vanishes later than the other end, and may be in the way of the next wire.
            undo.callback(site.run, "ip", "link", "delete", DEVICE)
            up = ["link set lo up", f"link set {DEVICE} arp off up"]
            for host, more in ((sink, []), (site.netns, [f"address add 192.0.2.1/24 dev {DEVICE}", _DEFAULT])):
                with host.entered():
                    batch(self._run, [*up, *more])
            site.run(*_TRACK)
            self._undo = undo.pop_all()

    @contextmanager
    def traffic(self) -> Iterator[Traffic]:
        """Start new flows. The program that sends them ends with the block."""
        first = str(next(_streams) * _FLOWS)
        argv = (sys.executable, "-m", "tests.bench.traffic_program", self._site.name, self._sink, first)
        with (self._site.directory / "traffic.log").open("ab") as errors:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process:
            try:
                traffic = Traffic(process, str(self._site))
                traffic.until_steady()
                yield traffic
            finally:
                process.kill()

    def close(self) -> None:
        self._undo.close()


_DEFAULT = f"route add default dev {DEVICE}"
