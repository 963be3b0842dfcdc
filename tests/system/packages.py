"""The packages of the tree, built once for all test processes and kept while the files of the tree stay the same."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flanneld_masq import __version__
from flanneld_masq.model import SLOTS

from ..common import patience
from .kept import locked, remove_unused, use

TREE = Path(__file__).parents[2]
OLD = "0.0.9"
UNTAGGED_RELEASE = "02a2e5f"  # 0.1.0
BUILD_SECONDS = 120.0
# The archive of the sources is larger then; what is installed is the same, for the build's own tools do not see it.
_QUICKLY = {"XZ_OPT": "-0"}
_KEPT = TREE / "build" / "tests"
_VERSIONED = (
    "flanneld_masq/__init__.py",
    "CHANGELOG.md",
    "packaging/debian/changelog",
    "packaging/rpm/flanneld-masq.spec",
)
Say = Callable[[str], None]


def build(
    kind: str, tree: Path, directory: Path, *, umask: int = 0o022, environ: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Run packaging/build-deb or -rpm of the tree and return the package that is to be installed."""
    argv = (str(tree / f"packaging/build-{kind}"), str(directory))
    environ = {**os.environ, **_QUICKLY, **environ}
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


def previous_release() -> str:
    """Return the revision of the newest release before this one: a tag, or where 0.1.0 was. Empty without a history."""
    choice = ("--match=v[0-9]*", f"--exclude=v{__version__}")
    described = _git("describe", "--tags", "--abbrev=0", *choice, "HEAD").stdout.strip()
    return described or _git("rev-parse", "--verify", "--quiet", f"{UNTAGGED_RELEASE}^{{commit}}").stdout.strip()


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("git", "-c", f"safe.directory={TREE}", *arguments),
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=patience(30),
    )


@dataclass(frozen=True, **SLOTS)
class Packages:
    """The package of the tree, and one of the same files that says it is older."""

    new: Path
    old: Path


class PackageStore:
    """Builds each package for the first process that asks, and keeps what tests make of it; other processes wait.

    `say` takes a line of progress.
    """

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
        if kind == "deb":
            return self._built(kind, OLD, lambda out: _make_older(self.new(kind), out))
        return self._built(kind, OLD, lambda out: build(kind, self._old_tree(kind), out))

    def previous(self, kind: str, revision: str) -> Path:
        """Return a package of an earlier revision's files, with the version of `old` so that it can be upgraded."""
        return self._built(kind, f"of-{revision}", lambda out: build(kind, self._revision(revision), out))

    def made(self, name: str, doing: str, make: Callable[[Path], object]) -> Path:
        """Return a kept directory, which `make` makes for the first process that asks. `doing` is said meanwhile."""
        directory = self._kept / name
        partial = directory.with_name(f"{name}.partial")
        with locked(directory.with_name(f"{name}.lock")):
            if not directory.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                self._say(doing)
                make(partial)
                partial.rename(directory)
        return directory

    def _built(self, kind: str, version: str, make: Callable[[Path], object]) -> Path:
        return package_in(self.made(f"{kind}-{version}", f"building the {kind} of version {version}", make), kind)

    def _old_tree(self, kind: str) -> Path:
        tree = copy_tree(self._directory / f"older-{kind}")
        _say_old(tree, __version__)
        return tree

    def _revision(self, revision: str) -> Path:
        tree = self._directory / f"tree-{revision}"
        tree.mkdir()
        archive = f"git -c safe.directory={TREE} archive {revision} | tar --extract --directory {tree}"
        subprocess.run(("bash", "-o", "pipefail", "-c", archive), cwd=TREE, check=True, timeout=patience(BUILD_SECONDS))
        (version,) = re.findall(r'^__version__ = "(.*)"$', (tree / _VERSIONED[0]).read_text(), re.MULTILINE)
        _say_old(tree, version)
        return tree


def _say_old(tree: Path, version: str) -> None:
    """Replace the version of a tree by OLD, wherever a release has it."""
    for file in filter(Path.exists, map(tree.joinpath, _VERSIONED)):
        file.write_text(file.read_text().replace(version, OLD))


def _make_older(deb: Path, directory: Path) -> None:
    """Write a deb with the content of another one, and OLD in place of its version. Each file keeps its date, as in a
    build, where all have that of the changelog."""
    tree = directory / "tree"
    directory.mkdir()
    _dpkg_deb("--raw-extract", str(deb), str(tree))
    (info,) = tree.rglob(f"*-{__version__}.dist-info")
    (module,) = tree.rglob("flanneld_masq/__init__.py")
    for path in (tree / "DEBIAN/control", module, *info.iterdir()):
        date = path.stat().st_mtime_ns
        path.write_text(path.read_text().replace(__version__, OLD))
        os.utime(path, ns=(date, date))
    info.rename(info.with_name(info.name.replace(__version__, OLD)))
    summed = (path for path in sorted((tree / "usr").rglob("*")) if path.is_file())  # not /etc, whose files are changed
    lines = (f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in summed)
    (tree / "DEBIAN/md5sums").write_text("".join(lines))
    _dpkg_deb("--root-owner-group", "-Zgzip", "--build", str(tree), str(directory))
    shutil.rmtree(tree)


def _dpkg_deb(*arguments: str) -> None:
    subprocess.run(("dpkg-deb", *arguments), check=True, capture_output=True, timeout=patience(BUILD_SECONDS))


def _key() -> str:
    """Name all that decides what is built: the files of the project, and the release that builds them."""
    script = "source packaging/common.sh && project_files | sort -z | xargs -0 sha256sum 2>/dev/null"
    listed = subprocess.run(
        ("bash", "-c", script), cwd=TREE, capture_output=True, timeout=patience(BUILD_SECONDS)
    ).stdout
    release = Path("/etc/os-release").read_bytes() + platform.python_version().encode()
    return hashlib.sha256(listed + release).hexdigest()[:16]
