"""Tables that no other program can change: Linux 6.9 and later, or with `nft.protect = true` from 5.12 on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import pytest
from flanneld_masq_nft import render
from flanneld_masq_nft.backend import NftBackend

from flanneld_masq.errors import CommandError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import Desired, Family, Group, Protection
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.ruleset import diff, policy
from flanneld_masq.selftest import fault_injection
from flanneld_masq.selftest.topology import Topology

from ..common import Tell, eventually, lasting, patience
from .conftest import Node, at_once
from .flow import Flow
from .mutations import NftSubject, add_foreign

FLUSHES_PER_SECOND = 10
BOTH = uapi.NFT_TABLE_F_OWNER | uapi.NFT_TABLE_F_PERSIST


def guard(node: Node) -> Node:
    """Leave the protection to the default, on a kernel that can protect."""
    node.configure("", protect=True, backend="nft")
    with node.entered():
        if NftBackend(Family.IPV4, Host(node.run)).probe().protection is not Protection.PERSIST:
            pytest.skip("this kernel has no tables that persist (Linux 6.9)")
    return node


@pytest.fixture
def guarded(node: Node) -> Node:
    return guard(node)


def flags(family: Family = Family.IPV4) -> tuple[int, bool]:
    """The flags of the daemon's table, and whether it has an owner."""
    table = Nfnetlink().table(family, render.TABLE)
    return (-1, False) if table is None else (table.flags, table.owner != 0)


def rules(node: Node) -> list[str]:
    """The listing of both tables, with handles: equal only if nothing was written meanwhile."""
    listing = node.tool("nft", "-a", "list", "ruleset").splitlines()
    return [line for line in listing if line and not line.strip().startswith(("table", "flags", "#"))]


@contextmanager
def resident(node: Node, family: Family) -> Iterator[Reconciler]:
    """A reconciler whose process is the daemon."""
    from flanneld_masq import plugin_loader

    backends = plugin_loader.load().create(family, Host(node.run, daemon=os.getpid()))
    with node.entered():
        yield Reconciler(family, backends, node.store())


def test_no_damage_by_another_process_succeeds(guarded: Node, family: Family) -> None:
    """Every mutation of tests/kernel/mutations.py is refused, and `nft flush ruleset` skips the tables."""
    with guarded.running() as daemon:
        daemon.reached("synced")
        with guarded.entered():
            add_foreign(family, guarded.run)
            subject = NftSubject(family, NftBackend(family, Host(guarded.run, daemon=daemon.process.pid)), guarded.run)
            offered = Protection.PERSIST
            groups = frozenset(Group)
            desired = policy.desired(guarded.settings, (guarded.lease(),), family, groups, offered=offered)
            before, done = subject.snapshot(), []
            for mutation in subject.mutations(desired):
                with suppress(RulesetError):
                    mutation.do()
                if subject.snapshot().ours != before.ours:
                    done.append(mutation.name)
                if not mutation.foreign_stays:
                    mutation.undo()
            assert not done
            tools = fault_injection.tools("nft", family, guarded.run)
            assert tools is not None
            for damage in tools.damages.values():
                with suppress(CommandError):
                    damage()
                assert subject.snapshot().ours == before.ours
        assert daemon.status()["families"][str(family)]["repairs"] == 0


def test_rules_outlive_the_daemon_and_the_next_one_adopts_them(guarded: Node) -> None:
    with guarded.running() as daemon:
        daemon.reached("synced")
        with guarded.entered():
            assert flags() == (BOTH, True)
            before = rules(guarded)
        assert daemon.stop() == 0
    with guarded.entered():
        assert flags() == (uapi.NFT_TABLE_F_PERSIST, False)
        assert guarded.masq("plan").returncode == 0
    with guarded.running() as daemon:
        daemon.reached("synced")
        with guarded.entered():
            assert flags() == (BOTH, True)
            assert rules(guarded) == before
        assert len(daemon.lines("nothing written")) == len(Family)
        daemon.process.kill()
        daemon.process.wait()
        with guarded.entered():
            assert flags() == (uapi.NFT_TABLE_F_PERSIST, False)
            assert rules(guarded) == before


