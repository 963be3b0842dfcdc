"""Notifications to systemd, on a socket like its own, and to a systemd that no longer reads."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from flanneld_masq.controller.family_loop import FamilyLoop
from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.schedule import MAX_STEP_SECONDS
from flanneld_masq.controller.status import FamilyStatus, GroupStatus, State, Status
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import BackendName, Family, FamilyLease, Group, Lease, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.service.sd_notify import MAX_BYTES, SEND_SECONDS, Notifier, Watchdog, status_text
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryKernel, memory_backend_type

from ...common import until

DEADLINE = 10.0  # seconds
IPV4 = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
IPV6 = FamilyLease((ip_network("fd00::/56"),), ip_network("fd00::/64"), ip_address("fd00::1"))
LEASES = (Lease("/run/flannel/subnet.env", IPV4, IPV6),)


def family(state: str = "synced", *backends: str, error: str = "") -> FamilyStatus:
    groups = {group: GroupStatus(BackendName(name), "") for group, name in zip(Group, backends)}
    return FamilyStatus(State(state), error, groups)


def status(
    state: str, leases: tuple[Lease, ...] = LEASES, troubles: tuple[str, ...] = (), **families: FamilyStatus
) -> Status:
    by_family = {Family(name): family for name, family in families.items()}
    return Status(State(state), leases=leases, troubles=troubles, families=by_family)


SYNCED = status("synced", ipv4=family("synced", "nft", "nft"), ipv6=family("synced", "nft", "nft"))
WAITING = status("waiting", (), ("waiting for /run/flannel/subnet.env, which flannel has not written yet",))


@dataclass
class Systemd:
    """The side of the service manager: a socket that collects messages."""

    socket: socket.socket
    address: str

    def environ(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}

    def heard(self) -> list[list[str]]:
        """The messages until now, each as its lines."""
        self.socket.setblocking(False)
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(1 << 16).decode().split("\n"))
            except BlockingIOError:
                return messages

    def wait(self) -> list[str]:
        self.socket.settimeout(DEADLINE)
        return self.socket.recv(1 << 16).decode().split("\n")


@contextmanager
def listening(address: str) -> Iterator[Systemd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1))
        yield Systemd(listener, address)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with listening(str(tmp_path / "notify")) as systemd:
        yield systemd


class TestMessages:
    def test_ready_with_the_first_status_that_is_settled(self, systemd: Systemd) -> None:
        notifier = Notifier(systemd.environ())
        notifier.publish(status("waiting", ipv4=family("waiting")), settled=False)
        notifier.publish(SYNCED, settled=True)
        assert systemd.heard() == [
            ["STATUS=starting: ipv4 10.244.1.0/24"],
            ["STATUS=synced: ipv4 nft 10.244.1.0/24, ipv6 nft fd00::/64", "READY=1"],
        ]

    def test_what_holds_up_the_start_is_one_line(self, systemd: Systemd) -> None:
        Notifier(systemd.environ()).starting("waiting for pid 7 (x\nREADY=1)")
        assert systemd.heard() == [["STATUS=waiting for pid 7 (x READY=1)"]]

    def test_then_only_what_reads_otherwise(self, systemd: Systemd) -> None:
        notifier = Notifier(systemd.environ())
        notifier.publish(SYNCED, settled=True)
        notifier.publish(replace(SYNCED, pid=7), settled=True)
        notifier.publish(WAITING, settled=True)
        assert systemd.heard()[1:] == [[f"STATUS={WAITING.troubles[0]}"]]

    def test_a_reload_ends_when_it_is_settled(self, systemd: Systemd) -> None:
        notifier = Notifier(systemd.environ())
        notifier.publish(SYNCED, settled=True)
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        notifier.publish(SYNCED, settled=False)
        notifier.publish(SYNCED, settled=True)
        notifier.publish(SYNCED, settled=True)
        _, (reloading, moment), ready = systemd.heard()
        assert (reloading, ready) == ("RELOADING=1", ["READY=1"])
        name, _, microseconds = moment.partition("=")
        assert name == "MONOTONIC_USEC"
        assert before <= int(microseconds) <= time.monotonic_ns() // 1000

    def test_a_socket_is_stored_with_its_name(self, systemd: Systemd) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as stored:
            Notifier(systemd.environ()).store("nft-ipv4", stored.fileno())
            message, descriptors, _, _ = socket.recv_fds(systemd.socket, 4096, 4)
            (received,) = (socket.socket(fileno=descriptor) for descriptor in descriptors)
            assert message.decode().split("\n") == ["FDSTORE=1", "FDNAME=nft-ipv4", "FDPOLL=0"]
            assert received.family == socket.AF_NETLINK
            received.close()

    def test_stopping(self, systemd: Systemd) -> None:
        Notifier(systemd.environ()).stopping()
        assert systemd.heard() == [["STOPPING=1"]]

    def test_a_start_that_is_alive_gets_more_time(self, systemd: Systemd) -> None:
        notifier = Notifier(systemd.environ(WATCHDOG_USEC="60000000"))
        notifier.alive()
        notifier.publish(SYNCED, settled=True)
        notifier.alive()
        assert systemd.heard()[::2] == [["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"], ["WATCHDOG=1"]]

    def test_an_abstract_socket(self) -> None:
        with listening(f"@flanneld-masq-test-{os.getpid()}") as systemd:
            Notifier(systemd.environ()).stopping()
            assert systemd.heard() == [["STOPPING=1"]]

    @pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nonexistent/socket"}])
    def test_where_nobody_listens_nothing_happens(self, environ: dict[str, str]) -> None:
        notifier = Notifier(environ)
        notifier.publish(SYNCED, settled=True)
        notifier.stopping()

    def test_a_systemd_that_does_not_read_holds_nobody_up_for_long(self, systemd: Systemd) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    other.sendto(b"x", systemd.address)
        started, worked = time.monotonic(), time.thread_time()
        Notifier(systemd.environ()).stopping()
        assert time.monotonic() - started < DEADLINE
        assert time.thread_time() - worked < SEND_SECONDS / 2, "it waited asleep"


class TestWatchdogSeconds:
    @pytest.mark.parametrize(
        ("environ", "seconds"),
        [
            ({"WATCHDOG_USEC": "1500000"}, 1.5),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "nonsense"}, None),
            ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "nonsense"}, None),
            ({}, None),
        ],
    )
    def test_as_the_environment_says(self, environ: dict[str, str], seconds: float | None) -> None:
        assert Notifier(environ).watchdog_seconds == seconds


class TestText:
    @pytest.mark.parametrize(
        ("status", "text"),
        [
            (WAITING, "waiting for /run/flannel/subnet.env, which flannel has not written yet"),
            (status("waiting", ()), "waiting"),
            (
                status("waiting", (), ("/a, line 3: no subnet; no rules follow from it", "waiting for /b")),
                "waiting; /a, line 3: no subnet; no rules follow from it; waiting for /b",
            ),
            (
                status("waiting", (), ("waiting for /b", "/c: colour: unknown key; the running settings stay")),
                "waiting for /b; /c: colour: unknown key; the running settings stay",
            ),
            (status("waiting", ipv4=family("waiting")), "starting: ipv4 10.244.1.0/24"),
            (status("waiting", ipv4=family("waiting", error="X holds the lock")), "waiting: ipv4: X holds the lock"),
            (
                status("synced", ipv4=family("synced", "nft", "iptables-nft")),
                "synced: ipv4 nft iptables-nft 10.244.1.0/24",
            ),
            (
                status("degraded", ipv4=family("synced", "nft"), ipv6=family("degraded", error="the kernel said no")),
                "degraded: ipv4 nft 10.244.1.0/24, ipv6: the kernel said no",
            ),
            (
                status("contended", ipv4=family("contended", "nft"), ipv6=family("synced", "nft")),
                "contended: ipv4 nft 10.244.1.0/24 contended, ipv6 nft fd00::/64",
            ),
            (
                status("synced", (Lease("/x", IPV4),), ipv4=family("synced", "nft"), ipv6=family()),
                "synced: ipv4 nft 10.244.1.0/24",
            ),
            (
                status("synced", troubles=("/run/flannel/subnet.env is gone",), ipv4=family("synced", "nft")),
                "synced: ipv4 nft 10.244.1.0/24; /run/flannel/subnet.env is gone",
            ),
            (replace(SYNCED, state=State.STOPPED), "stopped"),
        ],
    )
    def test_one_line(self, status: Status, text: str) -> None:
        assert status_text(status) == text

    def test_what_a_tool_said_cannot_break_the_message(self) -> None:
        said = status("degraded", ipv4=family("degraded", error="bad\nREADY=1\x1b \udcff end"))
        assert status_text(said) == "degraded: ipv4: bad READY=1    end"

    def test_nor_make_it_too_long(self) -> None:
        text = status_text(status("degraded", ipv4=family("degraded", error="错" * 5000)))
        assert len(text.encode()) <= MAX_BYTES
        assert text.startswith("degraded: ipv4: 错错")
        assert text.endswith("错...")


class Surroundings:
    """The inputs and outputs of a loop: a desired state, no events, and no publisher."""

    settings = Settings()
    heard: int | None = None

    def current(self) -> DesiredState:
        return DesiredState(self.settings, LEASES)

    def drain(self) -> None: ...

    def take(self, family: Family) -> tuple[tuple[Transaction, ...], bool]:
        return (), False

    def emit(self, entries: Iterable[LogEntry]) -> None:
        for _ in entries:
            continue

    def publish(self) -> None: ...


def loop_of(reconciler: Reconciler) -> FamilyLoop:
    around = Surroundings()
    return FamilyLoop(FamilyReport(reconciler.family), reconciler, around, around, around)


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the clock of the event loop that runs go so much ahead of the real one."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + seconds)


def never(hung: str, seconds: float) -> None:
    pytest.fail(f"{hung} hangs, {seconds} s are left")


class TestWatchdog:
    """With the periods of the real one, only shorter."""

    @pytest.fixture
    def notifier(self, systemd: Systemd) -> Notifier:
        return Notifier(systemd.environ(WATCHDOG_USEC="20000"))

    def test_a_loop_that_works_is_fed(self, systemd: Systemd, notifier: Notifier) -> None:
        async def scene() -> list[str]:
            watchdog = Watchdog(notifier, lambda: "", never)
            watchdog.start()
            try:
                return [(await asyncio.to_thread(systemd.wait))[0] for _ in range(5)]
            finally:
                watchdog.stop()

        assert asyncio.run(scene()) == ["WATCHDOG=1"] * 5

    def test_none_is_fed_that_nobody_watches(self, systemd: Systemd) -> None:
        async def scene() -> None:
            Watchdog(Notifier(systemd.environ()), pytest.fail, never).start()

        asyncio.run(scene())
        assert systemd.heard() == []

    def test_an_event_loop_that_is_stuck_feeds_nothing(self, systemd: Systemd, notifier: Notifier) -> None:
        async def scene() -> None:
            watchdog = Watchdog(notifier, lambda: "", never)
            watchdog.start()
            await asyncio.to_thread(systemd.wait)
            systemd.heard()  # while that was on its way
            stuck = time.monotonic()
            while time.monotonic() < stuck + 0.2:  # ten periods in which nothing else gets a turn
                assert systemd.heard() == []
            watchdog.stop()

        asyncio.run(scene())

    def test_a_pass_that_hangs_is_not_fed(
        self, systemd: Systemd, notifier: Notifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The event loop goes on meanwhile; when the pass does so too, it is fed again."""
        kernel = MemoryKernel()
        release = threading.Event()
        kernel.interfere = lambda: None if release.wait(DEADLINE) else pytest.fail("never released")
        backend = memory_backend_type(BackendName("memory"), kernel=kernel).create(Family.IPV4, Host(ProcessRunner()))
        reconciler = Reconciler(Family.IPV4, {backend.name: backend}, StateDirectory(tmp_path / "state"))
        told: list[tuple[str, float]] = []

        def tell(hung: str, seconds: float) -> None:
            told.append((hung, seconds))

        async def scene() -> None:
            loop = loop_of(reconciler)
            watchdog = Watchdog(notifier, lambda: "ipv4" if loop.hangs(float("-inf")) else "", tell)
            task = asyncio.create_task(loop.run())
            await until(lambda: kernel.generation)  # written, and hanging before it is read back
            watchdog.start()
            assert not loop.report.settled
            assert "WATCHDOG=1" in await asyncio.to_thread(systemd.wait)
            set_clock(monkeypatch, MAX_STEP_SECONDS + 1)
            await until(lambda: told)
            systemd.heard()
            since = time.monotonic()
            while time.monotonic() < since + 0.2:  # ten periods of a loop that is free
                await asyncio.sleep(0.005)
                assert systemd.heard() == []
            release.set()
            assert "WATCHDOG=1" in await asyncio.to_thread(systemd.wait)
            await until(lambda: loop.report.settled)
            watchdog.stop()
            task.cancel()
            loop.close()

        asyncio.run(scene())
        assert told == [("ipv4", 0.01)]  # half of the period is over when a feed is left out

    def test_one_of_many_steps_does_not_hang(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scene() -> None:
            loop = loop_of(Reconciler(Family.IPV4, {}, StateDirectory(tmp_path / "state")))
            runner = ProcessRunner()
            set_clock(monkeypatch, -MAX_STEP_SECONDS - 1)
            loop._schedule.expect(asyncio.get_running_loop().time())
            set_clock(monkeypatch, 0)
            assert loop.hangs(float("-inf"))
            runner(("true",))
            assert not loop.hangs(runner.moved)
            loop.close()

        asyncio.run(scene())
