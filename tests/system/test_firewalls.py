"""Firewalls that start, reload and stop beside the daemon: after each flush the daemon restores its rules at once."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from flanneld_masq.model import BackendName, Family
from flanneld_masq.selftest.packets import PacketError

from ..common import Tell, eventually, patience
from .conftest import MakeMachine
from .machine import UNIT, Machine
from .rules import BACKENDS, Outages, rules_of

MAX_MILLISECONDS = patience(1000)
LOST_SECONDS = 0.3
BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 60"
FOREIGN = "203.0.113.9"
_FIREWALLD = ("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    """Its flavour is the one that plain `iptables` means on the machine, where it has one."""
    found: BackendName = request.param
    return found


def use_flavour(machine: Machine, backend: BackendName) -> None:
    """Point plain `iptables` at the flavour of the backend, as Debian's alternatives do. The machine may be off."""
    if backend == "iptables-legacy":
        for tools, program in itertools.product(("iptables", "ip6tables"), ("", "-restore", "-save")):
            link = machine.path(f"/etc/alternatives/{tools}{program}")
            link.unlink()
            link.symlink_to(f"/usr/sbin/{tools}-legacy{program}")


@pytest.fixture
def synced(machine: Machine, backend: BackendName) -> Machine:
    """A machine with the daemon at work."""
    use_flavour(machine, backend)
    machine.configure(BY_EVENTS_ALONE, backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")
    return machine


class Watched:
    """Does things to a machine, and checks that the daemon's rules outlive them. A command that fails with `excuse` in
    its output runs a second time."""

    def __init__(self, machine: Machine, backend: BackendName, excuse: str = "") -> None:
        self._excuse = excuse
        self._outages: list[str] = []
        self._machine = machine
        self._backend = backend
        self._rules = rules_of(machine.site.topology, backend)

    def run(self, *argv: str, until: Callable[[], bool] = lambda: True) -> None:
        """A command, and whatever it set off until something holds."""
        outages = Outages(self._rules)
        with outages.watched():
            done = self._machine.run(*argv, check=False)
            if done.returncode and self._excuse and self._excuse in done.stderr:
                done = self._machine.run(*argv, check=False)
            eventually(until)
        assert done.returncode == 0, done.stderr
        longest = max(outages.milliseconds, default=0.0)
        if longest:
            self._outages.append(f"{' '.join(argv)} {longest:.0f} ms")
        assert longest < MAX_MILLISECONDS, self._outages
        self._machine.site.assert_masqueraded()

    def repairs(self) -> int:
        """By the daemon, until now. Some are over before anybody looks."""
        return sum(family["repairs"] for family in self._machine.status()["families"].values())

    def finish(self) -> str:
        """All is as it was. How long the rules of a family were gone, at most."""
        eventually(lambda: self._machine.masq("plan", check=False).returncode == 0)
        assert self._machine.site.wrong_packets() == []
        return f"{self._machine.release}, {self._backend}: rules gone: {', '.join(self._outages) or 'never'}"


def configure_firewalld(machine: Machine, firewall_backend: str) -> None:
    """In its usual zone firewalld would reject what pods send."""
    path = "/etc/firewalld/firewalld.conf"
    text = re.sub(
        r"^FirewallBackend=.*", f"FirewallBackend={firewall_backend}", machine.path(path).read_text(), flags=re.M
    )
    machine.write(path, re.sub(r"^DefaultZone=.*", "DefaultZone=trusted", text, flags=re.M))


def firewalld_answers(machine: Machine) -> bool:
    """It has its name on the bus some time before that. `firewall-cmd --state` asks the same, for more CPU."""
    asked = machine.run("busctl", "--auto-start=no", "get-property", *_FIREWALLD, "state", check=False)
    return asked.stdout == 's "RUNNING"\n'


@pytest.mark.parametrize("firewall_backend", ["nftables", "iptables"])
def test_firewalld_starts_reloads_and_stops(
    synced: Machine, backend: BackendName, firewall_backend: str, tell: Tell
) -> None:
    configure_firewalld(synced, firewall_backend)
    # Where anybody commits to nf_tables meanwhile, the ebtables-restore of that kind of firewalld fails now and then.
    watched = Watched(synced, backend, "ebtables-restore" if firewall_backend == "iptables" else "")
    watched.run("systemctl", "start", "firewalld", until=lambda: firewalld_answers(synced))
    watched.run("firewall-cmd", "--reload")
    watched.run("firewall-cmd", "--complete-reload")
    watched.run("systemctl", "restart", "firewalld", until=lambda: firewalld_answers(synced))
    watched.run("systemctl", "stop", "firewalld")
    tell(f"firewalld with {firewall_backend}, {watched.finish()}")
    # With iptables it flushes the rules of everybody, with nftables (before its release 2) those in iptables' tables.
    assert watched.repairs() or backend == "nft" or firewall_backend == "nftables"


def test_booted_beside_firewalld_the_rules_hold(make_machine: MakeMachine, backend: BackendName) -> None:
    machine = make_machine()
    use_flavour(machine, backend)
    configure_firewalld(machine, "iptables")
    machine.configure(backend=backend)
    machine.systemctl("enable", UNIT, "firewalld.service")
    machine.boot()
    machine.write_subnet()
    eventually(lambda: firewalld_answers(machine))
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)
    assert machine.site.wrong_packets() == []


