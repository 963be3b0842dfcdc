"""The daemon process on a real dbus-daemon. With another lock file it hears of no change of legacy tables, so that what
it hears on the bus counts."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.dbus.connection import Connection, connect
from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.object_server import Message
from flanneld_masq.dbus.reload_signals import FIREWALLD, FIREWALLD_PATH, SYSTEMD, SYSTEMD_PATH
from flanneld_masq.model import BackendName, Family

from ..bus import Bus
from ..common import eventually
from .conftest import KERNEL_SHARES_OUR_PIDS, Daemon, Node
from .test_daemon import damage, in_sync

QUIET = "[reconcile]\nlegacy_poll_seconds = 60\nresync_seconds = 3600\n"  # so that no repair is owed to chance
IPV4_LEGACY = (Family.IPV4, BackendName("iptables-legacy"))
ON_BUS = f"on the system bus as {NAME}"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    found = Bus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", found.address)
    found.start()
    yield found
    found.stop()


def manager(bus: Bus, member: str) -> Any:
    return bus.ctl("call", NAME, PATH, MANAGER.name, member)


def state(bus: Bus) -> str:
    """Return the daemon's state as `busctl` prints it; empty while the daemon is not on the bus."""
    return bus.ctl("get-property", NAME, PATH, MANAGER.name, "State").stdout.strip()


@contextmanager
def present(node: Node, bus: Bus, backend: str = "nft", text: str = "") -> Iterator[Daemon]:
    with in_sync(node, backend, text) as daemon:
        eventually(lambda: state(bus) == 's "synced"')
        yield daemon


