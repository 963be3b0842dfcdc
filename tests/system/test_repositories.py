"""The repositories of a release, as an administrator meets them: apt in a booted machine, dnf in a root of its own.

They need apt-utils, createrepo_c and dnf, which `make test` does not install, so they run with LONG=1 or by
`make test-repositories`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from flanneld_masq import __version__
from flanneld_masq.model import BackendName

from ..common import eventually, every_time, patience, unable
from .machine import Machine
from .packages import BUILD_SECONDS, OLD, TREE, Packages, PackageStore, previous_release
from .test_packages import apt, assert_replaced, brought, enabled, state
from .traffic import Traffic

pytestmark = pytest.mark.skipif(
    not every_time(), reason="needs LONG=1; `make test-repositories` installs what it needs"
)

URL = "http://127.0.0.1:8080"
SERVED = "/srv/flanneld-masq"
KEYRING = "/usr/share/keyrings/flanneld-masq.gpg"
# What Fedora has and an empty root has not.
_FEDORA = """\
Name: fedora
Version: 42
Release: 1
Summary: Stands for the packages of Fedora
License: MIT
BuildArch: noarch
Provides: /bin/sh, /usr/bin/nsenter, /usr/bin/python3, python3 = 3.13, python3-pluggy, python3-systemd
Provides: python3-watchdog = 4.0, systemd
%description
%{summary}.
%files
"""


class Keys:
    """Secret keys of gpg in a directory of their own, each known by its name."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.environ = {**os.environ, "GNUPGHOME": str(directory)}
        for name in ("maintainer", "stranger"):
            argv = (
                "gpg",
                "--batch",
                "--quiet",
                "--passphrase",
                "",
                "--quick-gen-key",
                f"{name}@example.org",
                "rsa3072",
            )
            subprocess.run((*argv, "sign", "never"), env=self.environ, check=True, capture_output=True)

    def close(self) -> None:
        """End gpg's agent, which would outlive the test."""
        subprocess.run(("gpgconf", "--kill", "all"), env=self.environ, check=True)


@pytest.fixture(scope="module")
def keys(workshop: Path) -> Iterator[Keys]:
    for tool, kind in (
        ("gpg", "gpg"),
        ("apt-ftparchive", "apt-utils"),
        ("createrepo_c", "createrepo-c"),
        ("dnf", "dnf"),
    ):
        if not shutil.which(tool):
            unable(f"{kind} is missing; `scripts/setup-packaging repositories` installs it")
    made = Keys(workshop / "gnupg")
    yield made
    made.close()


