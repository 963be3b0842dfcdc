"""The unit under systemd: from enabled to stopped, what it says of itself, and what becomes of packets meanwhile."""

from __future__ import annotations

import re
import signal

import pytest

from flanneld_masq.inputs import config
from flanneld_masq.model import BackendName
from flanneld_masq.service.journal import MESSAGE_IDS

from ..common import eventually
from .conftest import MakeMachine
from .machine import UNIT, Machine
from .rules import BACKENDS, NftRules, rules_of
from .site import subnet_file_text

NON_MASQUERADE = '[masquerade]\nnon_masquerade_cidrs = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"]'


def started(machine: Machine, backend: str = "nft", text: str = "") -> None:
    """The usual state: a lease, the daemon at work."""
    machine.configure(text, backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)


def drop_in(machine: Machine, text: str) -> None:
    machine.write(f"/etc/systemd/system/{UNIT}.d/test.conf", text)
    machine.systemctl("daemon-reload")


# ---- start


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_enabled_service_is_ready_once_the_rules_are_there(machine: Machine, backend: BackendName) -> None:
    machine.configure(backend=backend)
    machine.write_subnet()
    machine.site.assert_not_masqueraded()
    machine.systemctl("enable", "--now", UNIT)
    assert machine.site.wrong_packets() == []
    assert machine.systemctl("is-enabled", UNIT).strip() == "enabled"
    assert (machine.show("ActiveState"), machine.show("SubState"), machine.show("NRestarts")) == (
        "active",
        "running",
        "0",
    )
    assert machine.show("StatusText") == f"synced: ipv4 {backend} 10.244.1.0/24, ipv6 {backend} fd00:10:244:1::/64"
    status = machine.systemctl("status", UNIT)
    assert f'Status: "{machine.show("StatusText")}"' in status
    assert machine.status()["state"] == "synced"
    assert machine.status()["pid"] == int(machine.show("MainPID"))


def test_without_a_subnet_file_it_is_ready_and_waits_for_one(machine: Machine) -> None:
    machine.configure(backend="nft")
    machine.systemctl("enable", "--now", UNIT)
    assert machine.show("ActiveState") == "active"
    assert re.match(r"waiting\b.*/run/flannel/subnet\.env", machine.show("StatusText"))
    machine.site.assert_not_masqueraded()
    machine.write_subnet()
    eventually(lambda: machine.show("StatusText").startswith("synced"))
    assert machine.site.wrong_packets() == []


def test_a_bad_configuration_ends_it_with_2_without_a_restart(machine: Machine) -> None:
    machine.configure("[masquerade]\nno_such_key = 1")
    machine.write_subnet()
    assert "failed" in machine.run("systemctl", "start", UNIT, check=False).stderr
    properties = ("ActiveState", "Result", "ExecMainStatus", "NRestarts")
    assert [machine.show(name) for name in properties] == ["failed", "exit-code", "2", "0"]
    said = machine.logged("no_such_key")
    assert "/etc/flanneld-masq/config.toml" in said["MESSAGE"]
    assert (said["PRIORITY"], said["MESSAGE_ID"]) == ("3", MESSAGE_IDS["failed"])
    assert len([each for each in machine.journal(f"--unit={UNIT}") if "no_such_key" in str(each["MESSAGE"])]) == 1
    machine.site.assert_not_masqueraded()
    started(machine)
    assert machine.show("ActiveState") == "active"
    machine.site.assert_masqueraded()


def test_repairs_work_if_the_sandbox_denies_the_state_directory(machine: Machine) -> None:
    machine.configure('state_directory = "/var/lib/masq"', backend="nft")
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    entry = machine.logged("state directory /var/lib/masq cannot be used", "ReadWritePaths=")
    assert entry["MESSAGE_ID"] == MESSAGE_IDS["unwritable"]
    assert "a directory that the user flanneld-masq may write" in entry["MESSAGE"]
    status = machine.status()
    assert status["state"] == "synced"
    assert any("/var/lib/masq cannot be used" in trouble for trouble in status["troubles"])
    machine.site.assert_masqueraded()
    machine.run("install", "-d", "-o", "flanneld-masq", "/var/lib/masq")
    drop_in(machine, "[Service]\nReadWritePaths=/var/lib/masq\n")
    machine.systemctl("restart", UNIT)
    assert machine.status()["state"] == "synced"
    assert machine.status()["troubles"] == []
    machine.site.assert_masqueraded()


def test_another_instance_is_waited_for(machine: Machine) -> None:
    machine.configure(backend="nft")
    machine.write_subnet()
    machine.start("flanneld-masq", "run")
    machine.reached("synced")
    machine.systemctl("start", "--no-block", UNIT)
    eventually(
        lambda: machine.show("StatusText").startswith(
            "waiting for the other instance to exit: another flanneld-masq runs"
        )
    )
    assert machine.show("ActiveState") == "activating"
    machine.run("kill", str(machine.status()["pid"]))
    eventually(lambda: machine.show("ActiveState") == "active")
    assert machine.show("NRestarts") == "0"
    machine.site.assert_masqueraded()


