"""The D-Bus service of the unit, on the machine's own bus: its policy, its signals, and a bus that ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flanneld_masq.dbus.manager1 import MANAGER, NAME, PATH
from flanneld_masq.dbus.publisher import BACK
from flanneld_masq.model import BackendName

from ..common import eventually
from .conftest import MakeMachine
from .machine import UNIT, Machine
from .test_firewalls import configure_firewalld, firewalld_answers, use_flavour

LEGACY = BackendName("iptables-legacy")
# so that no repair is owed to a poll, nor to the lock of other programs
QUIET = "[reconcile]\nlegacy_poll_seconds = 60\nresync_seconds = 3600"
OTHER_LOCK = "[Service]\nEnvironment=XTABLES_LOCKFILE=/run/flanneld-masq/xtables.lock\n"
JOINED = f"on the system bus as {NAME}"


def on_bus(machine: Machine) -> str:
    """Return the daemon's state as `busctl` prints it; empty while the daemon is not on the bus."""
    done = machine.run("busctl", "get-property", NAME, PATH, MANAGER.name, "State", check=False)
    return done.stdout.strip()


def begin(machine: Machine, backend: str = "nft", text: str = "") -> Machine:
    machine.configure(text, backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    eventually(lambda: on_bus(machine) == 's "synced"')
    return machine


def begin_deaf(machine: Machine) -> None:
    """With legacy tables, whose changes the daemon does not notice by itself."""
    machine.write(f"/etc/systemd/system/{UNIT}.d/lock.conf", OTHER_LOCK)
    machine.systemctl("daemon-reload")
    begin(machine, LEGACY, QUIET)


@pytest.fixture
def present(machine: Machine) -> Machine:
    return begin(machine)


def flush(machine: Machine) -> None:
    machine.run("nft", "flush", "chain", "ip", "flanneld-masq", "postrouting")


def assert_repaired(machine: Machine) -> None:
    """Both families are, of which a line in the journal names one."""
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)
    machine.site.assert_masqueraded()


# ---- who may do what


def test_the_name_belongs_to_the_user_of_the_service(present: Machine) -> None:
    (line,) = (line for line in present.run("busctl", "list").stdout.splitlines() if line.startswith(NAME))
    assert line.split()[1:4] == [present.show("MainPID"), "flanneld-masq", "flanneld-masq"]
    assert line.split()[5] == UNIT


@pytest.mark.parametrize("user", ["", "nobody"])
def test_anyone_may_look(present: Machine, user: str) -> None:
    shown = present.run("busctl", "introspect", NAME, PATH, MANAGER.name, user=user).stdout
    members = {line.split()[0].lstrip(".") for line in shown.splitlines() if line.startswith(".")}
    assert members == {*MANAGER.properties, *MANAGER.methods, *MANAGER.signals}
    answer = present.run("busctl", "--json=short", "call", NAME, PATH, MANAGER.name, "GetStatus", user=user).stdout
    assert json.loads(json.loads(answer)["data"][0])["state"] == "synced"
    assert present.masq("status", user=user).stdout.startswith(f"flanneld-masq: synced, pid {present.show('MainPID')}")


@pytest.mark.parametrize("member", ["Reconcile", "Reload"])
def test_root_alone_may_have_it_act(present: Machine, member: str) -> None:
    refused = present.run("busctl", "call", NAME, PATH, MANAGER.name, member, user="nobody", check=False)
    assert (refused.returncode, refused.stderr) == (1, "Call failed: Access denied\n")
    assert "configuration reloaded" not in present.story()
    present.run("busctl", "call", NAME, PATH, MANAGER.name, member)
    assert ("configuration reloaded" in present.story()) == (member == "Reload")


def test_the_bus_has_no_complaint_of_our_policy(present: Machine) -> None:
    said = [str(entry["MESSAGE"]) for entry in present.journal("--unit=dbus.service")]
    assert said
    assert [line for line in said if "flanneld" in line] == []


# ---- its signals


class Output:
    """Lines of JSON from a program that goes on running."""

    def __init__(self, machine: Machine, *argv: str, user: str = "") -> None:
        self._path = machine.path("/run/output")
        self._path.touch()
        self._path.chmod(0o666)
        machine.start("sh", "-c", 'exec "$@" >/run/output 2>&1', "sh", *argv, user=user)

    def lines(self, word: str) -> list[dict[str, Any]]:
        """Those with that word, until now."""
        return [
            json.loads(line) for line in self._path.read_text().splitlines(True) if word in line and line[-1] == "\n"
        ]

    def line(self, word: str) -> dict[str, Any]:
        return eventually(lambda: self.lines(word))[0]


