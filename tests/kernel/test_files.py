"""Files and tools in every bad state: the daemon goes on repairing, and says what is wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flanneld_masq.model import Family
from flanneld_masq.selftest import netns

from ..common import eventually, patience
from .conftest import SUBNET_ENV, Daemon, Node
from .test_daemon import OTHER_SUBNET, damage, in_sync, reload, rules

_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h
MOUNTED = ("mount", "-t", "tmpfs", "-o")


def repaired(node: Node, daemon: Daemon, family: Family = Family.IPV4) -> None:
    """Damage the daemon's rules, and wait until they are as before."""
    before, repairs = rules(node), len(daemon.lines(f"{family}: drift repaired"))
    damage(node, family, node.settings.backend)
    eventually(lambda: len(daemon.lines(f"{family}: drift repaired")) > repairs)
    eventually(lambda: rules(node) == before)
    assert daemon.process.poll() is None


# ---- links to the subnet file


def link_file(node: Node, target: Path) -> Path:
    node.subnet_file.unlink()
    node.subnet_file.symlink_to(target / "subnet.env")
    return node.subnet_file


def link_directory(node: Node, target: Path) -> Path:
    shutil.rmtree(node.subnet_file.parent)
    node.subnet_file.parent.symlink_to(os.path.relpath(target, node.directory))
    return node.subnet_file.parent


def link_in_config_map(node: Node, target: Path) -> Path:
    node.subnet_file.unlink()
    node.subnet_file.symlink_to("..data/subnet.env")
    node.subnet_file.with_name("..data").symlink_to(target)
    return node.subnet_file.with_name("..data")


@pytest.mark.parametrize("make", [link_file, link_directory, link_in_config_map])
def test_a_subnet_file_behind_a_link_is_followed_at_once(make: Callable[[Node, Path], Path], node: Node) -> None:
    targets = []
    for number in range(2):
        targets.append(node.directory / f"target{number}")
        targets[-1].mkdir()
        (targets[-1] / "subnet.env").write_text(SUBNET_ENV.replace("10.244.1.", f"10.244.2{number}."))
    link = make(node, targets[0])
    with in_sync(node):
        assert "10.244.20.0/24" in node.ruleset()

        def follows(change: Callable[[], object], subnet: str) -> None:
            started = time.monotonic()
            change()
            eventually(lambda: subnet in node.ruleset(), 5)
            assert time.monotonic() - started < patience(0.5), "not as late as the resync"

        def swap() -> None:
            new = link.with_name("new")
            new.symlink_to(targets[1] / "subnet.env" if make is link_file else targets[1])
            new.replace(link)

        follows(lambda: (targets[0] / "subnet.env").write_text(OTHER_SUBNET), "10.244.9.0/24")
        follows(swap, "10.244.21.0/24")
        follows(lambda: (targets[1] / "subnet.env").write_text(SUBNET_ENV), "10.244.1.0/24")


# ---- files that cannot be read


@contextmanager
def as_an_ordinary_user(node: Node) -> Iterator[Daemon]:
    """The daemon as a user to whom the modes of files apply: root without the capabilities to pass over them."""
    dropped = "-dac_override,-dac_read_search"
    without = f"--inh-caps={dropped}", f"--bounding-set={dropped}"  # root gets what either set has
    with node.entered(), (node.directory / "log").open("wb") as log:
        process = netns.spawn(("setpriv", *without, *node.argv("run")), output=log)
    daemon = Daemon(process, Path(log.name), node.store())
    try:
        daemon.reached("synced")
        status = Path(f"/proc/{process.pid}/status").read_text()
        effective = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
        assert effective & (1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH) == 0
        yield daemon
    finally:
        process.kill()
        process.wait()


def test_a_directory_it_may_no_longer_enter_is_a_file_error(node: Node) -> None:
    above = node.directory / "above"
    above.mkdir()
    node.subnet_file = Path(shutil.move(node.subnet_file.parent, above)) / "subnet.env"
    node.configure("[reconcile]\nresync_seconds = 1\n", backend="nft")
    with as_an_ordinary_user(node) as daemon:
        above.chmod(0)
        line = daemon.logged("ERROR", f"{node.subnet_file}: cannot be read: Permission denied")
        remedy = f"`setfacl -m u:root:x {above}` or `chmod o+x {above}` lets it"
        assert f"the user root may not enter {above}; {remedy}" in line
        eventually(lambda: any("Permission denied" in trouble for trouble in daemon.status()["troubles"]))
        assert daemon.status()["state"] == "synced"
        repaired(node, daemon)
        above.chmod(0o755)
        eventually(lambda: not daemon.status()["troubles"])
        node.write_subnet(OTHER_SUBNET)
        eventually(lambda: "10.244.9.0/24" in node.ruleset())


