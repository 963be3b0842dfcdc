"""`status`, `status --check`, `doctor` and the metrics report on a real daemon, while it runs and after its end."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.model import Family

from ..common import as_from_a_terminal, eventually, patience
from .conftest import SUBNET_ENV, Daemon, Node

IPV4_ALONE = "".join(f"{line}\n" for line in SUBNET_ENV.splitlines() if "IPV6" not in line)
OTHER_SUBNET = SUBNET_ENV.replace("10.244.1.", "10.244.9.").replace("244:1::", "244:9::")


@contextmanager
def in_sync(node: Node, text: str = "") -> Iterator[Daemon]:
    node.configure(text, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        yield daemon


def check(node: Node) -> int:
    return node.masq("status", "--check").returncode


def family_of(daemon: Daemon, family: Family) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status()["families"][str(family)]
    return found


class TestFamilyThatNobodyAskedFor:
    def test_it_is_neither_synced_nor_a_trouble(self, node: Node) -> None:
        node.write_subnet(IPV4_ALONE)
        with in_sync(node) as daemon:
            assert (family_of(daemon, Family.IPV6)["state"], check(node)) == ("waiting", 0)
            assert family_of(daemon, Family.IPV6)["in_subnet_file"] is False
            assert "\nipv6: not in the subnet file\n" in node.masq("status").stdout + "\n"
            node.write_subnet(SUBNET_ENV)
            daemon.reached("synced", Family.IPV6)
            assert family_of(daemon, Family.IPV6)["in_subnet_file"] is True
            node.write_subnet(IPV4_ALONE)
            daemon.reached("waiting", Family.IPV6)
            daemon.reached("synced")

    def test_it_is_named_also_without_a_daemon(self, node: Node) -> None:
        node.write_subnet(IPV4_ALONE)
        assert "\nipv6: not in the subnet file\n" in node.masq("status").stdout


def test_the_last_repair_outlives_a_new_lease(node: Node) -> None:
    with in_sync(node) as daemon:
        node.tool("nft", "delete", "table", "ip", "flanneld-masq")
        eventually(lambda: family_of(daemon, Family.IPV4)["repairs"] == 1)
        before = family_of(daemon, Family.IPV4)["last_repair"]
        node.write_subnet(OTHER_SUBNET)
        eventually(lambda: family_of(daemon, Family.IPV4)["last_write"]["reason"] == "subnet file changed")
        assert family_of(daemon, Family.IPV4)["last_repair"] == before
        text = node.masq("status").stdout
        (repair,) = (line for line in text.splitlines() if line.startswith("  last repair: "))
        assert repair.endswith("(ruleset changed): table, 2 chains and 7 rules were missing")
        assert "\n    changed by nft (pid " in text
        assert "(subnet file changed): " in text
        assert daemon.logged("drift repaired", "table, 2 chains and 7 rules were missing, by nft")


class TestCheck:
    def test_each_health(self, node: Node) -> None:
        node.subnet_file.unlink()
        node.configure("", backend="nft")
        assert check(node) == 2
        with node.running() as daemon:
            daemon.reached("waiting")
            assert check(node) == 0, "no subnet file yet"
            node.write_subnet("FLANNEL_NETWORK=10.244.0.0/16\n")
            eventually(lambda: daemon.lines("no rules follow from it"))
            eventually(lambda: check(node) == 1)
            node.write_subnet(SUBNET_ENV)
            daemon.reached("synced")
            assert check(node) == 0
            node.subnet_file.unlink()
            eventually(lambda: daemon.status()["troubles"])
            assert check(node) == 0, "the last good rules stay"
            assert daemon.stop() == 0
        assert check(node) == 2

    def test_a_degraded_daemon_and_a_family_that_nobody_asked_for(self, node: Node) -> None:
        """IPv6 is in trouble too, but counts only once a subnet file names it."""
        node.tool("nft", "add table ip6 nat { flags dormant; }")
        node.write_subnet(IPV4_ALONE)
        node.configure("", backend="iptables-nft")
        with node.running() as daemon:
            daemon.reached("synced")
            assert check(node) == 0
            node.write_subnet(SUBNET_ENV)
            daemon.reached("degraded")
            assert check(node) == 1


class TestStateDirectory:
    """A daemon keeps its state directory until it ends, whatever the configuration says by then."""

    @pytest.mark.parametrize("reloaded", [True, False])
    def test_the_daemon_is_found(self, node: Node, reloaded: bool) -> None:
        with in_sync(node) as daemon:
            node.configure("", backend="nft", state_directory=str(node.directory / "elsewhere"))
            if reloaded:
                daemon.signal(signal.SIGHUP)
                daemon.logged("until a restart")
            assert node.masq("status").stdout.startswith(f"flanneld-masq: synced, pid {daemon.process.pid}\n")
            assert check(node) == 0
            assert "does not run" not in node.masq("doctor").stdout
            assert node.masq("plan").stdout == "in sync: nothing to change\n"
            assert node.masq("apply").stdout == "in sync already\n"
            assert node.masq("cleanup").returncode == 1, "the daemon would put the rules back"
            daemon.stop()
            assert node.masq("status").stdout.startswith("flanneld-masq: stopped\n")

    def test_a_daemon_of_another_configuration_is_not_taken_for_it(self, node: Node) -> None:
        with in_sync(node):
            other = node.directory / "other.toml"
            other.write_text(node.config_file.read_text().replace(str(node.state), str(node.directory / "elsewhere")))
            assert node.masq("--config", str(other), "status").stdout.startswith("flanneld-masq: stopped\n")


class TestMetrics:
    SYNCED, STOPPED = 'flanneld_masq_state{state="synced"} 1', 'flanneld_masq_state{state="stopped"} 1'

    @staticmethod
    def verified(path: Path) -> dict[str, float]:
        name = "flanneld_masq_last_verified_timestamp_seconds{"
        lines = [line for line in path.read_text().splitlines() if line.startswith(name)]
        return {line.split('"')[1]: float(line.split()[1]) for line in lines}

    def test_every_resync_updates_the_time_of_each_family(self, node: Node) -> None:
        path = node.directory / "m.prom"
        text = f'[reconcile]\nresync_seconds = 1\n[metrics]\ntextfile = "{path}"'
        with in_sync(node, text) as daemon:
            eventually(lambda: len(self.verified(path)) == 2)
            for _ in range(2):
                before = self.verified(path)
                eventually(lambda: all(after > before[name] + 0.9 for name, after in self.verified(path).items()))
                assert all(abs(time.time() - stamp) < patience(1.5) for stamp in self.verified(path).values())
            shown = datetime.fromisoformat(family_of(daemon, Family.IPV4)["verified"]).timestamp()
            assert abs(time.time() - shown) < patience(1.5)
            assert len(daemon.lines("rules applied")) == 2, "a verification writes no rules"

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
    def test_the_file_says_that_the_daemon_ended(self, node: Node, number: signal.Signals) -> None:
        path = node.directory / "m.prom"
        with in_sync(node, f'[metrics]\ntextfile = "{path}"') as daemon:
            eventually(lambda: path.exists() and self.SYNCED in path.read_text())
            assert node.masq("metrics").stdout == path.read_text()
            daemon.signal(number)
            eventually(lambda: self.STOPPED in path.read_text())
            text = path.read_text()
            assert self.SYNCED not in text and 'in_sync{family="ipv4"} 0' in text
            assert len(self.verified(path)) == 2
        eventually(lambda: [found.name for found in node.directory.glob("*m.prom*")] == [path.name])

    def test_the_service_says_it_after_the_end(self, node: Node) -> None:
        """As ExecStopPost= does: systemd ends the whole control group of a daemon that was killed."""
        path = node.directory / "m.prom"
        with in_sync(node, f'[metrics]\ntextfile = "{path}"') as daemon:
            eventually(lambda: path.exists() and self.SYNCED in path.read_text())
            running = path.read_text()
            assert node.masq("metrics", "--write").returncode == 0
            assert path.read_text() == running, "the daemon runs"
            daemon.signal(signal.SIGKILL)
            daemon.process.wait()
        eventually(lambda: self.STOPPED in path.read_text())
        path.write_text(running)
        assert node.masq("metrics", "--write").returncode == 0
        assert self.STOPPED in path.read_text() and self.SYNCED not in path.read_text()

    def test_a_refused_reload_shows_until_a_good_one(self, node: Node) -> None:
        path = node.directory / "m.prom"
        good = f'[metrics]\ntextfile = "{path}"'
        successful = "flanneld_masq_config_last_reload_successful"
        with in_sync(node, good) as daemon:
            eventually(lambda: path.exists() and f"{successful} 1\n" in path.read_text())
            loaded = daemon.status()["config_loaded"]
            with node.config_file.open("a") as file:
                file.write("colour = 1\n")
            daemon.signal(signal.SIGHUP)
            eventually(lambda: f"{successful} 0\n" in path.read_text())
            assert daemon.status()["config_loaded"] == loaded
            node.configure(good, backend="nft")
            daemon.signal(signal.SIGHUP)
            eventually(lambda: f"{successful} 1\n" in path.read_text())
            eventually(lambda: daemon.status()["config_loaded"] > loaded)  # written behind the metrics

    def test_a_file_that_the_settings_no_longer_name_is_removed(self, node: Node) -> None:
        before, after = node.directory / "before.prom", node.directory / "after.prom"
        with in_sync(node, f'[metrics]\ntextfile = "{before}"') as daemon:
            eventually(before.exists)
            node.configure(f'[metrics]\ntextfile = "{after}"', backend="nft")
            daemon.signal(signal.SIGHUP)
            eventually(lambda: after.exists() and not before.exists())
            node.configure("", backend="nft")
            daemon.signal(signal.SIGHUP)
            eventually(lambda: not list(node.directory.glob("*.prom*")))

    def test_status_and_doctor_report_a_file_that_cannot_be_written(self, node: Node) -> None:
        text = '[metrics]\ntextfile = "/nonexistent/m.prom"'
        trouble = "/nonexistent/m.prom cannot be written: No such file or directory"
        with in_sync(node, text):
            assert f"  trouble: {trouble}\n" in node.masq("status").stdout
            assert check(node) == 0
            findings = json.loads(node.masq("doctor", "--json").stdout)["findings"]
            assert [one["severity"] for one in findings if one["seen"] == trouble] == ["notice"]


def test_watch_redraws_a_terminal_until_ctrl_c(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    controller, terminal = pty.openpty()
    shown = bytearray()

    def redrawn(*words: bytes) -> bool:
        """Return True if all of these words are on the screen."""
        while select.select([controller], [], [], 0)[0]:
            shown.extend(os.read(controller, 65536))
        return all(word in shown.rpartition(b"\033[H\033[2J")[2] for word in words)

    with in_sync(node), ExitStack() as stack:
        with node.entered(), os.fdopen(terminal, "wb") as output:
            argv = node.argv("status", "--watch")
            process = subprocess.Popen(argv, stdout=output, stderr=output, preexec_fn=as_from_a_terminal)
        stack.callback(process.wait)
        stack.callback(process.kill)
        eventually(lambda: redrawn(b"\033[32msynced", b"since: "))
        assert not redrawn(b"trouble")
        node.write_subnet("nonsense")
        eventually(lambda: redrawn(b"trouble: ", b"subnet.env"))
        node.write_subnet(SUBNET_ENV)
        eventually(lambda: not redrawn(b"trouble"))
        process.send_signal(signal.SIGINT)
        assert process.wait(patience(5)) == 130
    os.close(controller)


def test_rules_of_a_subnet_file_that_is_gone_are_told(node: Node) -> None:
    """flannel was removed, and the daemon restarts: nothing says any more what the rules are for."""
    assert node.masq("apply").returncode == 0
    node.subnet_file.unlink()
    with node.running() as daemon:
        daemon.reached("waiting")
        shown = node.masq("status")
        for family in Family:
            assert f"trouble: {family}: rules of an earlier subnet file are in force" in shown.stdout
        assert check(node) == 0, "it waits for flannel, as after a boot"
        assert node.masq("cleanup").returncode == 1
        assert daemon.stop() == 0
    assert node.masq("cleanup").returncode == 0
    with node.running() as daemon:
        daemon.reached("waiting")
        assert "earlier" not in node.masq("status").stdout
