"""Root directories of Debian releases, made by mmdebstrap and kept outside the tree.

Each is known by a hash of its recipe: a changed recipe makes a new one, and the old one goes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flanneld_masq.model import SLOTS

from ..common import is_root, patience
from .kept import locked, remove_unused, use

BUILD_SECONDS = patience(900)
PROGRESS_SECONDS = 20.0

_BASE = (
    *("systemd", "systemd-sysv", "dbus", "procps", "kmod"),
    *("python3", "python3-systemd", "python3-pluggy", "python3-tomli"),
    *("python3-dbus-next", "python3-watchdog"),
    *("nftables", "iptables", "ipset", "iproute2"),
)
_PACKAGES = (
    *_BASE,
    *("firewalld", "netfilter-persistent", "iptables-persistent"),
    *("man-db", "bash-completion", "locales", "zsh", "fish", "rpm"),
)
# What the packages ask at their installation. man finds a page without its index.
_ANSWERS = (
    "man-db man-db/auto-update boolean false\n"
    "iptables-persistent iptables-persistent/autosave_v4 boolean false\n"
    "iptables-persistent iptables-persistent/autosave_v6 boolean false\n"
)
# $1 is the new root. Without 70debconf apt does not look for questions in packages, of which ours asks none. Without
# the last two files each boot would do what is due after an update.
_FINISH = """\
set -eu
systemctl --root="$1" --quiet disable {units}
systemctl --root="$1" --quiet mask getty@.service console-getty.service systemd-logind.service \\
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer e2scrub_all.timer fstrim.timer
echo node >"$1/etc/hostname"
chroot "$1" localedef -i zh_CN -f UTF-8 zh_CN.UTF-8
rm "$1/etc/apt/apt.conf.d/70debconf"
touch "$1/etc/.updated" "$1/var/.updated"
"""


class RootError(Exception):
    """There is no root, and none can be made here."""


class Root(Protocol):
    """The parts of a root, and the place where it is kept."""

    @property
    def name(self) -> str: ...

    @property
    def directory(self) -> Path: ...  # its name begins with that of the root and changes with its parts

    def argv(self, target: Path) -> tuple[str, ...]: ...  # of the program that makes it


@dataclass(frozen=True, **SLOTS)
class Recipe:
    """All that goes into a root. `suite` is the release if the name is not. `off` are the units that do not start at
    the boot."""

    name: str
    packages: tuple[str, ...] = _PACKAGES
    off: tuple[str, ...] = ("firewalld.service", "netfilter-persistent.service")
    suite: str = ""

    @property
    def directory(self) -> Path:
        return directory_of(self)

    def argv(self, target: Path) -> tuple[str, ...]:
        answers = f"chroot \"$1\" debconf-set-selections <<'END'\n{_ANSWERS}END\n"
        return (
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(self.packages)}",
            f"--essential-hook={answers}",
            f"--customize-hook={_FINISH.format(units=' '.join(self.off))}",
            *(self.suite or self.name, str(target)),
        )


RELEASES = ("bookworm", "trixie")
# Firewalls that exclude those of the other roots. ufw breaks netfilter-persistent.
FIREWALLS = Recipe(
    "firewalls-bookworm",
    (*_BASE, "locales", "ufw", "ferm", "shorewall", "docker.io", "libvirt-daemon-system"),
    ("ufw", "ferm", "shorewall", "containerd", "docker", "docker.socket", "libvirtd", "libvirtd.socket"),
    "bookworm",
)
# Runs the image of `make image` (container_image.py).
CONTAINERS = Recipe(
    "containers-trixie",
    (*_BASE, "locales", "podman", "crun"),
    ("podman.socket", "podman.service", "podman-auto-update.timer", "podman-restart.service"),
    "trixie",
)
# A node that Ansible manages: what ssh, and its modules for packages, need there.
MANAGED = Recipe("managed-bookworm", (*_BASE, "locales", "openssh-server", "python3-apt"), ("ssh",), "bookworm")
RECIPES = {recipe.name: recipe for recipe in (*map(Recipe, RELEASES), FIREWALLS, CONTAINERS, MANAGED)}


def directory_of(recipe: Root) -> Path:
    """Return the place of a root, named by its name and a hash of the program that makes it."""
    return cache() / f"{recipe.name}-{key_of(recipe.argv(Path('/')))}"


def key_of(argv: tuple[str, ...]) -> str:
    """Name a command line briefly."""
    return hashlib.sha256("\0".join(argv).encode()).hexdigest()[:12]


def cache() -> Path:
    """Where the roots are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "flanneld-masq" / "roots"


def make(recipe: Root, say: Callable[[str], None]) -> Path:
    """The directory of the root, built now if it is not there yet. It stays until this process ends. Raises RootError.

    `say` takes lines of progress, from any thread. A build needs the network and the mounts of the machine, so it comes
    before `netns.enter`.
    """
    if not is_root():
        raise RootError(f"a root of {recipe.name} is made by root alone")
    with locked(cache() / f"{recipe.name}.lock"):
        if not recipe.directory.is_dir():
            remove_unused(cache().glob(f"{recipe.name}-*"))
            _build(recipe, say)
        use(recipe.directory)
    return recipe.directory


def _build(recipe: Root, say: Callable[[str], None]) -> None:
    partial = recipe.directory.with_name(f"{recipe.directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    started = time.monotonic()
    say(f"making a root directory of {recipe.name}; it is kept for the next time")
    try:
        # In a mount namespace of its own, so that what it mounts goes with it, however it ends.
        process = subprocess.Popen(
            ("unshare", "--mount", *recipe.argv(partial)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError as error:
        raise RootError(f"{error.filename} is missing; `make setup` installs it") from error
    with process:
        printed = _output(process, lambda: say(f"{recipe.name}: {time.monotonic() - started:.0f} s so far"))
    if process.returncode:
        raise RootError(f"mmdebstrap could not make {recipe.name}: {printed.strip()[-2000:]}")
    partial.rename(recipe.directory)


def _output(process: subprocess.Popen[str], waiting: Callable[[], None]) -> str:
    """Return what a process prints until its end, and call `waiting` now and then until that. Raises RootError."""
    for _ in range(int(BUILD_SECONDS / PROGRESS_SECONDS)):
        try:
            return process.communicate(timeout=PROGRESS_SECONDS)[0]
        except subprocess.TimeoutExpired:
            waiting()
    process.kill()
    raise RootError(f"mmdebstrap took more than {BUILD_SECONDS:g} s")
