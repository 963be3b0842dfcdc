"""The roots of the machines, made by mmdebstrap and kept beside those of `tests/system`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.model import SLOTS

from ..system.roots import directory_of
from .plan import Machine

_UNPACKED = ("--variant=extract", "--skip=check/qemu", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
_MIRROR = "deb http://deb.debian.org/debian {} main"
# Debian 11 lacks these, or has them too old. They are pure Python, and take nothing else from Debian 12.
_NEWER = "python3-tomli python3-dbus-next python3-watchdog libjs-sphinxdoc"
_PINS = f"""\
Package: *
Pin: release n=bookworm
Pin-Priority: -1

Package: {_NEWER}
Pin: release n=bookworm
Pin-Priority: 990
"""
_PIN = f"""mkdir -p "$1/etc/apt/preferences.d" && cat >"$1/etc/apt/preferences.d/matrix" <<'END'\n{_PINS}END\n"""


@dataclass(frozen=True, **SLOTS)
class MachineRecipe:
    """The root of one machine, with its kernel in it. The package that is tested is not."""

    machine: Machine

    @property
    def name(self) -> str:
        return f"matrix-{self.machine.name}"

    @property
    def directory(self) -> Path:
        return directory_of(self)

    def argv(self, target: Path) -> tuple[str, ...]:
        """Return the program that makes the root."""
        suite = self.machine.suite
        old = suite == "bullseye"
        suites = (suite, "bookworm") if old else (suite,)
        # Without any, mmdebstrap takes those with the security updates, which mirrors have for amd64 above all.
        mirrors = () if self.machine.architectures == "amd64" and not old else tuple(map(_MIRROR.format, suites))
        return (
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory"),
            *(_UNPACKED if self.machine.unpacked else ("--variant=minbase",)),
            f"--architectures={self.machine.architectures}",
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(self.machine.packages)}",
            *((f"--setup-hook={_PIN}",) if old else ()),
            *(suite, str(target)),
            *mirrors,
        )