def test_the_nftables_service_starts_reloads_and_stops(synced: Machine, backend: BackendName, tell: Tell) -> None:
    assert "flush ruleset" in synced.path("/etc/nftables.conf").read_text()
    watched = Watched(synced, backend)
    for action in ("start", "reload", "stop"):
        watched.run("systemctl", action, "nftables")
    tell(watched.finish())
    assert watched.repairs() or backend == "iptables-legacy"


def test_netfilter_persistent_loads_rules_with_and_without_ours(
    synced: Machine, backend: BackendName, tell: Tell
) -> None:
    rule = f"*{{}}\n-A {{}} -d {FOREIGN} -j ACCEPT\nCOMMIT\n"
    synced.write("/etc/iptables/rules.v4", rule.format("nat", "POSTROUTING") + rule.format("filter", "FORWARD"))
    watched = Watched(synced, backend)
    for _ in range(2):
        watched.run("systemctl", "restart", "netfilter-persistent")
        assert FOREIGN in synced.run("iptables-save").stdout
    synced.run("netfilter-persistent", "save")
    text = f'{BY_EVENTS_ALONE}\n[masquerade]\nnon_masquerade_cidrs = ["203.0.113.0/24"]'
    synced.configure(text, backend=backend)
    synced.systemctl("reload", UNIT)
    eventually(lambda: synced.masq("plan", check=False).returncode == 0)
    repairs = watched.repairs()
    second = Watched(synced, backend)
    second.run("systemctl", "restart", "netfilter-persistent")
    tell(watched.finish())
    tell(second.finish())
    assert 0 < repairs < second.repairs() or backend == "nft"


def findings(machine: Machine) -> list[dict[str, Any]]:
    """Return what doctor finds on flows of pods."""
    found: list[dict[str, Any]] = json.loads(machine.masq("doctor", "--json", check=False).stdout)["findings"]
    return [one for one in found if one["id"].startswith("flow")]


def test_doctor_names_firewalld_and_its_remedy_lasts(machine: Machine) -> None:
    """The usual zone rejects what pods send. The remedy is what doctor says, and --permanent keeps it."""
    machine.configure(backend="nft")
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")
    assert findings(machine) == []
    machine.systemctl("start", "firewalld")
    eventually(lambda: firewalld_answers(machine))
    found = findings(machine)
    assert {(one["id"], one["owner"], one["severity"]) for one in found} == {("flow-dropped", "firewalld", "problem")}
    for family in Family:
        with pytest.raises(PacketError):
            machine.site.outside_sees(family, deadline=LOST_SECONDS)
    for one in found:
        machine.run("sh", "-c", one["remedy"])
    assert findings(machine) == []
    machine.site.assert_masqueraded()  # what comes from the world firewalld still keeps off, as it may
    for one in found:
        machine.run("sh", "-c", re.findall("`([^`]*)`", one["persist"])[0])
    machine.run("firewall-cmd", "--complete-reload")
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)
    assert findings(machine) == []
    machine.site.assert_masqueraded()  # what comes from the world firewalld still keeps off, as it may