@pytest.mark.parametrize("kind", ["fifo", "huge", "directory", "no json"])
def test_a_net_conf_that_is_no_such_file_holds_up_nothing(kind: str, node: Node) -> None:
    net_conf = node.directory / "net-conf.json"
    node.configure("", backend="nft", net_conf=str(net_conf))
    with node.running() as daemon:
        daemon.reached("synced")
        if kind == "fifo":
            os.mkfifo(net_conf)
        elif kind == "directory":
            net_conf.mkdir()
        else:
            net_conf.write_text("{")
            os.truncate(net_conf, 1 << 40 if kind == "huge" else 1)
        reload(daemon)
        daemon.logged("WARNING", f"{net_conf}: cannot be read", "taken as if it were not there")
        eventually(lambda: any(str(net_conf) in trouble for trouble in daemon.status()["troubles"]))
        repaired(node, daemon)
        memory = Path(f"/proc/{daemon.process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
        assert int(memory) < 100_000, "kB"
        assert daemon.stop() == 0


# ---- the state directory


@contextmanager
def mounted(node: Node, options: str) -> Iterator[None]:
    node.state.mkdir()
    node.run((*MOUNTED, options, "tmpfs", str(node.state)))
    try:
        yield
    finally:
        node.run(("umount", "-l", str(node.state)))


def fill(directory: Path) -> Path:
    with contextlib.suppress(OSError), (directory / "fill").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    return directory / "fill"


def test_a_full_state_directory_stops_no_repair(node: Node, backend_name: str) -> None:
    node.configure("[reconcile]\nresync_seconds = 1\n", backend=backend_name)
    with mounted(node, "size=256k,mode=755"):
        filling = fill(node.state)
        with node.running() as daemon:
            daemon.logged("ERROR", f"state directory {node.state} cannot be used", "No space left on device")
            eventually(lambda: all(daemon.lines(f"{family}: rules applied") for family in Family))
            for family in Family:
                repaired(node, daemon, family)
            assert len(daemon.lines("ERROR")) == 1, "said once"
            assert "repairs go on" in node.masq("apply").stderr
            filling.unlink()
            daemon.reached("synced")
            eventually(lambda: not daemon.status()["troubles"])
            daemon.logged("INFO", "written again")
            eventually(lambda: (node.state / "lock").read_text().startswith(f"{daemon.process.pid}\n"))
            assert (node.state / f"{backend_name}-ipv4.json").exists()
            for family in Family:
                repaired(node, daemon, family)
            assert daemon.stop() == 0


def test_repairs_go_on_when_the_state_directory_is_read_only(node: Node, backend_name: str) -> None:
    node.configure("", backend=backend_name)
    with mounted(node, "mode=755"), node.running() as daemon:
        daemon.reached("synced")
        node.run(("mount", "--bind", str(node.state), str(node.state)))
        node.run(("mount", "-o", "remount,bind,ro", str(node.state)))
        for family in Family:
            repaired(node, daemon, family)
        daemon.logged("ERROR", f"state directory {node.state} cannot be used", "Read-only file system")
        for family in Family:
            repaired(node, daemon, family)
        node.run(("umount", str(node.state)))
        repaired(node, daemon)
        eventually(lambda: not daemon.status()["troubles"])
        assert daemon.stop() == 0


@pytest.mark.parametrize("name", ["lock", "ipv4.lock", "nft-ipv4.json", "status.json"])
def test_a_directory_in_place_of_a_state_file_stops_no_repair(name: str, node: Node) -> None:
    node.configure("", backend="nft")
    (node.state / name).mkdir(parents=True)
    with node.running() as daemon:
        daemon.logged("ERROR", f"state directory {node.state} cannot be used", name)
        eventually(lambda: daemon.lines("ipv6: rules applied"))
        for family in Family:
            repaired(node, daemon, family)
        assert daemon.stop() == 0


def test_state_files_of_other_json_count_as_missing(node: Node) -> None:
    node.configure("", backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        daemon.stop()
    for name in ("nft-ipv4.json", "nft-ipv6.json", "status.json"):
        (node.state / name).write_text('{"fingerprint": 1, "items": [[[]]], "neighbours": {}, "pid": 1e999}')
    with node.running() as daemon:
        daemon.reached("synced")
        repaired(node, daemon)
        assert daemon.stop() == 0


# ---- a tool that hangs


def children(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            yield from map(int, (thread / "children").read_text().split())


def stopped_tool(node: Node, daemon: Daemon) -> int:
    """Stop a tool of the daemon's IPv4 side while it runs."""
    deadline = time.monotonic() + patience(10)
    while time.monotonic() < deadline:
        damage(node, Family.IPV4, node.settings.backend)
        soon = time.monotonic() + 2
        while time.monotonic() < soon:
            for pid in children(daemon.process.pid):
                with contextlib.suppress(OSError):
                    if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"iptables-"):
                        continue  # a tool for IPv6, or still the daemon, which waits for its exec
                    os.kill(pid, signal.SIGSTOP)
                    if "(stopped)" in Path(f"/proc/{pid}/status").read_text():
                        return pid
    raise AssertionError("no tool was seen")


def test_the_status_shows_a_hanging_tool_until_it_goes_on(node: Node) -> None:
    with in_sync(node, "iptables-legacy") as daemon:
        before = rules(node)
        tool = stopped_tool(node, daemon)
        daemon.logged("WARNING", "ipv4: a pass has been running for", "iptables-")
        daemon.reached("degraded", Family.IPV4)
        assert daemon.status()["state"] == "degraded"
        assert "a pass has been running for" in daemon.status()["families"]["ipv4"]["last_error"]
        assert daemon.status()["families"]["ipv6"]["state"] == "synced"
        os.kill(tool, signal.SIGCONT)
        daemon.reached("synced")
        daemon.logged("INFO", "ipv4: the delayed pass has continued")
        eventually(lambda: rules(node) == before)