def test_commands_beside_the_daemon(guarded: Node) -> None:
    with guarded.running() as daemon:
        daemon.reached("synced")
        with guarded.entered():
            before = rules(guarded)
            planned = guarded.masq("plan")
            assert (planned.returncode, planned.stderr) == (0, "")
            assert "nft table: protected (owner and persist)" in guarded.masq("status").stdout
            assert "table protected (owner and persist)" in guarded.masq("backends").stdout
            assert guarded.masq("cleanup").returncode == 1
            guarded.write_subnet(guarded.subnet_file.read_text().replace("10.244.1.1/24", "10.244.1.1/25"))
            eventually(lambda: "10.244.1.0/25" in guarded.ruleset())
            assert rules(guarded) != before
            daemon.reached("synced")
            with pytest.raises(RulesetError, match=rf"owned by the daemon \(pid {daemon.process.pid}\)"):
                host = Host(guarded.run, daemon=daemon.process.pid)
                backend = NftBackend(Family.IPV4, host)
                backend.replace(Desired(Family.IPV4), backend.observe(tuple(Group)), ())


def test_a_command_in_another_pid_namespace(guarded: Node) -> None:
    """The pid of the daemon is not known there, and the kernel does not say whose process owns a table."""
    elsewhere = ("unshare", "--pid", "--fork", "--mount-proc")
    with guarded.running() as daemon:
        daemon.reached("synced")
        with guarded.entered():
            for arguments in (("plan",), ("status", "--check")):
                argv = (*elsewhere, *guarded.argv(*arguments))
                done = subprocess.run(argv, capture_output=True, text=True, timeout=patience(10))
                assert (done.returncode, done.stderr) == (0, "")
            with pytest.raises(RulesetError, match=r"owned by the daemon \(in another pid namespace\)"):
                backend = NftBackend(Family.IPV4, Host(guarded.run, daemon_elsewhere=True))
                backend.replace(Desired(Family.IPV4), backend.observe(tuple(Group)), ())


def test_commands_without_a_daemon(guarded: Node) -> None:
    with guarded.entered():
        assert guarded.masq("apply").returncode == 0
        assert flags() == (uapi.NFT_TABLE_F_PERSIST, False)
        assert guarded.masq("plan").returncode == 0
        assert guarded.masq("cleanup").returncode == 0
        assert guarded.ruleset().strip() == ""


def test_commands_at_the_same_time_do_not_lock_each_other_out(guarded: Node) -> None:
    for done in at_once(*[lambda: guarded.masq("apply")] * 3):
        assert (done.returncode, done.stderr) == (0, "")
    with guarded.entered():
        assert flags() == (uapi.NFT_TABLE_F_PERSIST, False)


def test_stop_with_remove_rules_leaves_nothing(guarded: Node) -> None:
    guarded.configure("[stop]\nremove_rules = true", protect=True, backend="nft")
    with guarded.running() as daemon:
        daemon.reached("synced")
        assert daemon.stop() == 0
    assert guarded.ruleset().strip() == ""


def test_a_switch_of_the_setting_and_of_the_backend(guarded: Node) -> None:
    with guarded.running() as daemon:
        daemon.reached("synced")

        def reloaded(flagged: int, **top: str) -> None:
            guarded.configure("", protect=bool(flagged), **top)
            daemon.signal(signal.SIGHUP)
            with guarded.entered():
                eventually(lambda: flags()[0] == flagged)
            eventually(lambda: daemon.status()["state"] == "synced")

        reloaded(0, backend="nft")
        reloaded(BOTH, backend="nft")
        guarded.configure("", protect=True, backend="iptables-nft")
        daemon.signal(signal.SIGHUP)
        eventually(lambda: "flanneld-masq {" not in guarded.ruleset())
        reloaded(BOTH, backend="nft")
        assert daemon.lines("level=ERROR") == []


