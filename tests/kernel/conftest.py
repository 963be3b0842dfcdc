"""Real network namespaces, the real tools, the real kernel. Nothing of it outlives a test.

The first kernel test moves the test process into private mount and network namespaces (and a user
namespace, where it is not root), from where nothing reaches the machine's own ruleset.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Optional

import nftables
import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.controller.attribution import in_initial_pid_namespace
from flanneld_masq.hookspecs import Backend, Host
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import BackendName, Family, Lease, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.selftest import netns
from flanneld_masq.selftest.netns import Netns
from flanneld_masq.selftest.topology import Topology, batch
from flanneld_masq.state_directory import StateDirectory

from ..common import eventually, patience, unable
from . import started
from .started import Started

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")
KERNEL_SHARES_OUR_PIDS = in_initial_pid_namespace()  # in a container it reports other pids than /proc
SUBNET_ENV = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""
_names = itertools.count()
if not hasattr(nftables.Nftables, "set_dry_run"):
    # 0.9.8: if there was ever a second context, freeing one ends all tests ("double free or corruption")
    del nftables.Nftables.__del__


def at_once(*calls: Callable[[], object]) -> list[Any]:
    """Do them all at the same time, each in a process of its own, and return what they return."""
    context = multiprocessing.get_context("fork")
    running = []
    for call in calls:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_result, args=(sender, call))
        process.start()
        sender.close()
        running.append((process, receiver))
    results = []
    for process, receiver in running:
        results.append(receiver.recv())
        process.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _send_result(sender: Connection, call: Callable[[], object]) -> None:
    try:
        sender.send(call())
    except Exception:
        sender.send(AssertionError(traceback.format_exc()))  # not the error itself, which may not bear the way


@pytest.fixture(scope="session", autouse=True)
def private_namespaces() -> None:
    try:
        netns.enter()
    except netns.NamespaceError as error:
        unable(str(error))
    started.prepare()
    # Unit tests that follow in this process connect to loopback addresses.
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True, timeout=patience(10))


@pytest.fixture(autouse=True)
def no_bus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon of a test is on no bus but one that the test makes."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")


@pytest.fixture(params=list(Family), ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    if missing_family(Path("/"), found):
        unable(missing_family(Path("/"), found))
    return found


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest, node: Node) -> BackendName:
    found = BackendName(request.param)
    with node.entered():
        probe = node.backends(Family.IPV4)[found].probe()
    if not probe.usable:
        unable(f"{found}: {probe.reason}; {probe.remedy}")
    return found


class Node:
    """A network namespace with a subnet file, a state directory and a configuration file of its own.

    `reconciler` and `backends` work in this process, while `entered`; `masq` starts the real program.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory
        self.run = ProcessRunner()
        batch(self.run, [f"netns add {name}"])
        self.netns = Netns(name)
        self.subnet_file = directory / "flannel" / "subnet.env"
        self.subnet_file.parent.mkdir()
        self.state = directory / "state"
        self.config_file = directory / "config.toml"
        self.settings = self.configure("")
        self.write_subnet(SUBNET_ENV)

    def configure(self, text: str, *, protect: bool = False, **top: str) -> Settings:
        """Write and read the configuration: `top` are top-level strings, `text` the tables. Without `protect`, other
        programs can damage the table of nft."""
        values: Mapping[str, object] = {"state_directory": str(self.state), "net_conf": "/nonexistent", **top}
        lines = [f'{key} = "{value}"' for key, value in values.items()]
        lines.append(f'subnet_files = ["{self.subnet_file}"]')
        nft = "" if protect else "[nft]\nprotect = false"
        self.config_file.write_text("\n".join([*lines, text, nft, ""]))
        self.settings = config.load(self.config_file)
        return self.settings

    def write_subnet(self, text: str) -> None:
        """As flannel does: beside it, then by rename."""
        temporary = self.subnet_file.with_name(".subnet.env")
        temporary.write_text(text)
        temporary.replace(self.subnet_file)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self.netns.entered():
            yield

    def tool(self, *argv: str, stdin: str = "") -> str:
        """Run a program in the namespace; what it printed. Raises CommandError where it fails."""
        with self.entered():
            return self.run(argv, stdin=stdin).stdout

    def masq(self, *argv: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run flanneld-masq to its end; with `environ`, by an interpreter of its own."""
        with self.entered():
            if environ is None and started.possible():
                return started.run(self._arguments(*argv), os.environ, patience(60))
            return subprocess.run(
                self.argv(*argv),
                capture_output=True,
                text=True,
                timeout=patience(60),
                env={**os.environ, **(environ or {})},
            )

    def argv(self, *argv: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "flanneld_masq", *self._arguments(*argv))

    def lease(self) -> Lease:
        found = subnet_env.read(self.subnet_file)
        assert found is not None
        return found

    def desired_state(self) -> DesiredState:
        return DesiredState(self.settings, (self.lease(),))

    def backends(self, family: Family) -> dict[BackendName, Backend]:
        return plugin_loader.load().create(family, Host(self.run))

    def reconciler(self, family: Family) -> Reconciler:
        """Call it, and what it returns, while `entered`: its netlink socket belongs to the namespace."""
        return Reconciler(family, self.backends(family), StateDirectory(self.state))

    def store(self) -> StateDirectory:
        return StateDirectory(self.state)

    def ruleset(self) -> str:
        """Everything in both kernel interfaces, without counters; legacy tables only where they exist."""
        parts = [self.tool("nft", "-s", "list", "ruleset")]
        for tools, names in (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")):
            with self.entered():
                path = Path("/proc/thread-self/net", names)
                tables = sorted(path.read_text().split()) if path.exists() else []
            for table in tables:
                saved = self.tool(f"{tools}-legacy-save", "-t", table).splitlines()
                parts.append("\n".join(line.split(" [")[0] for line in saved if not line.startswith("#")))
        return "\n".join(parts)

    @contextmanager
    def running(self, *argv: str, spawn: Optional[Callable[..., subprocess.Popen[bytes]]] = None) -> Iterator[Daemon]:
        """The daemon, as a process of its own in the namespace, until the end of the block. `spawn` starts it
        instead of `netns.spawn`."""
        with self.entered(), (self.directory / f"log{next(_names)}").open("wb") as log:
            if spawn is None and started.possible():
                process: Started | subprocess.Popen[bytes] = started.Started(
                    self._arguments(*argv, "run"), os.environ, log.fileno(), log.fileno()
                )
            else:
                process = (spawn or netns.spawn)(self.argv(*argv, "run"), output=log)
        daemon = Daemon(process, Path(log.name), self.store())
        try:
            yield daemon
        finally:
            process.kill()
            process.wait()

    def _arguments(self, *argv: str) -> tuple[str, ...]:
        return ("--config", str(self.config_file), *argv)

    def close(self) -> None:
        self.netns.close()
        batch(self.run, [f"netns del {self.netns.name}"])


class Daemon:
    """A running daemon, and what it says of itself."""

    def __init__(self, process: Started | subprocess.Popen[bytes], log: Path, store: StateDirectory) -> None:
        self.process = process
        self._log = log
        self._store = store

    def lines(self, *words: str) -> list[str]:
        """Return the logged lines that contain all of these words."""
        return [line for line in self._log.read_text().splitlines() if all(word in line for word in words)]

    def status(self) -> dict[str, Any]:
        """Its status file; empty before it wrote one."""
        found = self._store.status() or {}
        return found if found.get("pid") == self.process.pid else {}

    def reached(self, state: str, family: Optional[Family] = None) -> None:
        """Wait until it says that of itself, or of a family."""

        def found() -> bool:
            assert self.process.poll() is None, f"it ended: {self.lines()}"
            status = self.status()
            return bool(status) and (status["families"][str(family)] if family else status)["state"] == state

        eventually(found)

    def logged(self, *words: str) -> str:
        """Wait for a line with all of these words."""
        return eventually(lambda: self.lines(*words))[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status, which comes within a second of an idle machine."""
        self.process.terminate()
        return self.process.wait(patience(1))


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[[], Node]]:
    nodes: list[Node] = []

    def make() -> Node:
        name = f"node{next(_names)}"
        directory = tmp_path / name
        directory.mkdir()
        nodes.append(Node(name, directory))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def node(make_node: Callable[[], Node]) -> Node:
    return make_node()


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology(prefix="lab-") as found:
        yield found


@pytest.fixture
def lab_node(node: Node, topology: Topology) -> Iterator[Node]:
    """The one in the middle of the lab."""
    own, node.netns = node.netns, topology.node
    node.write_subnet("".join(each.subnet_lines() for each in topology.addresses))
    yield node
    node.netns = own