# ---- reload


def test_a_reload_brings_the_new_configuration_into_force(machine: Machine) -> None:
    started(machine)
    pid = machine.show("MainPID")
    machine.configure(NON_MASQUERADE, backend="nft")
    machine.systemctl("reload", UNIT)
    settings = config.load(machine.path("/etc/flanneld-masq/config.toml"))
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)
    assert machine.site.wrong_packets(settings) == []
    machine.site.assert_not_masqueraded()
    assert (machine.show("MainPID"), machine.show("ActiveState")) == (pid, "active")


def test_a_reload_fails_on_a_wrong_configuration(machine: Machine) -> None:
    started(machine)
    pid, rules = machine.show("MainPID"), NftRules(machine.site.topology, BackendName("nft"))
    before = rules.look(), rules.generation()
    drop_in = "/etc/flanneld-masq/config.d/50-test.toml"
    machine.write(drop_in, f"{NON_MASQUERADE}\nno_such_key = 1")
    reloaded = machine.run("systemctl", "reload", UNIT, check=False)
    assert reloaded.returncode != 0
    assert "failed" in reloaded.stderr
    said = machine.logged(f"{drop_in}: masquerade.no_such_key: unknown key")
    assert said["_SYSTEMD_UNIT"] == UNIT
    assert not [each for each in machine.journal(f"--unit={UNIT}") if "settings stay" in str(each["MESSAGE"])]
    assert (machine.show("MainPID"), machine.show("ActiveState")) == (pid, "active")
    assert (rules.look(), rules.generation()) == before
    checked = machine.masq("check", user="nobody", check=False)
    assert (checked.returncode, checked.stderr.split("; ")[0]) == (
        2,
        f"flanneld-masq: {drop_in}: masquerade.no_such_key: unknown key",
    )
    machine.write(drop_in, NON_MASQUERADE)
    machine.systemctl("reload", UNIT)
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)  # says both families
    machine.site.assert_not_masqueraded()


def test_a_hangup_with_a_bad_configuration_keeps_the_settings(machine: Machine) -> None:
    started(machine)
    pid, rules = machine.show("MainPID"), NftRules(machine.site.topology, BackendName("nft"))
    before = rules.look(), rules.generation()
    machine.configure(f"{NON_MASQUERADE}\nno_such_key = 1", backend="nft")
    machine.run("kill", "-HUP", pid)
    said = machine.logged("no_such_key", "the running settings stay")
    assert said["PRIORITY"] == "3"
    assert (machine.show("MainPID"), machine.show("ActiveState")) == (pid, "active")
    assert machine.show("StatusText").startswith("synced")
    assert "no_such_key" in machine.show("StatusText")
    asked = machine.masq("status", check=False)
    assert (asked.returncode, asked.stdout.splitlines()[0]) == (2, f"flanneld-masq: synced, pid {pid}")
    assert asked.stdout.count("no_such_key") == 1
    assert (rules.look(), rules.generation()) == before
    machine.site.assert_masqueraded()
    machine.configure(NON_MASQUERADE, backend="nft")
    machine.systemctl("reload", UNIT)
    eventually(lambda: rules.look() != before[0])
    assert "no_such_key" not in machine.show("StatusText")


# ---- stop


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stop_leaves_the_rules_or_removes_them_as_configured(machine: Machine, backend: BackendName) -> None:
    started(machine, backend)
    rules = rules_of(machine.site.topology, backend)
    before = rules.look()
    machine.systemctl("stop", UNIT)
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert machine.status()["state"] == "stopped"
    assert rules.look() == before
    assert machine.site.wrong_packets() == []
    started(machine, backend, "[stop]\nremove_rules = true")
    machine.site.assert_masqueraded()
    machine.systemctl("stop", UNIT)
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    machine.site.assert_not_masqueraded()
    assert machine.masq("cleanup").stdout == "there was nothing to remove\n"


# ---- what goes wrong


