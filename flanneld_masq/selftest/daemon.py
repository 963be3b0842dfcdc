"""Runs the real daemon with files of its own, in a namespace of the self-test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Lease, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest.netns import Netns, spawn
from flanneld_masq.selftest.speed import Limits


class SelftestError(MasqError):
    """A condition that the self-test waited for did not become true in time."""


def until(condition: Callable[[], bool], what: str, *, deadline: float) -> float:
    """Poll `condition` until it is true; return the seconds taken. Raises SelftestError after `deadline` seconds."""
    started = time.monotonic()
    pause = threading.Event()
    while not condition():
        if time.monotonic() - started > deadline:
            raise SelftestError(f"{what}: not within {deadline:g} s")
        pause.wait(0.001)
    return time.monotonic() - started


class Daemon:
    """flanneld-masq with files of its own, in one namespace. Its output goes to a file."""

    def __init__(self, host: Netns, directory: Path, run: ProcessRunner, limits: Limits) -> None:
        self.subnet_file = directory / "subnet.env"
        self.config_file = directory / "config.toml"
        self._state = directory / "state"
        self._log = directory / "log"
        self._host = host
        self._run = run
        self._limits = limits
        self._started: Optional[subprocess.Popen[bytes]] = None
        directory.mkdir()

    def write(self, path: Path, text: str) -> None:
        """Replace a file as flannel does: by rename."""
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    def configure(self, backend: str, *, masquerade: str = "", protect: bool = False) -> Settings:
        """Write the configuration file. Without `protect`, other programs can damage the tables of nft."""
        text = (
            f'backend = "{backend}"\n'
            f'subnet_files = ["{self.subnet_file}"]\n'
            f'net_conf = "{self.config_file.with_name("net-conf.json")}"\n'
            f'state_directory = "{self._state}"\n'
            f"[nft]\nprotect = {str(protect).lower()}\n"
            f"[masquerade]\n{masquerade}"
            "[reconcile]\nresync_seconds = 3600\n"  # no repair must be owed to the resync
            "[dbus]\nenabled = false\n"
        )
        self.write(self.config_file, text)
        return config.parse(text, str(self.config_file))

    def lease(self, text: str, *, write: bool = True) -> tuple[Lease, ...]:
        if write:
            self.write(self.subnet_file, text)
        return (subnet_env.parse(text.encode(), str(self.subnet_file)),)

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._started = spawn(self._host.argv(*self._argv("run")), output=log)

    def synced(self) -> bool:
        if self._process.poll() is not None:
            raise SelftestError(f"the daemon ended with exit status {self._process.returncode}")
        try:
            status = json.loads((self._state / "status.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(status.get("state") == "synced" and status.get("pid") == self._process.pid)

    def nudge(self) -> None:
        """Have the daemon read the configuration and check the kernel now."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> float:
        """End the daemon as systemd does; return the seconds taken."""
        self._process.terminate()
        took = until(lambda: self._process.poll() is not None, "SIGTERM ends the daemon", deadline=self._limits.stop)
        if self._process.returncode != 0:
            raise SelftestError(f"after SIGTERM the daemon ended with exit status {self._process.returncode}")
        return took

    def kill(self) -> None:
        """Kill the daemon, if it was started."""
        if self._started is not None:
            self._started.kill()
            self._started.wait()

    def command(self, *arguments: str) -> str:
        return self._run(self._host.argv(*self._argv(*arguments))).stdout

    def said(self, lines: int = 4) -> str:
        if not self._log.exists():
            return "nothing"
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        if self._started is None:
            raise SelftestError("the daemon was not started")
        return self._started

    def _argv(self, *arguments: str) -> tuple[str, ...]:
        return (*program(), "--config", str(self.config_file), *arguments)


def program() -> tuple[str, ...]:
    """Return the command that runs this very package, in whatever place Python found it, and loads from no other place
    than this process does."""
    places = [str(Path(place).resolve()) for place in sys.path if place or Path.cwd().is_dir()]
    start = f"import sys; sys.path[:] = {places!r}; import flanneld_masq.__main__"
    return (sys.executable, "-I", "-c", start)