def test_busctl_monitor_shows_a_repair_with_the_culprit(present: Machine) -> None:
    rule = f"type='signal',interface='{MANAGER.name}',member='Repaired'"
    output = Output(present, "busctl", "monitor", "--json=short", f"--match={rule}")

    # it does not say on each release when it began
    def repaired() -> bool:
        flush(present)
        return bool(output.lines('"Repaired"'))

    eventually(repaired)
    told = dict(zip(MANAGER.signals["Repaired"], output.line('"Repaired"')["payload"]["data"]))
    assert (told["family"], told["backend"], told["culprit"]) == ("ipv4", "nft", "nft")
    assert "drift repaired with nft" in told["message"]


@pytest.mark.parametrize("user", ["", "nobody"])
def test_our_own_monitor_does_too(present: Machine, user: str) -> None:
    output = Output(present, "flanneld-masq", "monitor", "--json", user=user)
    running = output.line('"running"')
    assert (running["state"], running["backends"][0]["backend"]) == ("synced", "nft")
    flush(present)
    repaired = output.line('"repaired"')
    assert (repaired["family"], repaired["culprit"]) == ("ipv4", "nft")
    present.systemctl("stop", UNIT)
    assert output.line('"state", "family": ""')["new"] == "stopped"
    assert output.line('"not-running"')


def test_apply_is_done_by_the_daemon(machine: Machine) -> None:
    begin_deaf(machine)
    machine.run("iptables-legacy", "-w", "-t", "nat", "-F", "FLANNELD-MASQ")
    assert machine.masq("apply").stdout.startswith("ipv4 iptables-legacy: ")
    assert machine.logged("drift repaired", "(Reconcile called)")
    refused = machine.masq("apply", user="nobody", check=False)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


# ---- what others say


def test_firewalld_is_heard(machine: Machine) -> None:
    use_flavour(machine, LEGACY)
    configure_firewalld(machine, "iptables")
    begin_deaf(machine)
    # The first event of nf_tables begins a pass, and firewalld makes events too.
    machine.run("nft", "add", "table", "ip", "elsewhere")
    machine.masq("apply")
    machine.systemctl("start", "firewalld")
    machine.logged("drift repaired", "firewalld")
    eventually(lambda: firewalld_answers(machine))
    assert_repaired(machine)
    for argv, reason in (
        (("firewall-cmd", "--reload"), "firewalld reloaded"),
        (("systemctl", "stop", "firewalld"), "firewalld stopped"),
    ):
        cursor = machine.cursor()
        machine.run(*argv)
        machine.logged("drift repaired", reason, after=cursor)
        assert_repaired(machine)


def test_jobs_of_systemd_are_heard(machine: Machine) -> None:
    begin_deaf(machine)
    use_flavour(machine, LEGACY)
    machine.write("/etc/iptables/rules.v4", "*nat\nCOMMIT\n")
    machine.systemctl("restart", "netfilter-persistent")
    machine.logged("drift repaired", "(netfilter-persistent.service done)")
    assert_repaired(machine)


# ---- a bus that goes


def test_a_bus_that_is_killed_is_joined_again(machine: Machine) -> None:
    begin_deaf(machine)
    pid = machine.show("MainPID")
    machine.systemctl("kill", "--signal=KILL", "dbus.service")
    machine.logged("the system bus is lost")
    machine.logged(JOINED)
    assert on_bus(machine) == 's "synced"'
    assert (machine.show("MainPID"), machine.show("NRestarts")) == (pid, "0")
    cursor = machine.cursor()
    machine.write("/etc/iptables/rules.v4", "*nat\nCOMMIT\n")
    use_flavour(machine, LEGACY)
    machine.systemctl("restart", "netfilter-persistent")
    machine.logged("drift repaired", "(netfilter-persistent.service done)", after=cursor)


def test_it_works_without_a_bus_and_joins_one_that_comes_later(make_machine: MakeMachine) -> None:
    machine = make_machine()
    machine.configure(backend="nft")
    machine.systemctl("mask", "dbus.service", "dbus.socket")
    machine.systemctl("enable", UNIT)
    machine.boot()
    machine.write_subnet()
    machine.reached("synced")
    machine.site.assert_masqueraded()
    flush(machine)
    machine.logged("drift repaired")
    machine.logged("no D-Bus service until the bus is available")
    assert machine.masq("status").stdout.startswith("flanneld-masq: synced")
    machine.systemctl("unmask", "dbus.service", "dbus.socket")
    machine.systemctl("start", "dbus.socket")
    machine.logged(JOINED)
    assert on_bus(machine) == 's "synced"'
    said = [str(entry["MESSAGE"]) for entry in machine.journal(f"--unit={UNIT}")]
    assert len([line for line in said if "bus" in line.lower()]) == 2, said
    assert BACK not in "".join(said), "it found nothing to repair"
