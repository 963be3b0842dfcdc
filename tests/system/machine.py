"""A Debian system with systemd, D-Bus and journal, booted by systemd-nspawn as the node of a lab.

    machine.boot()                        # 0.3 s; again after `halt` or `poweroff`, with the same files
    machine.write_subnet()                # /run/flannel/subnet.env, as flannel writes it
    machine.systemctl("start", "flanneld-masq")
    machine.run("busctl", "list", user="nobody", check=False).stdout
    machine.path("/etc/hostname").read_text()
    machine.journal("-u", "flanneld-masq")[-1]["MESSAGE"]
    machine.site.assert_masqueraded()     # real packets from the pod, as the outside sees them

Its network namespace is the lab's node, made again at each boot, so rules end with the machine. Its processes have
pids of their own: `machine.outer_pid` tells the one that this side knows, which is also the one that the kernel
names as who committed to nf_tables.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

from flanneld_masq.process import ProcessRunner

from ..common import eventually, patience
from .cgroups import Cgroup
from .layers import Overlay
from .site import SUBNET_FILE, Site, subnet_file_text

BOOT_SECONDS = 30.0
TIMEOUT = 30.0
UNIT = "flanneld-masq.service"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
_SYSTEMD_SOCKET = "/run/systemd/private"  # of systemctl; it needs no D-Bus daemon
_POWER_OFF = signal.SIGRTMIN + 4  # to systemd as pid 1


class MachineError(AssertionError):
    """The machine, or a program in it, did not do what it should."""


class Machine:
    """One machine, not booted yet. `name` is unique among those of this test process."""

    def __init__(self, name: str, release: str, layers: Sequence[Path], directory: Path) -> None:
        self.name = name
        self.release = release
        self._run = ProcessRunner()
        self._directory = directory / name
        self._overlay = Overlay(self._directory, layers, self._run)
        self._console = self._directory / "console"
        self._site: Optional[Site] = None
        self._cgroup: Optional[Cgroup] = None
        self._nspawn: Optional[subprocess.Popen[bytes]] = None
        self._started: list[subprocess.Popen[str]] = []
        self._pid = 0  # of its pid 1

    # ---- on and off

    def boot(self, wait: bool = True) -> None:
        """Start it, and wait until all jobs of the boot are done, unless told otherwise."""
        self._site = Site(f"{self.name}-", self._run)
        self._cgroup = Cgroup(self.name)
        with self._console.open("wb") as console:
            self._nspawn = subprocess.Popen(
                self._nspawn_argv(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                preexec_fn=self._cgroup.join,
            )
        self._pid = eventually(self._find_init, BOOT_SECONDS)
        self._init = os.pidfd_open(self._pid)
        if wait:
            eventually(self._booted, BOOT_SECONDS)

    def halt(self) -> None:
        """End it at once, as if by the plug. Its files stay, its network goes."""
        with contextlib.ExitStack() as last:
            if self._site is not None:
                last.callback(self._site.close)
            if self._nspawn is not None:
                last.callback(self._nspawn.wait)
            if self._cgroup is not None:
                last.callback(self._cgroup.close)
            for process in self._started:
                last.callback(_bury, process)
            if self._pid:
                last.callback(os.close, self._init)
                # The end of its pid 1 is the end of all in it, and nspawn, its parent, buries it.
                self._end_by(signal.SIGKILL)
        self._site, self._cgroup, self._nspawn, self._pid = None, None, None, 0
        self._started = []

    def poweroff(self) -> None:
        """Have it stop all its services and end, then `halt`."""
        self._end_by(_POWER_OFF)
        self.halt()

    def close(self) -> None:
        self.halt()
        self._overlay.close()

    @property
    def site(self) -> Site:
        """Its network, while it is on."""
        assert self._site is not None, f"{self.name} is not on"
        return self._site

    # ---- in it

    def run(
        self,
        *argv: str,
        check: bool = True,
        user: str = "",
        stdin: str = "",
        timeout: float = TIMEOUT,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it to its end, as root or a user. `check`: MachineError for all but exit status 0."""
        done = subprocess.run(
            self._entering(*argv, user=user),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patience(timeout),
            env={**_ENVIRONMENT, **environ},
        )
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            raise MachineError(f"{' '.join(argv)} in {self.name}: exit status {done.returncode}: {said}")
        return done

    def start(self, *argv: str, user: str = "") -> subprocess.Popen[str]:
        """Start a program in it that goes on, its output in pipes. It ends with the machine at the latest."""
        process = subprocess.Popen(
            self._entering(*argv, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_ENVIRONMENT,
        )
        self._started.append(process)
        return process

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = TIMEOUT) -> str:
        """Return the output of `systemctl`. With the machine off it can only enable, disable and mask."""
        if not self._pid:
            return self._run(("systemctl", f"--root={self._overlay.root}", *arguments)).stdout
        return self.run("systemctl", "--no-pager", *arguments, check=check, timeout=timeout).stdout

    def show(self, name: str, unit: str = UNIT) -> str:
        """A property of a unit: ActiveState, MainPID, StatusText..."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def masq(self, *arguments: str, check: bool = True, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run flanneld-masq."""
        return self.run("flanneld-masq", *arguments, check=check, user=user)

    def status(self) -> dict[str, Any]:
        """Return the output of `flanneld-masq status --json`."""
        found: dict[str, Any] = json.loads(self.masq("status", "--json").stdout)
        return found

    def reached(self, state: str) -> None:
        """Wait until the daemon says that of itself in its status file."""

        def found() -> bool:
            try:
                status = json.loads(self.path("/run/flanneld-masq/status.json").read_text())
            except (OSError, ValueError):
                return False
            return bool(status["state"] == state)

        eventually(found)

    def outer_pid(self, pid: int) -> int:
        """The pid that a process of the machine has for this side and for the kernel's messages."""
        for path in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                line = next(line for line in path.read_text().splitlines() if line.startswith("NSpid:"))
                if line.split()[-1] == str(pid) and self._same_pids(path.parent):
                    return int(path.parent.name)
        raise MachineError(f"{self.name} has no process {pid}")

    # ---- its files

    def path(self, path: str) -> Path:
        """A file of the machine, on or off. Absolute symbolic links in it lead astray: name what they lead to."""
        root = Path(f"/proc/{self._pid}/root") if self._pid else self._overlay.root
        return root / path.lstrip("/")

    def write(self, path: str, text: str) -> Path:
        """Replace a file by rename; its directory is made."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        fresh.write_text(text)
        return fresh.replace(target)

    def configure(self, text: str = "", *, backend: str = "auto", protect: bool = False) -> None:
        """Write /etc/flanneld-masq/config.toml: the backend, then `text`. Without `protect`, other programs can damage
        the table of nft."""
        nft = "" if protect else "[nft]\nprotect = false\n"
        self.write("/etc/flanneld-masq/config.toml", f'backend = "{backend}"\n{text}\n{nft}')

    def write_subnet(self) -> None:
        """Write the subnet file that flannel would write for the subnets of the site."""
        self.write(SUBNET_FILE, subnet_file_text())

    # ---- its journal

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """The entries that `journalctl` shows: "-u", UNIT, "MESSAGE_ID=...", "--after-cursor", CURSOR..."""
        self.run("journalctl", "--sync")
        found = self.run("journalctl", "--no-pager", "--quiet", "--output=json", "--all", *arguments)
        return [json.loads(line) for line in found.stdout.splitlines()]

    def cursor(self) -> str:
        """Where the journal ends now."""
        return str(self.journal("--lines=1")[-1]["__CURSOR"])

    def logged(self, *words: str, after: str = "") -> dict[str, Any]:
        """Wait for an entry of the unit with all of these words in its message, after a cursor."""
        since = (f"--after-cursor={after}",) if after else ()

        def found() -> list[dict[str, Any]]:
            entries = self.journal(f"--unit={UNIT}", *since)
            return [entry for entry in entries if all(word in str(entry.get("MESSAGE", "")) for word in words)]

        return eventually(found)[0]

    def story(self) -> str:
        """All that it said, for who wants to know why a test failed."""
        console = self._console.read_text(errors="replace") if self._console.exists() else ""
        if not self._pid:
            return console
        told = self.run("journalctl", "--no-pager", "--output=short-precise", check=False)
        return f"{console}\n{told.stdout}{told.stderr}"

    # ---- how

    def _nspawn_argv(self) -> tuple[str, ...]:
        return (
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe"),
            f"--machine={self.name}",
            "--hostname=node",
            f"--network-namespace-path=/run/netns/{self.site.node_name}",
            "--capability=CAP_NET_ADMIN",
            f"--directory={self._overlay.root}",
        )

    def _entering(self, *argv: str, user: str) -> tuple[str, ...]:
        assert self._pid, f"{self.name} is not on"
        become = ("runuser", "-u", user, "--") if user else ()
        return ("nsenter", f"--target={self._pid}", "--all", "--", *become, *argv)

    def _find_init(self) -> int:
        """The child of nspawn that is pid 1 in a namespace; another child comes before it, and ends."""
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise MachineError(f"{self.name} ended: {self.story()}")
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if "\nNSpid:\t" + child + "\t1\n" in Path(f"/proc/{child}/status").read_text():
                    return int(child)
        return 0

    def _end_by(self, number: int) -> None:
        """Send its pid 1 a signal, and wait until it is gone."""
        assert self._nspawn is not None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, number)
        self._nspawn.wait(patience(BOOT_SECONDS))

    def _booted(self) -> bool:
        """Wait for the end of the boot. False: systemd cannot be asked yet."""
        if not self.path(_SYSTEMD_SOCKET).exists():
            return False
        found = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        return found in ("running", "degraded")

    def _same_pids(self, process: Path) -> bool:
        return (process / "ns/pid").readlink() == Path(f"/proc/{self._pid}/ns/pid").readlink()


def _bury(process: subprocess.Popen[str]) -> None:
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