def test_an_unprotected_table_is_replaced_in_one_transaction(guarded: Node, family: Family) -> None:
    unprotected = guarded.configure("", backend="nft")
    with guarded.entered():
        guarded.reconciler(family).reconcile(guarded.desired_state())
        assert unprotected.nft_protect is False and flags(family) == (0, False)
        guarded.configure("", protect=True, backend="nft")
        with resident(guarded, family) as reconciler:
            generation = Nfnetlink().generation()
            reconciler.reconcile(guarded.desired_state())
            assert Nfnetlink().generation() == generation + 1
            assert flags(family) == (BOTH, True)


def test_a_saved_ruleset_with_our_table_is_refused_whole(guarded: Node) -> None:
    with guarded.running() as daemon:
        daemon.reached("synced")
        saved = "flush ruleset\ntable ip theirs {\n}\n" + guarded.tool("nft", "list", "table", "ip", render.TABLE)
        saved = "\n".join(line for line in saved.splitlines() if not line.strip().startswith(("flags", "#")))
        saved = saved.replace("{ # progname python3", "{")
        with pytest.raises(CommandError, match="Operation not permitted"):
            guarded.tool("nft", "-f", "-", stdin=saved)
        assert "theirs" not in guarded.ruleset()


def test_a_table_of_another_owner_is_named_until_it_ends(guarded: Node, family: Family) -> None:
    with guarded.entered(), resident(guarded, family) as reconciler:
        other = Nfnetlink()
        other.rebuild(family, render.TABLE, {}, uapi.NFT_TABLE_F_OWNER)
        with pytest.raises(RulesetError, match=r"is owned by another program \(.*netlink port \d+\), .*end that"):
            reconciler.reconcile(guarded.desired_state())
        other.close()
        reconciler.reconcile(guarded.desired_state())
        assert flags(family) == (BOTH, True)


def test_a_daemon_beside_another_owner_is_degraded_and_recovers(guarded: Node) -> None:
    with guarded.entered():
        other = Nfnetlink()
        other.rebuild(Family.IPV4, render.TABLE, {}, uapi.NFT_TABLE_F_OWNER)
    with guarded.running() as daemon:
        daemon.reached("degraded", Family.IPV4)
        daemon.reached("synced", Family.IPV6)
        daemon.logged("table ip flanneld-masq is owned by another program")
        other.close()
        daemon.reached("synced")