@pytest.mark.timing
def test_the_watchdog_restarts_a_daemon_that_hangs(machine: Machine) -> None:
    drop_in(machine, "[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\nRestartSec=0\n")
    started(machine)
    pid = machine.show("MainPID")
    machine.run("kill", "-STOP", pid)
    machine.site.assert_masqueraded()
    eventually(lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active")
    assert machine.logged("Watchdog timeout")
    assert machine.show("MainPID") not in ("0", pid)
    machine.reached("synced")
    machine.run("nft", "flush", "ruleset")
    for family in ("ipv4", "ipv6"):
        machine.logged(f"{family}: drift repaired")
    machine.site.assert_masqueraded()


@pytest.mark.timing
def test_the_watchdog_is_fed_while_the_daemon_works(machine: Machine) -> None:
    drop_in(machine, "[Service]\nWatchdogSec=500ms\n")
    started(machine)
    fed: set[str] = set()

    def often() -> bool:
        fed.add(machine.show("WatchdogTimestampMonotonic"))
        return len(fed) > 5  # each 0.25 s: more than twice the time that the watchdog gives

    eventually(often)
    assert (machine.show("NRestarts"), machine.show("ActiveState")) == ("0", "active")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_daemon_that_crashes_is_restarted_and_its_rules_stay(machine: Machine, number: signal.Signals) -> None:
    drop_in(machine, "[Service]\nRestartSec=3600\n")
    started(machine)
    machine.run("kill", f"-{number.name}", machine.show("MainPID"))
    eventually(lambda: machine.show("ActiveState") == "activating")
    left = machine.status()
    assert (left["state"], left["pid"]) == ("stopped", None)
    for family in left["families"].values():
        assert (family["state"], family["kernel"]) == ("stopped", "holds what is wanted")
        assert (family["repairs"], family["last_repair"], family["last_write"]["drift"]) == (0, None, False)
    machine.site.assert_masqueraded()
    drop_in(machine, "[Service]\nRestartSec=100ms\n")
    machine.systemctl("restart", UNIT)
    machine.run("kill", f"-{number.name}", machine.show("MainPID"))
    eventually(lambda: machine.show("NRestarts") == "1" and machine.show("ActiveState") == "active")
    assert machine.site.wrong_packets() == []


def test_an_ordinary_user_learns_of_it_without_d_bus(machine: Machine) -> None:
    """The lock of the service's user tells nobody else who holds it."""
    drop_in(machine, "[Service]\nRestartSec=60\n")
    started(machine, text="[dbus]\nenabled = false")

    def told() -> str:
        return machine.masq("status", user="nobody").stdout.splitlines()[0]

    assert told() == f"flanneld-masq: synced, pid {machine.show('MainPID')}"
    assert machine.masq("wait", user="nobody").stdout.startswith("synced after ")
    doctor = machine.masq("doctor", user="nobody", check=False)
    assert "the daemon does not run" not in doctor.stdout and "[rules-unreadable]" in doctor.stdout
    machine.systemctl("kill", "--signal=SIGKILL", UNIT)
    assert machine.masq("wait", "--for", "stopped", user="nobody").stdout.startswith("stopped after ")
    eventually(lambda: machine.show("ActiveState") == "activating")
    assert told() == "flanneld-masq: stopped"
    machine.path("/run/flanneld-masq/status.json").unlink()
    assert told() == "flanneld-masq: unknown"
    failed = machine.masq("doctor", user="nobody", check=False).stdout
    assert "the daemon does not run: its service has failed [service-failed]" in failed
    assert "activating (auto-restart); Result=signal" in failed


# ---- boot


def test_booted_with_a_subnet_file_it_masquerades(make_machine: MakeMachine) -> None:
    """The file is there before any service starts, and the firewalls of the boot flush what they find."""
    machine = make_machine()
    machine.configure(backend="nft")
    machine.systemctl("enable", UNIT, "nftables.service", "netfilter-persistent.service")
    machine.write("/etc/subnet.env", subnet_file_text())
    machine.write("/etc/tmpfiles.d/flannel.conf", "d /run/flannel\nC /run/flannel/subnet.env - - - - /etc/subnet.env\n")
    machine.boot()
    assert machine.systemctl("is-system-running").strip() == "running"
    assert machine.show("StatusText").startswith("synced")
    assert machine.show("ActiveState", "nftables.service") == "active"
    assert machine.site.wrong_packets() == []
    repairs = [family["repairs"] for family in machine.status()["families"].values()]
    assert repairs == [0, 0]  # the firewalls came first


def test_booted_without_a_subnet_file_it_waits_for_it(make_machine: MakeMachine) -> None:
    machine = make_machine()
    machine.configure(backend="nft")
    machine.systemctl("enable", UNIT)
    machine.boot()
    assert machine.systemctl("is-system-running").strip() == "running"
    assert machine.show("StatusText").startswith("waiting")
    machine.site.assert_not_masqueraded()
    machine.write_subnet()
    machine.reached("synced")
    assert machine.site.wrong_packets() == []


def test_a_shutdown_stops_it_cleanly_and_the_next_boot_starts_it(machine: Machine) -> None:
    started(machine)
    machine.systemctl("enable", UNIT)
    machine.poweroff()
    machine.boot()
    said = [str(entry["MESSAGE"]) for entry in machine.journal("--boot=-1", f"--unit={UNIT}")]
    assert any("stopped in" in message and "rules stay in place" in message for message in said)
    assert machine.show("StatusText").startswith("waiting")
    machine.write_subnet()
    machine.reached("synced")
    assert machine.site.wrong_packets() == []
