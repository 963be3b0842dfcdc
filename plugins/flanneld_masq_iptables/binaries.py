"""Finds the iptables programs by the flavour that they report.

Names do not tell: `iptables` may be of either flavour, and the `iptables-restore` beside it of the other. So only
multi-call binaries are considered (xtables-nft-multi, xtables-legacy-multi), under any of the names, and each is
asked for its version. Scripts are passed over: all tools of a flavour must be one program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import BackendUnavailable, CommandError
from flanneld_masq.model import SLOTS, BackendName
from flanneld_masq.process import Completed, ProcessRunner

_NAMES = (
    "xtables-nft-multi",
    "xtables-legacy-multi",
    "iptables-nft",
    "iptables-legacy",
    "iptables",
    "iptables-restore",
    "xtables-multi",
)
_VERSION = re.compile(r"ip6?tables v(\d{1,9}(?:\.\d{1,9})*)(?!\.?\d)\S*(?: \((\w+)\))?", re.ASCII)
_ELF = b"\x7fELF"
NF_TABLES, LEGACY = "nf_tables", "legacy"  # flavours, as `iptables --version` prints them
_REMEDIES = {
    NF_TABLES: "install the package iptables (Debian, Ubuntu) or iptables-nft (Fedora, RHEL)",
    LEGACY: "install the package iptables (Debian, Ubuntu) or iptables-legacy (Fedora)",
}
_WAIT_SECONDS = 5  # for the lock of iptables-legacy; iptables-nft takes none
_RESTORE_TIMEOUT = 60.0  # seconds
_VERSION_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, **SLOTS)
class Program:
    """A multi-call binary: `path`, the flavour that it reports, and its version."""

    path: str
    flavour: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"iptables {'.'.join(map(str, self.version))} ({self.flavour})"

    @property
    def random_fully(self) -> bool:
        """True if MASQUERADE has the option --random-fully, as it has since 1.6.2."""
        return self.version >= (1, 6, 2)

    def restore(self, run: ProcessRunner, tools: str, text: str) -> None:
        """Write `text` with iptables-restore. `tools` is "iptables" or "ip6tables". Raises CommandError."""
        argv = (f"{tools}-restore", "--noflush", f"--wait={_WAIT_SECONDS}")
        run(argv, executable=self.path, stdin=text, timeout=_RESTORE_TIMEOUT)

    def save(self, run: ProcessRunner, tools: str, table: str) -> Completed:
        """Return what iptables-save prints of one table. Raises CommandError."""
        return run((f"{tools}-save", "-t", table), executable=self.path)


def find(flavour: str, name: BackendName, run: ProcessRunner) -> Program:
    """Return the first program of that flavour on the runner's path. Raises BackendUnavailable."""
    others = []
    for path in _binaries(run.path):
        program = _identify(path, run)
        if program is not None and program.flavour == flavour:
            return program
        others.append(f"{path} is {program or 'not iptables'}")
    seen = f" (found instead: {'; '.join(others)})" if others else ""
    raise BackendUnavailable(name, f"no iptables program of flavour {flavour} was found{seen}", _REMEDIES[flavour])


def _binaries(path: tuple[str, ...]) -> Iterator[str]:
    """Yield the distinct executables behind the names, links followed."""
    seen = set()
    for directory in path:
        for name in _NAMES:
            real = os.path.realpath(os.path.join(directory, name))
            if real not in seen and _is_binary(real):
                seen.add(real)
                yield real


def _is_binary(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return os.access(path, os.X_OK) and file.read(len(_ELF)) == _ELF
    except OSError:
        return False


def _identify(path: str, run: ProcessRunner) -> Program | None:
    try:
        printed = run(("iptables", "--version"), executable=path, timeout=_VERSION_TIMEOUT).stdout
    except CommandError:
        return None
    version = _VERSION.match(printed)
    if version is None:
        return None
    number, flavour = version.groups()
    # releases before 1.8 had one flavour and did not name it
    return Program(path, flavour or LEGACY, tuple(map(int, number.split("."))))
