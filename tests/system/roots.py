"""Root directories of Debian releases, made by mmdebstrap and kept outside the tree.

Each is known by a hash of its recipe: a changed recipe makes a new one, and the old one goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.model import SLOTS

BUILD_SECONDS = 900.0

_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "kmod"),
    *("python3", "python3-nftables", "python3-systemd", "python3-pluggy", "python3-tomli"),
    *("python3-dbus-next", "python3-watchdog"),
    *("nftables", "iptables", "ipset", "iproute2"),
    *("firewalld", "netfilter-persistent", "iptables-persistent"),
    *("man-db", "bash-completion", "locales", "zsh", "fish", "rpm"),
)
# What the packages ask at their installation.
_ANSWERS = (
    "iptables-persistent iptables-persistent/autosave_v4 boolean false\n"
    "iptables-persistent iptables-persistent/autosave_v6 boolean false\n"
)
# $1 is the new root. Without the last two files each boot would do what is due after an update.
_FINISH = """\
set -eu
systemctl --root="$1" --quiet disable firewalld.service netfilter-persistent.service
systemctl --root="$1" --quiet mask getty@.service console-getty.service systemd-logind.service \\
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer e2scrub_all.timer fstrim.timer
echo node >"$1/etc/hostname"
chroot "$1" localedef -i zh_CN -f UTF-8 zh_CN.UTF-8
touch "$1/etc/.updated" "$1/var/.updated"
"""


class RootError(Exception):
    """There is no root, and none can be made here."""


@dataclass(frozen=True, **SLOTS)
class Recipe:
    """All that goes into a root. `name` is the release's."""

    name: str
    packages: tuple[str, ...] = _PACKAGES

    @property
    def directory(self) -> Path:
        return cache() / f"{self.name}-{self._key()}"

    def argv(self, target: Path) -> tuple[str, ...]:
        answers = f"chroot \"$1\" debconf-set-selections <<'END'\n{_ANSWERS}END\n"
        return (
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(self.packages)}",
            f"--essential-hook={answers}",
            f"--customize-hook={_FINISH}",
            *(self.name, str(target)),
        )

    def _key(self) -> str:
        return hashlib.sha256("\0".join(self.argv(Path("/"))).encode()).hexdigest()[:12]


RECIPES = {name: Recipe(name) for name in ("bookworm", "trixie")}


def cache() -> Path:
    """Where the roots are kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "flanneld-masq" / "roots"


def make(recipe: Recipe) -> Path:
    """The directory of the root, built now if it is not there yet. It stays until this process ends. Raises RootError.

    A build needs the network and the mounts of the machine, so it comes before `netns.enter`.
    """
    if os.geteuid() != 0:
        raise RootError(f"a root of {recipe.name} is made by root alone")
    cache().mkdir(parents=True, exist_ok=True)
    with _locked(cache() / f"{recipe.name}.lock"):
        if not recipe.directory.is_dir():
            _remove_unused(recipe)
            _build(recipe)
        in_use = os.open(recipe.directory, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(in_use, fcntl.LOCK_SH)
    return recipe.directory


def _build(recipe: Recipe) -> None:
    partial = recipe.directory.with_name(f"{recipe.directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    argv = recipe.argv(partial)
    try:
        # In a mount namespace of its own, so that what it mounts goes with it, however it ends.
        subprocess.run(("unshare", "--mount", *argv), check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except FileNotFoundError as error:
        raise RootError(f"{error.filename} is missing; `make setup` installs it") from error
    except subprocess.TimeoutExpired as error:
        raise RootError(f"mmdebstrap took more than {BUILD_SECONDS:g} s for {recipe.name}") from error
    except subprocess.CalledProcessError as error:
        raise RootError(f"mmdebstrap could not make {recipe.name}: {error.stderr.strip()[-2000:]}") from error
    partial.rename(recipe.directory)


def _remove_unused(recipe: Recipe) -> None:
    """Former roots of the release, but for those that other tests run with."""
    for found in cache().glob(f"{recipe.name}-*"):
        descriptor = os.open(found, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found)
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
