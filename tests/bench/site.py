"""One node to measure on: a network namespace, its files, and what runs in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.inputs import config
from flanneld_masq.process import LOCKFILE_VARIABLE, ProcessRunner
from flanneld_masq.selftest.netns import DIRECTORY, Netns, spawn

from .clock import BenchError, now, until

SUBNET = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""
# Another subnet, and one network more, so that the number of rules tells them apart as well.
OTHER_SUBNET = SUBNET.replace("10.244.1.1", "10.244.7.1").replace("10.244.0.0/16", "10.244.0.0/16,10.245.0.0/16")
_CONFIG = """\
backend = "{backend}"
subnet_files = ["{directory}/flannel/subnet.env"]
net_conf = "{directory}/net-conf.json"
state_directory = "{directory}/state"
[dbus]
enabled = false
"""
UNPROTECTED = "nft, protect = false"  # a subject; the others are backends with the default configuration
_WITHOUT_PROTECTION = "[nft]\nprotect = false\n"
_TOOL_SECONDS = 300.0


class Site:
    """`subject` is the backend that the daemon uses, or UNPROTECTED; `foreign` the number of rules of other programs.

    Each site has its own lock file of iptables-legacy, so that no tool waits for the tool of another site.
    """

    def __init__(self, name: str, subject: str, foreign: int) -> None:
        self.name, self.subject, self.foreign = name, subject, foreign
        self.backend = subject.partition(",")[0]
        self.flavour = "legacy" if self.backend == "iptables-legacy" else "nft"
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.directory = DIRECTORY / name
        self.state = self.directory / "state"
        self.subnet_file = self.directory / "flannel" / "subnet.env"
        self.config = self.directory / "config.toml"
        self.log = self.directory / "log"
        self.environment = {**os.environ, LOCKFILE_VARIABLE: str(self.directory / "xtables.lock")}
        self._runner = ProcessRunner(environ=self.environment)
        self._runner(("ip", "netns", "add", name))
        self.netns = Netns(name)
        self.subnet_file.parent.mkdir(parents=True)
        more = _WITHOUT_PROTECTION if subject == UNPROTECTED else ""
        self.config.write_text(_CONFIG.format(backend=self.backend, directory=self.directory) + more)
        self.write_subnet(SUBNET)

    def __str__(self) -> str:
        return f"{self.subject}, {self.foreign:,} foreign rules"

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self.netns.entered():
            yield

    def run(self, *argv: str, stdin: str = "") -> str:
        """Run a program in the namespace, to its end; what it printed."""
        with self.entered():
            return self._runner(argv, stdin=stdin, timeout=_TOOL_SECONDS).stdout

    def spawn(self, argv: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program in the namespace. The kernel ends it with the bench."""
        lock = f"{LOCKFILE_VARIABLE}={self.environment[LOCKFILE_VARIABLE]}"
        with self.entered():
            return spawn(("env", lock, *argv), output=output)

    def write_subnet(self, text: str) -> float:
        """Replace the subnet file the way that flannel does; the moment just before the rename."""
        fresh = self.subnet_file.with_suffix(".new")
        fresh.write_text(text)
        moment = now()
        fresh.replace(self.subnet_file)
        return moment

    # ---- the daemon

    def start(self) -> float:
        """Start the daemon; the moment just before that."""
        with self.log.open("ab") as log:
            moment = now()
            self.process = self.spawn(self._argv("run"), log)
        return moment

    def ask_to_stop(self) -> subprocess.Popen[bytes]:
        """As systemd does it."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        return process

    def stop(self) -> None:
        process = self.ask_to_stop()
        until(lambda: process.poll() is not None, f"{self}: SIGTERM ends the daemon")
        self.process = None

    def cleanup(self) -> None:
        """Remove the daemon's rules. Only while no daemon runs."""
        self.run(*self._argv("cleanup"))

    @property
    def pid(self) -> int:
        return self._running().pid

    def status(self) -> dict[str, Any]:
        """Return the IPv4 status of the running daemon; empty before its first one. Raises BenchError if it ended."""
        process = self._running()
        if process.poll() is not None:
            raise BenchError(f"{self}: the daemon ended with status {process.returncode}: {self.said()}")
        try:
            status = json.loads((self.state / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return dict(status["families"]["ipv4"]) if status["pid"] == process.pid else {}

    def synced(self) -> bool:
        return self.status().get("state") == "synced"

    def until_synced(self) -> None:
        until(self.synced, f"{self}: the daemon is in sync; it said: {self.said()}")

    def repairs(self) -> int:
        return int(self.status().get("repairs", 0))

    def last_write(self) -> str:
        """The time of the daemon's last write; empty for none."""
        status = self.status()
        return max(str((status.get(kind) or {}).get("time", "")) for kind in ("last_repair", "last_write"))

    def last_repair_seconds(self) -> float:
        """How long the daemon was about its last repair."""
        return float((self.status().get("last_repair") or {}).get("duration_us", 0)) / 1e6

    def culprits(self) -> frozenset[str]:
        """The names of the programs that the daemon holds responsible for its last repair."""
        last = self.status().get("last_repair") or {}
        return frozenset(str(culprit["name"]) for culprit in last.get("culprits", ()))

    def said(self, lines: int = 4) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def close(self) -> None:
        """The kernel removes the rules with the namespace."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.netns.close()
        self._runner(("ip", "netns", "del", self.name))

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise BenchError(f"{self}: no daemon was started")
        return self.process

    def _argv(self, command: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "flanneld_masq", "--config", str(self.config), command)


def can_protect() -> bool:
    """Return True if this version of the daemon has the setting nft.protect."""
    path = DIRECTORY / "protect.toml"
    path.write_text(_WITHOUT_PROTECTION)
    try:
        config.load(path)
    except MasqError:
        return False
    return True
