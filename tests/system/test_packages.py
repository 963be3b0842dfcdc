"""The packages as an administrator meets them: installed, used, upgraded, downgraded, removed and purged."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from flanneld_masq import __version__
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.model import BackendName
from flanneld_masq.process import ProcessRunner
from flanneld_masq.service import journal

from ..common import eventually, patience, unable
from .layers import Overlay
from .machine import UNIT, Machine
from .packages import BUILD_SECONDS, OLD, TREE, Packages, build, copy_tree
from .roots import RECIPES
from .rules import BACKENDS, NftRules, rules_of
from .site import subnet_file_text
from .traffic import Traffic

NEXT = "`systemctl enable --now flanneld-masq` starts it"
CONFIGURATION = "/etc/flanneld-masq/config.toml"
# Paths that the machine itself, its package managers and its caches change.
_VOLATILE = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/root"),
    *("/var/log", "/var/cache", "/var/tmp", "/var/lib/apt", "/var/lib/rpm", "/var/lib/systemd"),
)
_OF_BOTH = ("/usr/share/fish/", "/usr/share/zsh/", "/usr/share/licenses/")
_LIST_FILES = r"""find / -xdev \( {prune} \) -prune -o \( -type d -printf '%p/\n' -o -printf '%p\n' \)"""


def brought(machine: Machine, package: Path) -> str:
    """Put a package into the machine; its path there."""
    shutil.copy(package, machine.path("/root") / package.name)
    return f"/root/{package.name}"


def apt(machine: Machine, *arguments: str) -> str:
    done = machine.run(
        *("apt-get", "--yes", "--quiet", "--no-install-recommends", "--allow-downgrades", *arguments),
        timeout=BUILD_SECONDS,
        environ={"DEBIAN_FRONTEND": "noninteractive"},
    )
    # what dpkg and the scripts say, in one
    return done.stdout + done.stderr


def rpm(machine: Machine, *arguments: str) -> str:
    """Debian's rpm knows nothing of what Debian's dpkg installed."""
    done = machine.run("rpm", "--nodeps", *arguments, timeout=BUILD_SECONDS)
    return done.stdout + done.stderr


def rpm_changed(machine: Machine) -> list[str]:
    """Return the flags of `rpm --verify` for each file that changed since its installation."""
    done = machine.run("rpm", "--verify", "--nodeps", "flanneld-masq", check=False)
    return [line.split()[0] for line in done.stdout.splitlines()]


def files(machine: Machine) -> set[str]:
    """All there are, directories with a slash at the end."""
    prune = " -o ".join(f"-path {path}" for path in _VOLATILE)
    return set(machine.run("sh", "-c", _LIST_FILES.format(prune=prune)).stdout.splitlines())


def ruleset(machine: Machine) -> str:
    """All of nf_tables but counters, and which tables legacy has; without making any."""
    return machine.run(
        "sh", "-c", "nft --stateless list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"
    ).stdout


def enabled(machine: Machine, backend: BackendName) -> None:
    """The usual state of a node, by hand."""
    machine.configure(backend=backend)
    machine.write_subnet()
    machine.systemctl("enable", "--now", UNIT)
    machine.reached("synced")


def state(machine: Machine) -> tuple[str, str]:
    return machine.systemctl("is-enabled", UNIT, check=False).strip(), machine.show("ActiveState")


# ---- the deb


def test_an_installed_deb_does_nothing_yet_and_says_what_is_next(bare: Machine, debs: Packages) -> None:
    bare.write_subnet()
    before = ruleset(bare)
    said = apt(bare, "install", brought(bare, debs.new))
    assert NEXT in said
    assert "flanneld-masq plan" in said
    assert state(bare) == ("disabled", "inactive")
    assert ruleset(bare) == before
    bare.site.assert_not_masqueraded()
    assert bare.masq("plan", check=False).returncode == 3
    apt(bare, "install", "--reinstall", f"/root/{debs.new.name}")
    assert state(bare) == ("disabled", "inactive")


def test_what_comes_with_the_deb_works(bare: Machine, debs: Packages) -> None:
    apt(bare, "install", brought(bare, debs.new))
    assert bare.run("dpkg", "--verify", "flanneld-masq").stdout == ""
    enabled(bare, BackendName("nft"))
    assert state(bare) == ("enabled", "active")
    assert bare.site.wrong_packets() == []
    assert_usable(bare)
    assert_isolated(bare)
    assert_zsh_completes(bare)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deb_upgrade_and_downgrade_under_traffic_lose_nothing(
    bare: Machine, debs: Packages, backend: BackendName
) -> None:
    apt(bare, "install", brought(bare, debs.old))
    enabled(bare, backend)
    assert_replaced(bare, backend, __version__, lambda: apt(bare, "install", brought(bare, debs.new)))
    assert_replaced(bare, backend, OLD, lambda: apt(bare, "install", f"/root/{debs.old.name}"))


def test_an_upgrade_of_the_deb_starts_nothing_that_did_not_run(bare: Machine, debs: Packages) -> None:
    apt(bare, "install", brought(bare, debs.old))
    bare.systemctl("enable", UNIT)
    apt(bare, "install", brought(bare, debs.new))
    assert state(bare) == ("enabled", "inactive")
    bare.systemctl("disable", UNIT)
    apt(bare, "install", f"/root/{debs.old.name}")
    assert state(bare) == ("disabled", "inactive")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_purged_deb_leaves_no_rule_and_no_file(bare: Machine, debs: Packages, backend: BackendName) -> None:
    package = brought(bare, debs.new)
    before = prepared(bare, backend)
    apt(bare, "install", package)
    enabled(bare, backend)
    bare.site.assert_masqueraded()
    bare.masq("status")
    said = apt(bare, "remove", "flanneld-masq")
    assert re.search(rf"^ipv4 {backend}: ", said, re.MULTILINE)
    bare.site.assert_not_masqueraded()
    assert bare.path(CONFIGURATION).exists()
    apt(bare, "purge", "flanneld-masq")
    assert_gone(bare, before)


def test_a_deb_with_a_bad_configuration_goes_with_its_rules(bare: Machine, debs: Packages) -> None:
    apt(bare, "install", brought(bare, debs.new))
    enabled(bare, BackendName("nft"))
    bare.configure("no_such_key = 1")
    said = apt(bare, "remove", "flanneld-masq")
    assert "no_such_key" in said
    bare.site.assert_not_masqueraded()


def test_what_debian_would_test_passes(bare: Machine, debs: Packages) -> None:
    apt(bare, "install", brought(bare, debs.new))
    script = bare.write("/root/service", (TREE / "packaging/debian/tests/service").read_text())
    script.chmod(0o755)
    bare.run("/root/service", timeout=BUILD_SECONDS)


# ---- the rpm


def test_an_installed_rpm_does_nothing_yet_and_says_what_is_next(bare: Machine, rpms: Packages) -> None:
    bare.write_subnet()
    before = ruleset(bare)
    said = rpm(bare, "--install", brought(bare, rpms.new))
    assert NEXT in said
    assert "flanneld-masq plan" in said
    assert state(bare) == ("disabled", "inactive")
    assert ruleset(bare) == before
    bare.site.assert_not_masqueraded()
    assert bare.masq("plan", check=False).returncode == 3
    rpm(bare, "--upgrade", "--replacepkgs", f"/root/{rpms.new.name}")
    assert state(bare) == ("disabled", "inactive")


def test_what_comes_with_the_rpm_works(bare: Machine, rpms: Packages) -> None:
    rpm(bare, "--install", brought(bare, rpms.new))
    assert rpm(bare, "--verify", "flanneld-masq") == ""
    enabled(bare, BackendName("nft"))
    assert state(bare) == ("enabled", "active")
    assert bare.site.wrong_packets() == []
    assert_usable(bare)
    assert_isolated(bare)
    listed = bare.masq("backends").stdout
    assert [name for name in BACKENDS if f" {name} " not in listed] == []
    bare.run("rm", CONFIGURATION)
    assert rpm_changed(bare) == ["missing"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rpm_upgrade_and_downgrade_under_traffic_lose_nothing(
    bare: Machine, rpms: Packages, backend: BackendName
) -> None:
    rpm(bare, "--install", brought(bare, rpms.old))
    enabled(bare, backend)
    assert_replaced(bare, backend, __version__, lambda: rpm(bare, "--upgrade", brought(bare, rpms.new)))
    assert_replaced(bare, backend, OLD, lambda: rpm(bare, "--upgrade", "--oldpackage", f"/root/{rpms.old.name}"))


def test_an_upgrade_of_the_rpm_starts_nothing_that_did_not_run(bare: Machine, rpms: Packages) -> None:
    rpm(bare, "--install", brought(bare, rpms.old))
    bare.systemctl("enable", UNIT)
    rpm(bare, "--upgrade", brought(bare, rpms.new))
    assert state(bare) == ("enabled", "inactive")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_erased_rpm_leaves_no_rule_and_no_file(bare: Machine, rpms: Packages, backend: BackendName) -> None:
    package = brought(bare, rpms.new)
    before = prepared(bare, backend)
    rpm(bare, "--install", package)
    enabled(bare, backend)
    bare.site.assert_masqueraded()
    bare.masq("status")
    said = rpm(bare, "--erase", "flanneld-masq")
    assert re.search(rf"^ipv4 {backend}: ", said, re.MULTILINE)
    bare.site.assert_not_masqueraded()
    bare.path(f"{CONFIGURATION}.rpmsave").unlink()  # it was changed, so it is kept
    bare.path(CONFIGURATION).parent.rmdir()
    assert_gone(bare, before)


# ---- where there is no systemd, or the kernel is another's


@pytest.mark.parametrize("proc", [False, True], ids=["without /proc", "with /proc"])
def test_removal_in_a_chroot_leaves_the_rules_of_the_host(
    machine: Machine, installed: Callable[[str], Path], workshop: Path, release: str, rpms: Packages, proc: bool
) -> None:
    enabled(machine, BackendName("nft"))
    rules = rules_of(machine.site.topology, BackendName("nft"))
    assert isinstance(rules, NftRules)
    before = rules.handles(), rules.generation()
    overlay = Overlay(workshop / "chroot", (installed(release), RECIPES[release].directory), ProcessRunner())
    said = ""
    with ExitStack() as stack:
        stack.callback(overlay.close)
        if proc:
            # Without the mounts below it: in a container umount cannot end all of them.
            subprocess.run(("mount", "--bind", "/proc", str(overlay.root / "proc")), check=True)
            stack.callback(subprocess.run, ("umount", str(overlay.root / "proc")), check=True)
        shutil.copy(rpms.new, overlay.root / "root")
        for command in (
            "apt-get --yes purge flanneld-masq",
            f"rpm --nodeps --install /root/{rpms.new.name}",
            "rpm --nodeps --erase flanneld-masq",
        ):
            argv = ("ip", "netns", "exec", machine.site.node_name, "chroot", str(overlay.root), *command.split())
            done = subprocess.run(argv, capture_output=True, text=True, timeout=patience(BUILD_SECONDS))
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout + done.stderr
        assert not (overlay.root / "usr/bin/flanneld-masq").exists()
    assert (rules.handles(), rules.generation()) == before, said  # the daemon would put back what is removed
    machine.site.assert_masqueraded()


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_without_systemd_it_installs_and_goes_with_its_rules(
    kind: str, release: str, workshop: Path, debs: Packages, rpms: Packages
) -> None:
    package = {"deb": debs, "rpm": rpms}[kind].new
    commands = {
        "deb": (f"dpkg --install /root/{package.name}", "dpkg --purge flanneld-masq"),
        "rpm": (f"rpm --nodeps --install /root/{package.name}", "rpm --nodeps --erase flanneld-masq"),
    }[kind]
    script = f"""
        set -eux
        {commands[0]}
        mkdir -p /run/flannel
        cp /root/subnet.env /run/flannel
        flanneld-masq --backend nft apply
        nft list table ip flanneld-masq
        {commands[1]}
        nft list ruleset >/root/ruleset
        test ! -e /run/flanneld-masq
    """
    overlay = Overlay(workshop / "nosystemd", (RECIPES[release].directory,), ProcessRunner())
    with ExitStack() as stack:
        stack.callback(overlay.close)
        shutil.copy(package, overlay.root / "root")
        (overlay.root / "root/subnet.env").write_text(subnet_file_text())
        argv = (
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"),
            *("--capability=CAP_NET_ADMIN", f"--directory={overlay.root}", "--as-pid2", "sh", "-c", script),
        )
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(BUILD_SECONDS)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (overlay.root / "root/ruleset").read_text() == ""


# ---- the builds


@pytest.fixture(scope="session")
def copied_tree(workshop: Path) -> Path:
    """The tree elsewhere, without git."""
    return copy_tree(workshop / "copy")


def test_two_builds_of_the_deb_are_the_same(deb: Path, copied_tree: Path, workshop: Path) -> None:
    again = build(
        "deb", copied_tree, workshop / "again-deb", umask=0o077, environ={"TZ": "Asia/Kolkata", "LC_ALL": "C"}
    )
    assert again.name == deb.name
    assert again.read_bytes() == deb.read_bytes()


def test_two_builds_of_the_rpm_are_the_same(rpms: Packages, copied_tree: Path, workshop: Path) -> None:
    again = build(
        "rpm", copied_tree, workshop / "again-rpm", umask=0o077, environ={"TZ": "Asia/Kolkata", "LC_ALL": "C"}
    )
    assert again.name == rpms.new.name
    assert again.read_bytes() == rpms.new.read_bytes()


def test_both_packages_have_the_same_files(deb: Path, rpms: Packages) -> None:
    listed = subprocess.run(("dpkg-deb", "--contents", str(deb)), capture_output=True, text=True, check=True).stdout
    in_deb = [line.split(None, 5)[5].removeprefix(".") for line in listed.splitlines() if not line.endswith("/")]
    listed = subprocess.run(("rpm", "-qp", "--list", "--verbose", str(rpms.new)), capture_output=True, text=True).stdout
    in_rpm = [line.split(None, 8)[8] for line in listed.splitlines() if not line.startswith("d")]
    # an rpm has the one in its header, and the other beside its description
    of_deb_alone = {"/usr/share/doc/flanneld-masq/changelog.Debian.gz", "/usr/share/lintian/overrides/flanneld-masq"}
    assert set(map(common_name, in_deb)) - of_deb_alone == set(map(common_name, in_rpm))


def common_name(path: str) -> str:
    """Return one name for a file that deb and rpm install at different paths."""
    for pattern, name in (
        (r"^/lib/", "/usr/lib/"),
        (r"^/usr/(lib/python3/dist-packages|share/flanneld-masq)/flanneld_masq", "MODULES"),
        (r"^(MODULES-[\d.]+dist-info)/(WHEEL|RECORD|top_level.txt)$", r"\1/METADATA"),
        (r"^/usr/share/zsh/(vendor-completions|site-functions)/", "ZSH/"),
        (r"^/usr/share/doc/flanneld-masq/(changelog\.gz|CHANGELOG\.md)$", "CHANGELOG"),
        (r"^(/usr/share/doc/.*\.md)\.gz$", r"\1"),
        (r"^/usr/share/(licenses/flanneld-masq/LICENSE|doc/flanneld-masq/copyright)$", "LICENCE"),
    ):
        path = re.sub(pattern, name, path)
    return path


def test_lintian_finds_nothing(deb: Path) -> None:
    if not shutil.which("lintian"):
        unable("lintian is missing; `scripts/setup-packaging check` installs it")
    (changes,) = deb.parent.glob("*.changes")
    argv = ("lintian", "--allow-root", "--fail-on", "warning,error", "--tag-display-limit", "0", str(changes))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=patience(BUILD_SECONDS))
    assert (done.returncode, done.stdout) == (0, "")


def test_rpmlint_finds_nothing(rpms: Packages) -> None:
    if not shutil.which("rpmlint"):
        unable("rpmlint is missing; `scripts/setup-packaging check` installs it")
    found = sorted(map(str, rpms.new.parent.glob("*.rpm")))
    assert len(found) == 2
    argv = ("rpmlint", "--strict", "--config", str(TREE / "packaging/rpm/rpmlint.toml"), *found)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=patience(BUILD_SECONDS))
    assert done.returncode == 0, done.stdout
    assert "0 errors, 0 warnings" in done.stdout


# ---- what they share


def prepared(machine: Machine, backend: BackendName) -> tuple[set[str], str]:
    """The files and the ruleset before the package was installed, with foreign rules among them."""
    if backend == "iptables-legacy":  # its tables stay for ever once a program has listed them
        for tool, table in itertools.product(("iptables", "ip6tables"), ("nat", "filter")):
            machine.run(f"{tool}-legacy", "-t", table, "-S")
    machine.run("nft", "add table inet others { chain c { type filter hook forward priority 0 ; } ; }")
    if backend == "iptables-nft":  # and so do the base chains of iptables-nft
        for tool, table in itertools.product(("iptables", "ip6tables"), ("nat", "filter")):
            machine.run(f"{tool}-nft", "-t", table, "-A", "FORWARD" if table == "filter" else "POSTROUTING")
    return files(machine), ruleset(machine)


def assert_gone(machine: Machine, before: tuple[set[str], str]) -> None:
    found = files(machine)
    # Directories too, but for those that both kinds of packages want: rpm does not know that dpkg keeps some of them.
    differs = {path for path in found ^ before[0] if not path.startswith(_OF_BOTH) or not path.endswith("/")}
    assert differs == set()
    assert ruleset(machine) == before[1]
    assert not machine.path("/run/flanneld-masq").exists()
    assert list(machine.path("/var/lib/systemd").rglob("*flanneld*")) == []
    assert journal.MESSAGE_IDS["started"] not in machine.run("journalctl", "--list-catalog").stdout
    assert machine.show("LoadState") == "not-found"


def assert_replaced(machine: Machine, backend: BackendName, version: str, replace: Callable[[], str]) -> None:
    """Have the package replaced while packets flow. None is lost or leaves with a pod's address, and the rules stay as
    they are, as does the configuration."""
    topology = machine.site.topology
    rules = rules_of(topology, backend)
    configuration = machine.path(CONFIGURATION).read_text()
    before, pid = rules.look(), machine.show("MainPID")
    flows = [Traffic(topology, of) for of in topology.addresses]
    with ExitStack() as stack:
        for traffic in flows:
            stack.enter_context(traffic.flowing())
        said = replace()
        machine.reached("synced")
    assert NEXT not in said
    assert machine.show("MainPID") not in ("0", pid)
    assert (machine.masq("--version").stdout, machine.status()["version"]) == (f"flanneld-masq {version}\n", version)
    assert state(machine) == ("enabled", "active")
    assert machine.path(CONFIGURATION).read_text() == configuration
    for traffic, of in zip(flows, topology.addresses):
        assert traffic.missing() == ()
        assert {source for source in traffic.sources if not source.is_link_local} == {of.node}
    assert rules.look() == before


def assert_usable(machine: Machine) -> None:
    """Manual pages, completions, the message catalog and the policy of D-Bus, where each is looked for."""
    introspect = ("busctl", "introspect", NAME, PATH, MANAGER.name)
    eventually(lambda: machine.run(*introspect, check=False).returncode == 0)
    assert ".Reconcile" in machine.run(*introspect).stdout
    page = machine.run("man", "flanneld-masq", environ={"MANWIDTH": "100"}).stdout
    assert "keeps the masquerade rules of a flannel node right" in page
    assert "non_masquerade_cidrs" in machine.run("man", "5", "flanneld-masq.toml").stdout
    said = machine.run("journalctl", "--unit", UNIT, "--catalog", "--no-pager").stdout
    assert "Subject: flanneld-masq has started" in said
    script = (
        "source /usr/share/bash-completion/bash_completion; _completion_loader flanneld-masq;"
        "COMP_WORDS=(flanneld-masq expl); COMP_CWORD=1; _flanneld_masq; echo ${COMPREPLY[@]}"
    )
    assert machine.run("bash", "-c", script).stdout == "explain\n"
    assert "explain" in machine.run("fish", "-c", "complete --do-complete 'flanneld-masq expl'").stdout


def assert_isolated(machine: Machine) -> None:
    """Root's command loads a plugin that root installed, and none from a home directory, PYTHONPATH or the working
    directory."""
    version = machine.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()
    local = f"/usr/local/lib/python{version}/dist-packages"
    homes = (f"/root/.local/lib/python{version}/site-packages", "/tmp/evil")
    for place, name in ((local, "good"), *((home, "evil") for home in homes)):
        machine.write(f"{place}/{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        machine.write(f"{place}/{name}-1.dist-info/entry_points.txt", f"[flanneld_masq]\n{name} = {name}plug\n")
        machine.write(f"{place}/{name}plug.py", f"open('/run/{name}', 'w')\n")
    for module in ("pluggy", "argparse", "usercustomize"):
        for home in homes:
            machine.write(f"{home}/{module}.py", "open('/run/evil', 'w')\n")
    environ = {"HOME": "/root", "PYTHONPATH": "/tmp/evil"}
    machine.run("sh", "-c", "cd /tmp/evil && flanneld-masq backends", environ=environ)
    assert (machine.path("/run/good").exists(), machine.path("/run/evil").exists()) == (True, False)


def assert_zsh_completes(machine: Machine) -> None:
    """Debian's zsh looks where Debian's packages put it, and not where those of Fedora do."""
    script = "autoload -Uz compinit && compinit -D -u && echo $_comps[flanneld-masq] && autoload +X _flanneld-masq"
    assert machine.run("zsh", "-f", "-c", script).stdout == "_flanneld-masq\n"