@contextmanager
def present_with_legacy(node: Node, bus: Bus) -> Iterator[Daemon]:
    """With legacy tables, whose changes the daemon does not notice by itself."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("XTABLES_LOCKFILE", str(node.directory / "another.lock"))
            daemon = stack.enter_context(present(node, bus, "iptables-legacy", QUIET))
        rests(bus)
        yield daemon


def rests(bus: Bus) -> None:
    """Have the daemon look now, so that it does not look later because its own tools ended: this look needs none."""
    assert manager(bus, "Reconcile").returncode == 0


def connected(story: Callable[[Connection], Awaitable[None]]) -> None:
    """Be on the bus for a while."""

    async def whole() -> None:
        connection = await connect()
        try:
            await asyncio.wait_for(story(connection), 20)
        finally:
            connection.close()

    asyncio.run(whole())


async def repaired(daemon: Daemon, bus: Bus, reason: str) -> None:
    """Wait for a repair for that reason, and until the daemon has no look left to do."""
    await in_thread(daemon.logged, "drift repaired", reason)
    assert await in_thread(state, bus) == 's "synced"'
    await in_thread(rests, bus)


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


def test_a_repair_is_told_with_the_culprit(node: Node, bus: Bus) -> None:
    async def story(client: Connection) -> None:
        heard: asyncio.Queue[Message] = asyncio.Queue()
        client.listen(heard.put_nowait, lambda _: True)
        await client.follow(sender=NAME, interface=MANAGER.name, member="Repaired")
        node.tool("nft", "flush", "chain", "ip", "flanneld-masq", "postrouting")
        while (found := await heard.get()).member != "Repaired":
            continue  # of the bus itself
        told = dict(zip(MANAGER.signals["Repaired"], found.body))
        assert (told["family"], told["backend"], told["reason"]) == ("ipv4", "nft", "ruleset changed")
        assert (told["culprit"], told["duration_us"] > 0) == ("nft", True)
        assert (told["culprit_pid"] > 1) == KERNEL_SHARES_OUR_PIDS

    with present(node, bus) as daemon:
        connected(story)
        assert daemon.status()["families"]["ipv4"]["repairs"] == 1


def test_the_rules_wait_for_no_bus(node: Node, bus: Bus) -> None:
    bus.freeze()
    try:
        with in_sync(node) as daemon:
            assert daemon.lines("rules applied")
            assert daemon.stop() == 0
    finally:
        bus.thaw()


def test_apply_is_done_by_the_daemon(node: Node, bus: Bus) -> None:
    with present_with_legacy(node, bus) as daemon:
        damage(node, *IPV4_LEGACY)
        done = node.masq("apply")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("ipv4 iptables-legacy: ")
        assert daemon.lines("drift repaired", "(Reconcile called)")
        assert node.masq("apply").stdout == "in sync already\n"


def test_apply_with_options_of_its_own_is_refused(node: Node, bus: Bus) -> None:
    with present_with_legacy(node, bus) as daemon:
        damage(node, *IPV4_LEGACY)
        before = node.ruleset()
        done = node.masq("apply", "--backend", "nft")
        assert (done.returncode, done.stdout) == (1, "")
        assert str(daemon.process.pid) in done.stderr
        assert node.ruleset() == before


def test_apply_with_another_configuration_is_not_the_daemon_s(node: Node, bus: Bus) -> None:
    other = node.directory / "other.toml"
    with present_with_legacy(node, bus) as daemon:
        text = '[masquerade]\nnon_masquerade_cidrs = ["198.51.100.0/24"]\n'
        other.write_text(f"{node.config_file.read_text()}\n{text}")
        assert node.masq("--config", str(other), "apply").stdout.startswith("ipv4 iptables-legacy: ")
        assert "198.51.100.0/24" in node.ruleset()
        assert not daemon.lines("Reconcile called")


def test_apply_with_the_same_configuration_by_another_name_is(node: Node, bus: Bus) -> None:
    link = node.directory / "link.toml"
    link.symlink_to(node.config_file)
    with present_with_legacy(node, bus) as daemon:
        damage(node, *IPV4_LEGACY)
        assert node.masq("--config", str(link), "apply").returncode == 0
        assert daemon.lines("drift repaired", "(Reconcile called)")


def test_apply_tells_what_the_daemon_met(node: Node, bus: Bus) -> None:
    node.subnet_file.unlink()
    with node.running() as daemon:
        daemon.reached("waiting")
        eventually(lambda: state(bus) == 's "waiting"')
        done = node.masq("apply", "--json")
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"flanneld-masq: the daemon: there is no subnet file yet ({node.subnet_file}), so "
        )
        node.write_subnet("FLANNEL_NETWORK=10.244.0.0/16\n")
        eventually(lambda: daemon.lines("no rules follow from it"))
        done = node.masq("apply")
        assert done.returncode == 1
        assert done.stderr.startswith(f"flanneld-masq: the daemon: {node.subnet_file}, line 1: FLANNEL_NETWORK names")


def test_status_is_asked_of_the_daemon(node: Node, bus: Bus) -> None:
    with present(node, bus) as daemon:
        (node.state / "status.json").unlink()
        done = node.masq("status")
        assert done.stdout.startswith(f"flanneld-masq: synced, pid {daemon.process.pid}\n")


def test_without_the_bus_the_commands_find_what_they_need(node: Node, bus: Bus) -> None:
    with present_with_legacy(node, bus) as daemon:
        bus.stop()
        assert node.masq("status").stdout.startswith(f"flanneld-masq: synced, pid {daemon.process.pid}\n")
        damage(node, *IPV4_LEGACY)
        assert node.masq("apply").stdout.startswith("ipv4 iptables-legacy: ")
        assert not daemon.lines("drift repaired")


def test_firewalld_s_word_has_it_look(node: Node, bus: Bus) -> None:
    async def story(firewalld: Connection) -> None:
        damage(node, *IPV4_LEGACY)
        await firewalld.own(FIREWALLD)
        await repaired(daemon, bus, "(firewalld started)")
        damage(node, *IPV4_LEGACY)
        firewalld.emit(FIREWALLD_PATH, FIREWALLD, "Reloaded", "")
        await repaired(daemon, bus, "(firewalld reloaded)")
        damage(node, *IPV4_LEGACY)
        firewalld.close()
        await repaired(daemon, bus, "(firewalld stopped)")

    with present_with_legacy(node, bus) as daemon:
        connected(story)


def test_systemd_s_word_has_it_look(node: Node, bus: Bus) -> None:
    async def story(systemd: Connection) -> None:
        await systemd.own(SYSTEMD)
        damage(node, *IPV4_LEGACY)
        job = (1, f"{SYSTEMD_PATH}/job/1", "nftables.service", "done")
        systemd.emit(SYSTEMD_PATH, f"{SYSTEMD}.Manager", "JobRemoved", "uoss", *job)
        await repaired(daemon, bus, "(nftables.service done)")

    with present_with_legacy(node, bus) as daemon:
        connected(story)


def test_a_killed_bus_is_joined_again_and_missed_damage_repaired(node: Node, bus: Bus) -> None:
    with present_with_legacy(node, bus) as daemon:
        bus.stop()
        daemon.logged("the system bus is lost")
        damage(node, *IPV4_LEGACY)
        bus.start()
        daemon.logged(ON_BUS)
        daemon.logged("drift repaired", "system bus back")
        assert state(bus) == 's "synced"'


def test_a_reload_may_switch_it_off_and_on(node: Node, bus: Bus) -> None:
    with present(node, bus) as daemon:
        node.configure("[dbus]\nenabled = false", backend="nft")
        assert manager(bus, "Reload").returncode == 0, "the last thing that it answers"
        eventually(lambda: not state(bus))
        node.configure("", backend="nft")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: state(bus) == 's "synced"')
        assert daemon.lines("INFO", "bus") == [], "who wants that needs no telling"


def test_a_bad_configuration_is_the_answer_of_reload(node: Node, bus: Bus) -> None:
    with present(node, bus) as daemon:
        node.config_file.write_text("colour = 1\n")
        done = manager(bus, "Reload")
        assert done.returncode != 0
        assert "colour" in done.stderr
        assert daemon.lines("colour", "the running settings stay")
        assert state(bus) == 's "synced"'


def test_it_stops_in_time_and_says_so(node: Node, bus: Bus) -> None:
    async def story(client: Connection) -> None:
        heard: asyncio.Queue[Message] = asyncio.Queue()
        client.listen(heard.put_nowait, lambda _: True)
        await client.follow(sender=NAME, interface=MANAGER.name, member="StateChanged")
        assert await in_thread(daemon.stop) == 0
        while (found := await heard.get()).member != "StateChanged":
            continue  # of the bus itself
        assert found.body == ("", "synced", "stopped", "")

    with present(node, bus) as daemon:
        connected(story)


def test_it_stops_in_time_though_the_bus_hangs(node: Node, bus: Bus) -> None:
    with present(node, bus) as daemon:
        bus.freeze()
        try:
            assert daemon.stop() == 0
        finally:
            bus.thaw()


def test_without_the_library_all_else_works(
    node: Node, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dbus_next.py").write_text("raise ImportError(\"No module named 'dbus_next'\")\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with in_sync(node, "nft") as daemon:
        daemon.logged("No module named 'dbus_next'", "python3-dbus-next")
        daemon.signal(signal.SIGHUP)
        daemon.logged("configuration reloaded")
        node.tool("nft", "flush", "chain", "ip", "flanneld-masq", "postrouting")
        daemon.logged("drift repaired")
        assert len(daemon.lines("dbus_next")) == 1
        assert node.masq("status").stdout.startswith(f"flanneld-masq: synced, pid {daemon.process.pid}\n")
        assert node.masq("apply").stdout == "in sync already\n"
