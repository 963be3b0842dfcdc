"""Booted systems: real systemd, journal, D-Bus and firewalls, in a Debian root of each release.

    def test_something(machine: Machine) -> None:      # runs on one of RELEASES, with LONG=1 on each
        machine.configure(backend="nft")
        machine.write_subnet()
        machine.systemctl("start", "flanneld-masq")
        machine.site.assert_masqueraded()

`machine` is a machine of the test's own with the project installed, freshly booted, with no unit of it started or
enabled: a boot takes 0.3 s, so tests share none. `make_machine()` gives one that is still off, for files to be put in
place before `machine.boot()`, and `make_machine(bare=True)` one without the project; `deb` is the project's package,
built from the tree. `release` is the name of the release; mark a test with

    @pytest.mark.parametrize("release", ["trixie"], indirect=True)

where one of them is enough. `tell` takes a line with a figure, to be shown after the tests. The journal of every
machine is shown with a test that fails.

Within a file the releases take turns, so that each file runs on all of them; `-k trixie` chooses one.

Roots are made before the first test, in half a minute, and kept outside the tree (`roots.py`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from flanneld_masq.errors import MasqError
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import netns

from ..common import every_time, is_root, say, unable
from . import cgroups
from .layers import Overlay, install, pack, unpack
from .machine import Machine
from .packages import Packages, PackageStore
from .roots import RECIPES, RELEASES, Recipe, RootError, make
from .turns import left_out_in_turns

_HERE = Path(__file__).parent
_CONTROL = str(_HERE.parents[1] / "packaging/debian/control")
_LAYER = "layer.tar"
_names = itertools.count()
_failures: dict[str, str] = {}


class MakeMachine(Protocol):
    def __call__(self, *, bare: bool = False) -> Machine:
        """One more machine for the test; a bare one is without the project."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each test on one release, unless LONG=1 asks for all. Last, so that `-k` has chosen before."""
    if not every_time():
        left_out = left_out_in_turns([(item.nodeid, _release_of(item)) for item in items])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


def _release_of(item: pytest.Item) -> str:
    """The release that a test of this layer would boot; empty for any other test."""
    if _HERE not in item.path.parents:
        return ""
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("release", "")) if callspec is not None else ""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the roots now: once tests run, this process may be in a namespace without a network."""
    callspecs = [getattr(item, "callspec", None) for item in session.items if _HERE in item.path.parents]
    if not callspecs or session.config.option.collectonly:
        return
    asked = {callspec.params.get("release") for callspec in callspecs if callspec is not None}
    wanted = [name for name in RECIPES if name in RELEASES or name in asked]

    def failure(recipe: Recipe) -> str:
        return _failure(recipe, partial(say, session.config))

    with ThreadPoolExecutor() as threads:
        _failures.update(zip(wanted, threads.map(failure, map(RECIPES.__getitem__, wanted))))


def _failure(recipe: Recipe, progress: Callable[[str], None]) -> str:
    """Why there is no such root; empty where there is."""
    try:
        make(recipe, progress)
    except RootError as error:
        return str(error)
    return ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if report.failed and report.when != "teardown":
        for machine in getattr(item, "funcargs", {}).get("machines", ()):
            report.sections.append((f"{machine.name}, {machine.release}", machine.story()))


@pytest.fixture(scope="session")
def workshop() -> Path:
    """A directory in memory, in namespaces of the test, with the control groups that systemd wants."""
    if not is_root():
        unable("booting a system needs root")
    if not shutil.which("systemd-nspawn"):
        unable("systemd-nspawn is missing; `make setup` installs it")
    try:
        netns.enter()
        cgroups.mount(ProcessRunner())
    except MasqError as error:
        unable(str(error))
    directory = netns.DIRECTORY / "machines"
    directory.mkdir()
    return directory


@pytest.fixture(params=RELEASES, scope="session")
def release(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if _failures[name]:
        unable(_failures[name])
    return name


@pytest.fixture(scope="session")
def packages(workshop: Path, pytestconfig: pytest.Config) -> PackageStore:
    return PackageStore(workshop, partial(say, pytestconfig))


@pytest.fixture(scope="session")
def deb(packages: PackageStore) -> Path:
    """The project's package, built from the tree."""
    lacking = subprocess.run(
        ("dpkg-checkbuilddeps", _CONTROL), capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    if lacking.returncode:
        unable(f"{lacking.stderr.strip()}; `scripts/setup-packaging deb` installs them")
    return packages.new("deb")


@pytest.fixture(scope="session")
def debs(deb: Path, packages: PackageStore) -> Packages:
    return Packages(deb, packages.old("deb"))


@pytest.fixture(scope="session")
def rpms(packages: PackageStore) -> Packages:
    if not shutil.which("rpmbuild"):
        unable("rpmbuild is missing; `scripts/setup-packaging rpm` installs it")
    return Packages(packages.new("rpm"), packages.old("rpm"))


@pytest.fixture(scope="session")
def installed(deb: Path, packages: PackageStore, workshop: Path) -> Callable[[str], Path]:
    """Return a function that maps a release to the files that the package adds to it."""

    @cache
    def install_into(release: str) -> Path:
        root, layer = RECIPES[release].directory, workshop / f"project-{release}"
        install_once = partial(_pack_installed, deb, root, layer.with_name(f"{layer.name}.installing"))
        name = f"installed-{root.name}-{root.stat().st_ino}"
        kept = packages.made(name, f"installing the deb in {release}", install_once)
        unpack(kept / _LAYER, layer, ProcessRunner())
        return layer

    return install_into


def _pack_installed(deb: Path, root: Path, scratch: Path, directory: Path) -> None:
    """Keep in a new directory what the installation of the package writes to a root."""
    overlay = Overlay(scratch, (root,), ProcessRunner())
    install(deb, overlay.root, ProcessRunner())
    directory.mkdir()
    pack(overlay.written, directory / _LAYER, ProcessRunner())
    overlay.close()


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Those of the test."""
    made: list[Machine] = []
    yield made
    with ExitStack() as stack:
        for machine in made:
            stack.callback(machine.close)


@pytest.fixture
def make_machine(
    machines: list[Machine], release: str, installed: Callable[[str], Path], workshop: Path
) -> MakeMachine:
    """Makes machines that are off."""

    def make_one(*, bare: bool = False) -> Machine:
        layers = (*(() if bare else (installed(release),)), RECIPES[release].directory)
        machines.append(Machine(f"node{next(_names)}", release, layers, workshop))
        return machines[-1]

    return make_one


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    found = make_machine()
    found.boot()
    return found


@pytest.fixture
def bare(make_machine: MakeMachine) -> Machine:
    """A machine without the project, booted."""
    machine = make_machine(bare=True)
    machine.boot()
    return machine