class Stored:
    """Substitute for the file descriptor store of systemd, within this process."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}

    def take(self, name: str) -> socket.socket | None:
        return self.sockets.pop(name, None)

    def keep(self, name: str, descriptor: int) -> None:
        self.sockets[name] = socket.socket(fileno=os.dup(descriptor))


class TestOwnerAlone:
    """As on Linux 5.12 to 6.8: the table ends with its last socket."""

    def desired(self, node: Node, family: Family) -> Desired:
        settings = node.configure("", backend="nft")
        groups, offered = frozenset(Group), Protection.OWNER
        wanted = policy.desired(settings, (node.lease(),), family, groups)
        return Desired(family, wanted.groups, protection=offered)

    def test_a_stored_socket_keeps_the_table_and_owns_it_again(self, guarded: Node, family: Family) -> None:
        with guarded.entered():
            desired, stored = self.desired(guarded, family), Stored()
            killed = NftBackend(family, Host(guarded.run, daemon=os.getpid(), sockets=stored))
            killed.replace(desired, killed.observe(tuple(Group)), ())
            before = rules(guarded)
            killed._netlink.close()
            assert flags(family) == (uapi.NFT_TABLE_F_OWNER, True)
            backend = NftBackend(family, Host(guarded.run, daemon=os.getpid(), sockets=stored))
            observed = backend.observe(tuple(Group))
            assert not observed.obstacle and not diff.unmet(backend.wanted(desired), observed)
            assert backend.hold(desired) == 0
            assert f"nft-{family}" in stored.sockets, "for the next SIGKILL"
            assert rules(guarded) == before
            generation = Nfnetlink().generation()
            backend.release()
            assert Nfnetlink().generation() == generation + 1
            backend._netlink.close()
            stored.sockets.pop(f"nft-{family}").close()
            assert flags(family) == (0, False)
            assert len(rules(guarded)) == len(before)

    def test_without_a_store_the_table_ends_with_the_socket(self, guarded: Node, family: Family) -> None:
        with guarded.entered():
            desired = self.desired(guarded, family)
            backend = NftBackend(family, Host(guarded.run, daemon=os.getpid()))
            backend.replace(desired, backend.observe(tuple(Group)), ())
            assert flags(family) == (uapi.NFT_TABLE_F_OWNER, True)
            backend._netlink.close()
            eventually(lambda: Nfnetlink().table(family, render.TABLE) is None)

    def test_a_command_writes_a_table_that_stays(self, guarded: Node, family: Family) -> None:
        with guarded.entered():
            desired = self.desired(guarded, family)
            backend = NftBackend(family, Host(guarded.run))
            backend.replace(desired, backend.observe(tuple(Group)), ())
            assert not diff.unmet(backend.wanted(desired), backend.observe(tuple(Group)))
            assert flags(family) == (0, False)


class Systemd(AbstractContextManager["Systemd"]):
    """Keeps the sockets of a service, and passes them to its next process."""

    def __init__(self, address: Path) -> None:
        self.environ = {"NOTIFY_SOCKET": str(address)}
        self._received = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._received.bind(str(address))
        self._received.settimeout(0.1)
        self._stored: dict[str, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._received.close()
        for descriptor in self._stored.values():
            os.close(descriptor)

    def spawn(self, argv: Sequence[str], *, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the service. A shell gives it the numbers that sd_listen_fds(3) asks for."""
        kept = tuple(self._stored.values())
        moved = [f"exec {3 + number}<&{descriptor} {descriptor}<&-" for number, descriptor in enumerate(kept)]
        names = f"LISTEN_PID=$$ LISTEN_FDS={len(kept)} LISTEN_FDNAMES={':'.join(self._stored)}"
        script = "; ".join([*moved, f"export {names}", 'exec "$@"'])
        return subprocess.Popen(
            ("bash", "-c", script, "start", *argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=kept,
        )

    @property
    def stored(self) -> int:
        return len(self._stored)

    def _work(self) -> None:
        while not self._end.is_set():
            with suppress(socket.timeout):
                message, descriptors, _, _ = socket.recv_fds(self._received, 4096, 4)
                lines = dict(line.split("=", 1) for line in message.decode().splitlines())
                for descriptor in descriptors:
                    kept = os.dup2(descriptor, 100 + len(self._stored), inheritable=True)
                    os.close(descriptor)
                    if lines["FDNAME"] in self._stored:
                        os.close(kept)
                    else:
                        self._stored[lines["FDNAME"]] = kept


def flush_until(node: Node, end: threading.Event) -> None:
    while not end.wait(1 / FLUSHES_PER_SECOND):
        node.tool("nft", "flush", "ruleset")


def test_no_flow_is_wrong_beside_flushes_and_sigkill(
    lab_node: Node, topology: Topology, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    """The service is killed and started again, over and over, while `nft flush ruleset` runs ten times a second."""
    guarded = guard(lab_node)
    of, end, restarts = topology.of(Family.IPV4), threading.Event(), 0
    flusher = threading.Thread(target=partial(flush_until, guarded, end))
    with Systemd(guarded.directory / "notify") as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.environ["NOTIFY_SOCKET"])
        with guarded.running(spawn=systemd.spawn) as daemon:
            daemon.reached("synced")
            eventually(lambda: systemd.stored == len(Family), 2)
        deadline = time.monotonic() + lasting(5, long=60)
        with Flow(topology, of, per_second=1700) as flow:
            flusher.start()
            try:
                while time.monotonic() < deadline:
                    with guarded.running(spawn=systemd.spawn) as daemon:  # ends with SIGKILL
                        daemon.reached("synced")
                        flow.more(500)
                        assert not daemon.lines("rules applied"), daemon.lines("")
                    restarts += 1
            finally:
                end.set()
                flusher.join()
            sources = flow.finish()
    assert restarts > 1 and len(sources) > 1000
    wrong = [source for source in sources if source == str(of.pod)]
    tell(f"nft, protected: {len(wrong)} of {len(sources)} packets left with the pod's address in {restarts} restarts")
    assert not wrong
