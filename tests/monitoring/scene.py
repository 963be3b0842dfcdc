"""Two and a half minutes in the life of a node: pods connect, programs remove rules, an administrator mistypes."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

from flanneld_masq.errors import MasqError
from flanneld_masq.model import Packet
from flanneld_masq.selftest.packets import PacketError, Wire

from ..bench.clock import pause, until
from ..bench.site import Site

SECONDS = 150
PORT = 9817
BACKEND = "iptables-nft"  # its rules count packets
_MORE = f"[reconcile]\nresync_seconds = 2\n[metrics]\nport = {PORT}\n"
_PACKETS_EACH_SECOND = 4
# As on every node of Kubernetes: a rule of another program keeps connection tracking on while the daemon's are missing.
_TRACKED = ("iptables-nft", "-w", "-A", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
_FLUSH = ("iptables-nft", "-w", "-t", "nat", "-F", "FLANNELD-MASQ")
_DELETE = ("nft", "flush", "chain", "ip", "nat", "POSTROUTING")
WHAT_HAPPENS = (
    "One node, scraped every second by Debian's Prometheus. At 20 to 50 s iptables and nft remove rules now and then,",
    "at 60 to 80 s iptables does it all the time. At 95 to 110 s the configuration is invalid; at 125 to 140 s the",
    "daemon is stopped. Pods begin four connections a second all the time.",
)


@contextmanager
def node() -> Iterator[tuple[Site, Wire]]:
    """A site whose daemon serves metrics, on a wire."""
    site = Site("monitoring", BACKEND, 0)
    try:
        with Wire(prefix="monitoring-") as wire:
            own, site.netns = site.netns, wire.node
            site.config.write_text(site.config.read_text() + _MORE)
            site.run(*_TRACKED)
            yield site, wire
            if site.process is not None:
                site.process.kill()
                site.process.wait()
                site.process = None
            site.netns = own
    finally:
        site.close()


def progress(text: str) -> None:
    print(f"monitoring: {text}", file=sys.stderr, flush=True)


class Scene:
    """The events, second by second."""

    def __init__(self, site: Site, wire: Wire) -> None:
        self._site, self._wire = site, wire
        self._good = site.config.read_text()

    def play(self) -> None:
        began = time.monotonic()
        for second in range(SECONDS):
            if second % 10 == 0:
                progress(f"second {second} of {SECONDS}")
            self._happen(second)
            for part in range(_PACKETS_EACH_SECOND):
                self._connect(second * _PACKETS_EACH_SECOND + part)
            pause(began + second + 1 - time.monotonic())

    def _happen(self, second: int) -> None:
        if 20 <= second < 50 and second % 6 == 2:
            self._site.run(*(_FLUSH if second % 12 == 2 else _DELETE))
        if 60 <= second < 80:
            self._fight()
        if second == 95:
            self._reload(self._good + 'nonsense = "yes"\n')
        if second == 110:
            self._reload(self._good)
        if second == 125:
            self._site.stop()
        if second == 140:
            self._site.start()
            until(self._site.synced, "the daemon is in sync")

    def _fight(self) -> None:
        """Remove the rules as often as a second allows."""
        ends = time.monotonic() + 0.5
        while time.monotonic() < ends:
            self._site.run(*_FLUSH)

    def _reload(self, text: str) -> None:
        self._site.config.write_text(text)
        if self._site.process is not None:
            self._site.process.send_signal(signal.SIGHUP)

    def _connect(self, number: int) -> None:
        source, target = f"10.244.1.{5 + number % 200}", f"198.51.100.{1 + number % 250}"
        with contextlib.suppress(PacketError, MasqError):
            self._wire.observe(Packet(ip_address(source), ip_address(target)), deadline=0.05)