@pytest.fixture
def directory(workshop: Path) -> Iterator[Path]:
    path = workshop / "repository"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def add(kind: str, directory: Path, keys: Keys, package: Path, *, key: str = "maintainer", url: str = URL) -> None:
    """Run packaging/apt-repo or dnf-repo. An empty key signs nothing."""
    argv = (TREE / f"packaging/{kind}-repo", directory, key and f"{key}@example.org", package)
    done = subprocess.run(
        list(map(str, argv)),
        env={**keys.environ, "URL": url},
        capture_output=True,
        text=True,
        timeout=patience(BUILD_SECONDS),
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- apt


class AptNode:
    """A booted machine that knows the repository, which another program of it serves, and no other."""

    def __init__(self, machine: Machine, repository: Path) -> None:
        self.machine = machine
        self._repository = repository
        machine.run("sh", "-c", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
        self.publish()
        machine.start("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", SERVED, "8080")
        for source, target in (("flanneld-masq.gpg", KEYRING), ("flanneld-masq.sources", "/etc/apt/sources.list.d/")):
            machine.run("cp", f"{SERVED}/{source}", target)
        eventually(lambda: self.update().returncode == 0)

    def publish(self) -> None:
        """Serve the repository as it is now."""
        served = self.machine.path(SERVED)
        shutil.rmtree(served, ignore_errors=True)
        shutil.copytree(self._repository, served)

    def update(self) -> subprocess.CompletedProcess[str]:
        return self.machine.run("apt-get", "update", "--error-on=any", "-o", "Acquire::Retries=0", check=False)


def test_apt_installs_upgrades_and_goes_back(bare: Machine, debs: Packages, keys: Keys, directory: Path) -> None:
    add("apt", directory, keys, debs.old)
    node = AptNode(bare, directory)
    apt(bare, "install", "flanneld-masq")
    assert state(bare) == ("disabled", "inactive")
    backend = BackendName("nft")
    enabled(bare, backend)
    bare.site.assert_masqueraded()
    add("apt", directory, keys, debs.new)
    node.publish()
    assert node.update().returncode == 0
    assert_replaced(bare, backend, __version__, lambda: apt(bare, "upgrade"))
    assert_replaced(bare, backend, OLD, lambda: apt(bare, "install", f"flanneld-masq={OLD}-1"))


def test_apt_refuses_another_key(bare: Machine, debs: Packages, keys: Keys, directory: Path) -> None:
    add("apt", directory, keys, debs.new)
    node = AptNode(bare, directory)
    add("apt", directory, keys, debs.new, key="stranger")
    node.publish()
    refused = node.update()
    assert refused.returncode != 0
    assert "not signed" in refused.stderr or "NO_PUBKEY" in refused.stderr or "Missing key" in refused.stderr


@pytest.mark.parametrize("damaged", ["dists/stable/main/*/Packages", "pool/*.deb"], ids=["list", "package"])
def test_apt_refuses_what_was_changed(bare: Machine, debs: Packages, keys: Keys, directory: Path, damaged: str) -> None:
    add("apt", directory, keys, debs.new)
    node = AptNode(bare, directory)
    for packed in directory.glob("dists/stable/main/*/Packages.gz"):
        packed.unlink()
    for file in directory.glob(damaged):
        file.write_bytes(file.read_bytes() + b"\n")
    node.publish()
    bare.run("sh", "-c", "rm -rf /var/lib/apt/lists/*")
    assert (node.update().returncode == 0) == damaged.startswith("pool")
    done = bare.run("apt-get", "--yes", "install", "flanneld-masq", check=False)
    assert done.returncode != 0
    assert not bare.path("/usr/bin/flanneld-masq").exists()


@pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
def test_the_previous_release_is_upgraded_under_traffic(
    bare: Machine, deb: Path, packages: PackageStore, backend: BackendName
) -> None:
    """Its rules may differ, so that they are replaced; no packet leaves with a pod's address meanwhile."""
    revision = previous_release()
    if not revision:
        unable("this tree has no history; the previous release is built from it")
    apt(bare, "install", brought(bare, packages.previous("deb", revision)))
    bare.write("/etc/flanneld-masq/config.toml", f'backend = "{backend}"\n')
    bare.write_subnet()
    bare.systemctl("enable", "--now", "flanneld-masq")
    bare.reached("synced")
    topology = bare.site.topology
    flows = [Traffic(topology, of) for of in topology.addresses]
    with ExitStack() as stack:
        for traffic in flows:
            stack.enter_context(traffic.flowing())
        # The package has another example than that release, so dpkg would ask which of both to keep.
        apt(bare, "-o", "Dpkg::Options::=--force-confold", "install", brought(bare, deb))
        bare.reached("synced")
    assert bare.status()["version"] == __version__
    assert bare.path("/etc/flanneld-masq/config.toml").read_text() == f'backend = "{backend}"\n'
    assert bare.masq("plan").returncode == 0
    assert bare.site.wrong_packets() == []
    for traffic, of in zip(flows, topology.addresses):
        assert traffic.missing() == ()
        assert {source for source in traffic.sources if not source.is_link_local} == {of.node}


# ---- dnf


class DnfRoot:
    """An empty root that knows the repository, and a package that provides what Fedora would. No scriptlet runs."""

    def __init__(self, directory: Path, repository: Path) -> None:
        self.root = directory / "root"
        self._settings = directory / "repos"
        self._settings.mkdir(parents=True)
        shutil.copy(repository / "flanneld-masq.repo", self._settings)
        fedora = directory / "fedora"
        spec = directory / "fedora.spec"
        spec.write_text(_FEDORA)
        self._quiet(
            "rpmbuild", "-bb", "--define", f"_topdir {directory}/build", "--define", f"_rpmdir {fedora}", str(spec)
        )
        self._quiet("createrepo_c", str(fedora))
        (self._settings / "fedora.repo").write_text(f"[fedora]\nname=fedora\nbaseurl=file://{fedora}\ngpgcheck=0\n")

    def dnf(self, *arguments: str, environ: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
        options = {
            "reposdir": self._settings,
            "cachedir": self.root / "var/cache/dnf",
            "tsflags": "noscripts",
            "install_weak_deps": "False",
            "metadata_expire": "0",
        }
        settings = [f"--setopt={name}={value}" for name, value in options.items()]
        argv = ("dnf", "--assumeyes", "--releasever=42", f"--installroot={self.root}", *settings, *arguments)
        return subprocess.run(
            argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(BUILD_SECONDS)
        )

    @staticmethod
    def _quiet(*argv: str) -> None:
        subprocess.run(argv, check=True, capture_output=True, timeout=patience(BUILD_SECONDS))


@pytest.fixture
def place(workshop: Path) -> Iterator[Path]:
    path = workshop / "dnf"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("key", ["maintainer", ""], ids=["signed", "unsigned"])
def test_dnf_installs_upgrades_and_goes_back(
    rpms: Packages, keys: Keys, directory: Path, place: Path, key: str
) -> None:
    add("dnf", directory, keys, rpms.old, key=key, url=f"file://{directory}")
    root = DnfRoot(place, directory)
    done = root.dnf("install", "flanneld-masq")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("Importing GPG key" in done.stderr + done.stdout) == bool(key)
    assert installed_version(root) == OLD
    add("dnf", directory, keys, rpms.new, key=key, url=f"file://{directory}")
    for arguments, version in (("upgrade", __version__), ("downgrade", OLD)):
        done = root.dnf(arguments, "flanneld-masq")
        assert done.returncode == 0, done.stdout + done.stderr
        assert installed_version(root) == version, done.stdout + done.stderr


def installed_version(root: DnfRoot) -> str:
    argv = ("rpm", f"--root={root.root}", "--query", "--queryformat", "%{VERSION}", "flanneld-masq")
    return subprocess.run(argv, capture_output=True, text=True, timeout=patience(30)).stdout


@pytest.mark.parametrize("damage", ["another key", "a changed list", "a changed package"])
def test_dnf_refuses_what_the_key_did_not_sign(
    rpms: Packages, keys: Keys, directory: Path, place: Path, damage: str
) -> None:
    url = f"file://{directory}"
    if damage == "a changed package":  # the list is signed, the package in it is not
        add("dnf", directory, keys, rpms.new, key="", url=url)
        (unsigned,) = (directory / "packages").iterdir()
    else:
        unsigned = rpms.new
    add("dnf", directory, keys, unsigned, url=url)
    if damage == "another key":
        public = subprocess.run(("gpg", "--armor", "--export", "stranger"), env=keys.environ, capture_output=True)
        (directory / "flanneld-masq.asc").write_bytes(public.stdout)
    elif damage == "a changed list":
        listed = directory / "repodata/repomd.xml"
        listed.write_bytes(listed.read_bytes() + b"\n")
    root = DnfRoot(place, directory)
    assert root.dnf("install", "flanneld-masq").returncode != 0
    assert not (root.root / "usr/bin/flanneld-masq").exists()
