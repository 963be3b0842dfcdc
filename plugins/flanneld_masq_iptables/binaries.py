"""Finds the iptables programs by what they are.

The names say little: `iptables` may be of either flavour, and the `iptables-restore` beside it of the
other. So only the multi-call binaries are looked for (xtables-nft-multi, xtables-legacy-multi), wherever
the names lead, and each is asked for its version. Scripts are passed over: all tools of a flavour must
be one program.
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
_VERSION = re.compile(r"ip6?tables v(\d+(?:\.\d+)*)\S*(?: \((\w+)\))?")
_ELF = b"\x7fELF"
_REMEDIES = {
    "nf_tables": "install the package iptables (Debian, Ubuntu) or iptables-nft (Fedora, RHEL)",
    "legacy": "install the package iptables (Debian, Ubuntu) or iptables-legacy (Fedora)",
}
_WAIT_SECONDS = 5
RESTORE_TIMEOUT = 60.0


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
        """MASQUERADE knows --random-fully since 1.6.2."""
        return self.version >= (1, 6, 2)

    def restore(self, run: ProcessRunner, tools: str, text: str) -> None:
        """Feed `text` to iptables-restore. `tools` is "iptables" or "ip6tables". Raises CommandError."""
        argv = (f"{tools}-restore", "--noflush", f"--wait={_WAIT_SECONDS}")
        run(argv, executable=self.path, stdin=text, timeout=RESTORE_TIMEOUT)

    def save(self, run: ProcessRunner, tools: str, table: str) -> Completed:
        """What iptables-save prints of one table. Raises CommandError."""
        return run((f"{tools}-save", "-t", table), executable=self.path)


def find(flavour: str, name: BackendName, run: ProcessRunner) -> Program:
    """The first program of that flavour on the runner's path. Raises BackendUnavailable."""
    others = []
    for path in _binaries(run.path):
        program = _identify(path, run)
        if program is not None and program.flavour == flavour:
            return program
        others.append(f"{path} is {program or 'not iptables'}")
    seen = f" (found instead: {'; '.join(others)})" if others else ""
    raise BackendUnavailable(name, f"no iptables program of flavour {flavour} was found{seen}", _REMEDIES[flavour])


def _binaries(path: tuple[str, ...]) -> Iterator[str]:
    """The distinct executables behind the names, links followed."""
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
        printed = run(("iptables", "--version"), executable=path, timeout=5).stdout
    except CommandError:
        return None
    found = _VERSION.match(printed)
    if found is None:
        return None
    # releases before 1.8 had one flavour and did not name it
    return Program(path, found[2] or "legacy", tuple(map(int, found[1].split("."))))
