"""The image of `make image` in a container with the rights and mounts of the DaemonSet. `make image-test` runs this."""

from __future__ import annotations

import pytest

from flanneld_masq.model import Family

from ..common import eventually
from .conftest import MakeMachine
from .container import ARCHIVE, Container
from .machine import Machine
from .test_protection import handles, refused

pytestmark = pytest.mark.parametrize("release", ["containers-trixie"], indirect=True)
# Longer than any test here waits, so that the lock file alone tells of a change.
NO_POLL = "[reconcile]\nlegacy_poll_seconds = 60\nresync_seconds = 3600\n"
POLL_NOT_WAITED_FOR = 5.0  # times PATIENCE is less than 60 s


@pytest.fixture
def node(make_machine: MakeMachine) -> Machine:
    """A machine without the project, whose root has podman."""
    assert ARCHIVE.exists(), "`make image` makes it"
    machine = make_machine(bare=True)
    machine.boot()
    return machine


@pytest.fixture
def container(node: Machine) -> Container:
    return Container(node)


def synced(container: Container) -> None:
    eventually(lambda: container.masq("wait", "--for", "synced", "--timeout", "5", check=False).returncode == 0)


def test_rules_are_those_of_the_node(node: Machine, container: Container) -> None:
    """The pod starts before flannel has written its file."""
    container.start()
    eventually(lambda: "waiting" in container.masq("status").stdout)
    assert container.probe("readinessProbe") == container.probe("livenessProbe") == 0
    node.write_subnet()
    synced(container)
    assert container.probe("readinessProbe") == container.probe("livenessProbe") == 0
    assert node.site.wrong_packets() == []
    assert "started, pid 1" in container.log()
    assert "WARNING" not in container.log()
    assert "ERROR" not in container.log()
    done = container.masq("doctor", "--brief")
    assert done.stdout == "healthy: nothing found that breaks masquerading\n"


def test_nothing_else_is_allowed(node: Machine, container: Container) -> None:
    container.start()
    status = node.run("podman", "exec", "flanneld-masq", "cat", "/proc/1/status").stdout
    values = dict(line.split(":\t", 1) for line in status.splitlines())
    net_admin_and_net_raw = f"{1 << 12 | 1 << 13:016x}"
    assert {values[name] for name in ("CapBnd", "CapEff", "CapPrm")} == {net_admin_and_net_raw}
    assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
    for path in ("/etc/flanneld-masq/x", "/run/flannel/x", "/tmp/x", "/usr/x"):
        done = node.run("podman", "exec", "flanneld-masq", "touch", path, check=False)
        assert "Read-only file system" in done.stderr, path


def test_protected_tables_outlive_restart_and_sigkill(node: Machine, container: Container) -> None:
    node.write_subnet()
    container.start()
    synced(container)
    if "protected (owner and persist)" not in container.masq("status").stdout:
        pytest.skip("this kernel has no tables that persist (Linux 6.9)")
    before = handles(node)
    assert refused(node)
    container.stop()
    assert "rules stay in place" in container.log()
    assert handles(node) == before
    node.site.assert_masqueraded()
    for end in (container.stop, container.kill):
        container.again()
        synced(container)
        assert refused(node)
        assert handles(node) == before
        end()
        assert handles(node) == before
    node.site.assert_masqueraded()


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_the_flavour_of_the_node_decides(node: Machine, container: Container, flavour: str) -> None:
    """In the image, `iptables` is of flavour nf_tables."""
    node.write_subnet()
    for tools in ("iptables", "ip6tables"):
        node.run(f"{tools}-{flavour}", "--policy", "FORWARD", "DROP")
    container.start()
    synced(container)
    for family in Family:
        assert f"{family} forward: backend iptables-{flavour}" in container.log()
    for tools in ("iptables", "ip6tables"):
        assert "FLANNELD-MASQ-FWD" in node.run(f"{tools}-{flavour}-save", "-t", "filter").stdout
    node.site.assert_masqueraded()


def test_the_lock_of_iptables_legacy_is_the_nodes(node: Machine, container: Container) -> None:
    node.write_subnet()
    container.configure(f'backend = "iptables-legacy"\n{NO_POLL}')
    container.start()
    synced(container)
    assert node.site.wrong_packets() == []

    def rules() -> int:
        return node.run("iptables-legacy-save", "-t", "nat").stdout.count("flanneld-masq:")

    before = rules()
    node.run("iptables-legacy", "-t", "nat", "-F")
    eventually(lambda: rules() == before, POLL_NOT_WAITED_FOR)  # the close of the lock file was seen in the container

    holder = node.start("flock", "/run/xtables.lock", "sh", "-c", "echo held; exec sleep 600")
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    refused = node.run("podman", "exec", "flanneld-masq", "iptables-legacy", "-w", "0", "-t", "nat", "-L", check=False)
    assert "holding the xtables lock" in refused.stderr
    holder.terminate()


def test_drift_is_repaired_and_its_author_named(node: Machine, container: Container) -> None:
    """Without hostPID the pid of a program on the node has no meaning in the container, but its name has."""
    node.write_subnet()
    container.configure("[nft]\nprotect = false\n")
    container.start()
    synced(container)
    node.run("nft", "flush", "ruleset")
    eventually(lambda: "nft (pid not known in a pid namespace)" in container.log())
    synced(container)
    node.site.assert_masqueraded()


def test_a_command_elsewhere_knows_the_daemon(node: Machine, container: Container) -> None:
    """As node-problem-detector would run one, in a container with another pid namespace."""
    node.write_subnet()
    container.start()
    synced(container)
    done = container.beside("doctor", "--brief")
    assert (done.returncode, done.stdout) == (0, "healthy: nothing found that breaks masquerading\n")
    assert container.beside("status", "--check").returncode == 0
    refused = container.beside("cleanup")
    assert (refused.returncode, "the daemon runs" in refused.stderr) == (1, True)
    container.stop()
    stopped = container.beside("doctor", "--brief")
    assert (stopped.returncode, stopped.stdout) == (1, "problem: daemon-not-running\n")
    assert container.beside("status", "--check").returncode == 2
