"""File trees in layers: the root of a release, the project installed into it, and what one machine writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from flanneld_masq.errors import CommandError
from flanneld_masq.process import ProcessRunner

from ..common import eventually, patience

INSTALL_SECONDS = patience(120)
_EXACTLY = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--preserve-permissions")


class Overlay:
    """Layers as one tree, at `root`. What is written goes into a layer of its own, which ends with it."""

    def __init__(self, directory: Path, below: Sequence[Path], run: ProcessRunner) -> None:
        """`below` are directories that stay as they are, the topmost first. `directory` is made."""
        self._directory = directory
        self._run = run
        self.root, self.written = directory / "root", directory / "written"
        work = directory / "work"
        for path in (self.root, self.written, work):
            path.mkdir(parents=True)
        lower = ":".join(map(str, below))
        options = f"lowerdir={lower},upperdir={self.written},workdir={work}"
        run(("mount", "-t", "overlay", "overlay", "-o", options, str(self.root)))

    def unmount(self) -> None:
        """Keep only what was written. The end of the last process in it may still be on its way."""
        eventually(self._unmounted)

    def _unmounted(self) -> bool:
        try:
            self._run(("umount", str(self.root)))
        except CommandError as error:
            if "busy" not in str(error):
                raise
            return False
        return True

    def close(self) -> None:
        self.unmount()
        shutil.rmtree(self._directory)


def pack(layer: Path, archive: Path, run: ProcessRunner) -> None:
    """Write what an Overlay wrote into an archive of tar, with the marks of overlayfs for what is removed."""
    argv = ("tar", *_EXACTLY, "--create", "--file", str(archive), "--directory", str(layer), ".")
    run(argv, timeout=INSTALL_SECONDS)


def unpack(archive: Path, layer: Path, run: ProcessRunner) -> None:
    """Make a layer from what `pack` wrote. `layer` is made."""
    layer.mkdir()
    run(("tar", *_EXACTLY, "--extract", "--file", str(archive), "--directory", str(layer)), timeout=INSTALL_SECONDS)


def install(deb: Path, root: Path, run: ProcessRunner) -> None:
    """Have the root's own dpkg do it; nothing is started. Raises CommandError, for a missing dependency too."""
    copy = root / "var/tmp" / deb.name
    shutil.copy(deb, copy)
    run(("chroot", str(root), "dpkg", "--install", f"/var/tmp/{deb.name}"), timeout=INSTALL_SECONDS)
    copy.unlink()
