"""The packages of the tree, built once for all test processes and kept while the files of the tree stay the same."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from flanneld_masq import __version__

from ..common import patience
from .kept import locked, remove_unused, use

TREE = Path(__file__).parents[2]
OLD = "0.0.9"
BUILD_SECONDS = 120.0
_KEPT = TREE / "build" / "tests"
_VERSIONED = ("flanneld_masq/__init__.py", "CHANGELOG.md")
Say = Callable[[str], None]


def build(
    kind: str, tree: Path, directory: Path, *, umask: int = 0o022, environ: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Run packaging/build-deb or -rpm of the tree and return the package that is to be installed."""
    argv = (str(tree / f"packaging/build-{kind}"), str(directory))
    environ = {**os.environ, **environ}
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=patience(BUILD_SECONDS), umask=umask, env=environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return package_in(directory, kind)


def package_in(directory: Path, kind: str) -> Path:
    (package,) = (path for path in directory.glob(f"*.{kind}") if not path.name.endswith(".src.rpm"))
    return package


def copy_tree(directory: Path) -> Path:
    """Copy the files of the project, without git."""
    script = 'source packaging/common.sh && copy_project "$1"'
    subprocess.run(
        ("bash", "-c", script, "copy", str(directory)), cwd=TREE, check=True, timeout=patience(BUILD_SECONDS)
    )
    return directory


class PackageStore:
    """Builds each package for the first process that asks; the others wait for it. `say` takes a line of progress."""

    def __init__(self, directory: Path, say: Say) -> None:
        """`directory` is for what is needed only meanwhile."""
        self._directory = directory
        self._say = say
        self._kept = _KEPT / _key()
        with locked(_KEPT / "lock"):
            remove_unused(path for path in _KEPT.iterdir() if path.is_dir() and path != self._kept)
            self._kept.mkdir(exist_ok=True)
            use(self._kept)

    def new(self, kind: str) -> Path:
        """Return the package of the tree."""
        return self._built(kind, __version__, lambda out: build(kind, TREE, out))

    def old(self, kind: str) -> Path:
        """Return a package of the same files that says it is older."""
        return self._built(kind, OLD, lambda out: build(kind, self._old_tree(kind), out))

    def _built(self, kind: str, version: str, make: Callable[[Path], object]) -> Path:
        directory = self._kept / f"{kind}-{version}"
        partial = directory.with_name(f"{directory.name}.partial")
        with locked(directory.with_name(f"{directory.name}.lock")):
            if not directory.is_dir():
                self._say(f"building the {kind} of version {version}")
                make(partial)
                partial.rename(directory)
        return package_in(directory, kind)

    def _old_tree(self, kind: str) -> Path:
        tree = copy_tree(self._directory / f"older-{kind}")
        for name in _VERSIONED:
            file = tree / name
            file.write_text(file.read_text().replace(__version__, OLD))
        return tree


def _key() -> str:
    """Name all that decides what is built: the files of the project, and the release that builds them."""
    script = "source packaging/common.sh && project_files | sort -z | xargs -0 sha256sum 2>/dev/null"
    listed = subprocess.run(
        ("bash", "-c", script), cwd=TREE, capture_output=True, timeout=patience(BUILD_SECONDS)
    ).stdout
    release = Path("/etc/os-release").read_bytes() + platform.python_version().encode()
    return hashlib.sha256(listed + release).hexdigest()[:16]
