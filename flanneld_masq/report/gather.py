"""Reads what a report holds beside the answers of other commands. The edge of this package: it starts programs.

A part that cannot be had is a line of `problems`. Each program and each part is bounded in time and size.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.errors import CommandError
from flanneld_masq.inputs.text import read_start, why
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.printable import one_line
from flanneld_masq.process import ProcessRunner
from flanneld_masq.report import journal_text, saved_node
from flanneld_masq.report.redact import secrets_removed
from flanneld_masq.service.service_user import UNIT

SECONDS = 120.0  # after which no further part is begun
MAX_PART = 64 * 1024 * 1024  # characters of a part
JOURNAL_LINES = 2000
_PROGRAM_SECONDS = 10.0
_MAX_FILE = 256 * 1024
_TOOLS = (
    ("nft", "--version"),
    *((f"{name}{flavour}", "--version") for name in ("iptables", "ip6tables") for flavour in ("", "-nft", "-legacy")),
    ("ip", "-V"),
    ("ipset", "--version"),
    ("systemctl", "--version"),
)
_LIBRARIES = ("pluggy", "tomli", "watchdog", "dbus-next", "systemd-python")
_OWN_PROPERTIES = (
    "Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,ExecMainCode,NRestarts,StatusText,"
    "ActiveEnterTimestamp,InactiveEnterTimestamp,FragmentPath,DropInPaths,User,MainPID,MemoryCurrent,CPUUsageNSec,"
    "Type,NotifyAccess,WatchdogUSec,TimeoutStartUSec,CapabilityBoundingSet,AmbientCapabilities,SupplementaryGroups,"
    "ReadWritePaths,ProtectSystem,NeedDaemonReload"
)
_PROPERTIES = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,ActiveEnterTimestamp"
_UNITS = (  # that may change rules
    *("flanneld", "kubelet", "k3s", "k3s-agent", "rke2-server", "rke2-agent", "containerd", "crio", "docker"),
    *("firewalld", "ufw", "nftables", "iptables", "ip6tables", "netfilter-persistent", "libvirtd", "tailscaled"),
    *("NetworkManager", "systemd-networkd", "systemd-sysctl"),
)
_MODULES = ("nf_", "nft_", "nfnetlink", "ip_tables", "ip6_tables", "iptable_", "ip6table_", "x_tables", "xt_", "ip_set")
_MORE_MODULES = ("br_netfilter", "bridge", "vxlan", "wireguard", "ip_vs")


class Gatherer:
    """Makes parts. `root` is the directory that stands for /, `clock` gives seconds."""

    def __init__(self, run: ProcessRunner, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._root = root
        self._clock = clock
        self._deadline = clock() + SECONDS
        self.problems: list[str] = []

    def part(self, name: str, make: Callable[[], str]) -> str:
        """Return a part, empty if it cannot be had; then a problem says why. It raises nothing but what ends the
        process."""
        if self._clock() > self._deadline:
            self.problem(f"{name}: left out, because the report took longer than {SECONDS:g} s already")
            return ""
        try:
            text = make()
        except Exception as error:  # a report of a fault must not fail by that fault
            self.problem(f"{name}: {type(error).__name__}: {error}")
            return ""
        limit = saved_node.MAX_SNAPSHOT if name == saved_node.SNAPSHOT else MAX_PART
        return text if len(text) <= limit else self._too_long(name, text, limit)

    def _too_long(self, name: str, text: str, limit: int) -> str:
        """Return the beginning of a part; nothing of JSON, whose beginning nothing can read."""
        if name.endswith(".json"):
            self.problem(f"{name}: left out, because it is longer than {limit} characters")
            return ""
        self.problem(f"{name}: cut off after {limit} characters")
        return text[:limit]

    def problem(self, text: str) -> None:
        self.problems.append(secrets_removed(one_line(text)))

    # ---- programs

    def _programs(self, argvs: Iterable[tuple[str, ...]]) -> str:
        """Return what each program prints, below its command line. One that fails is a problem."""
        return "\n".join(f"# {' '.join(argv)}\n{self._printed(argv)}" for argv in argvs)

    def _printed(self, argv: tuple[str, ...]) -> str:
        try:
            return secrets_removed(self._run(argv, timeout=_PROGRAM_SECONDS).stdout)
        except CommandError as error:
            self.problem(str(error))
            return "(failed, see problems.txt)\n"

    def addresses(self) -> str:
        return self._programs((("ip", "-d", "address"),))

    def routes(self) -> str:
        return self._programs(("ip", flag, "route", "show", "table", "all") for flag in ("-4", "-6"))

    def rules(self) -> str:
        return self._programs(("ip", flag, "rule") for flag in ("-4", "-6"))

    def units(self) -> str:
        """Return the state of the service and of those that may change rules. Command lines and environment of a unit
        are no part of it."""
        own = ("systemctl", "show", f"--property={_OWN_PROPERTIES}", UNIT)
        others = ("systemctl", "show", f"--property={_PROPERTIES}", *(f"{name}.service" for name in _UNITS))
        return self._programs((own, others))

    def journal(self) -> str:
        """Return the last entries of the unit. Raises CommandError."""
        lines = f"--lines={JOURNAL_LINES}"
        argv = ("journalctl", f"--unit={UNIT}", lines, "--output=json", "--no-pager", "--quiet")
        found = self._run(argv, timeout=3 * _PROGRAM_SECONDS).stdout
        return (
            "".join(f"{line}\n" for line in journal_text.lines(found)) or "(the journal holds no entry of the unit)\n"
        )

    def versions(self) -> str:
        libraries = (f"{name}: {_library(name)}" for name in _LIBRARIES)
        tools = (f"{' '.join(argv)}: {self._version(argv)}" for argv in _TOOLS)
        python = sys.version.replace("\n", " ")
        return "\n".join(
            (
                f"flanneld-masq: {__version__}",
                f"kernel: {platform.release()} {platform.version()} {platform.machine()}",
                f"distribution: {self._distribution()}",
                f"python: {python}",
                f"user: {os.geteuid()}",
                *libraries,
                *tools,
                "",
            )
        )

    def _version(self, argv: tuple[str, ...]) -> str:
        """Return the first line of an answer, or why there is none: a node need not have each tool."""
        try:
            done = self._run(argv, timeout=_PROGRAM_SECONDS)
        except CommandError as error:
            return f"({error})"
        return one_line((done.stdout or done.stderr).partition("\n")[0])

    # ---- files

    def _distribution(self) -> str:
        text = self.file(self._root / "etc/os-release")
        names = [line.partition("=")[2].strip('"') for line in text.split("\n") if line.startswith("PRETTY_NAME=")]
        return one_line(names[0]) if names else "not known"

    def modules(self) -> str:
        """Return the loaded modules of the kernel that have to do with rules."""
        text = read_start(self._root / "proc/modules", _MAX_FILE).decode("ascii", "replace")
        names = sorted(line.partition(" ")[0] for line in text.split("\n"))
        return "".join(f"{name}\n" for name in names if name.startswith(_MODULES) or name in _MORE_MODULES)

    def file(self, path: Path) -> str:
        """Return the text of a file without secrets, at most 256 KiB of it; empty if it cannot be read."""
        try:
            return secrets_removed(read_start(path, _MAX_FILE).decode("utf-8", "backslashreplace"))
        except (OSError, ValueError) as error:
            self.problem(f"{path}: {why(error, path)}")
            return ""


def sysctls(snapshot: Snapshot) -> str:
    """Return the sysctls of a snapshot as sysctl(8) prints them."""
    return "".join(f"{key} = {value}\n" for key, value in sorted(snapshot.sysctls.items()))


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not found)"
