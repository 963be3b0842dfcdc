"""The disk of a machine: its root with the package in it. Nothing is mounted outside a namespace."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from flanneld_masq.model import SLOTS

from ..common import patience
from .plan import Machine

GUEST = Path(__file__).parent / "guest"
_SECONDS = patience(300)
_LINES = 3  # of what a failed attempt has printed
_UNITS = Path(__file__).parent / "units"
# $1 root, $2 directory with debs/, guest/, units/ and init, $3 image, $4 the package to install. The layer above the
# root is in memory and ends with the namespace.
_BEGIN = """\
set -eu
mount -t tmpfs tmpfs "$2/mnt"
mkdir "$2/mnt/written" "$2/mnt/work" "$2/mnt/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/mnt/written,workdir=$2/mnt/work" "$2/mnt/root"
cd "$2/mnt/root"
mkdir -p opt/matrix
cp -r "$2/guest" "$2"/debs/* opt/matrix/
"""
_INSTALLED = """\
mount -t proc proc proc
chroot . env LC_ALL=C.UTF-8 dpkg --install "/opt/matrix/$4"
umount proc
cp "$2/units/"*.service etc/systemd/system/
cp "$2/units/subnet.conf" etc/tmpfiles.d/matrix.conf
systemctl --root=. --quiet enable flanneld-masq.service matrix.service matrix-before.service
systemctl --root=. --quiet mask getty@.service serial-getty@.service console-getty.service systemd-logind.service \\
    systemd-networkd.service systemd-timesyncd.service systemd-resolved.service \\
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
echo node >etc/hostname
: >etc/fstab
touch etc/.updated var/.updated
truncate --size 3G "$3.partial"
mke2fs -q -F -t ext4 -L matrix -E lazy_itable_init=1 -d . "$3.partial"
mv "$3.partial" "$3"
"""
# Everything is in the initial file system, which stays the root. The drivers that are left are those of the self-test.
_UNPACKED = """\
dpkg-deb --extract "opt/matrix/$4" .
cp "$2/init" init
mkdir -p proc sys run root
echo root:x:0:0:root:/root:/bin/sh >etc/passwd
echo root:x:0: >etc/group
for tool in iptables ip6tables; do
    for end in "" -save -restore; do
        ln -s xtables-nft-multi "usr/sbin/$tool$end"
    done
done
rm -rf boot usr/share/doc usr/share/man usr/share/locale usr/share/perl* usr/lib/*/perl* var/cache var/lib/apt
cd usr/lib/modules/*
mkdir kept
mv kernel/net kernel/lib kernel/crypto kernel/drivers/net/veth* kernel/drivers/net/dummy* kept/
rm -rf kernel
mv kept kernel
cd "$2/mnt/root"
depmod --basedir=. "$(ls usr/lib/modules)"
find . -xdev | cpio --quiet --create --format=newc >"$3.partial"
mv "$3.partial" "$3"
"""


@dataclass(frozen=True, **SLOTS)
class Disk:
    """The kernel that a boot needs, its initial file system, and the image of the root if that is another one."""

    kernel: Path
    initrd: Path
    image: Optional[Path] = None

    def remove(self) -> None:
        """Remove what `make` has made."""
        (self.image or self.initrd).unlink()


class ImageError(Exception):
    """The image could not be made."""


def make(machine: Machine, root: Path, old: Path, new: Path, directory: Path) -> Disk:
    """Make the image of a machine in a directory, with the new package installed and both in it. Raises ImageError."""
    image = directory / f"{machine.name}.{'cpio' if machine.unpacked else 'ext4'}"
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        work = Path(name)
        _collect(work, old, new)
        script = _BEGIN + (_UNPACKED if machine.unpacked else _INSTALLED)
        argv = ("unshare", "--mount", "sh", "-c", script, "image", str(root), str(work), str(image), new.name)
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ImageError(f"no image of {machine.name} within {_SECONDS:g} s") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise ImageError(f"no image of {machine.name}: {' '.join(said.splitlines()[-_LINES:])}")
    kernel = _boot_file(root, "vmlinu")
    return Disk(kernel, image) if machine.unpacked else Disk(kernel, _boot_file(root, "initrd"), image)


def _collect(work: Path, old: Path, new: Path) -> None:
    """Put all that the script needs into one directory."""
    for part in ("mnt", "debs"):
        (work / part).mkdir()
    for deb in (old, new):
        shutil.copy(deb, work / "debs")
    shutil.copytree(GUEST, work / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_UNITS, work / "units")
    shutil.copy(GUEST.with_name("init"), work)


def _boot_file(root: Path, prefix: str) -> Path:
    (path,) = (root / "boot").glob(f"{prefix}*")
    return path
