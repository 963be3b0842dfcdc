"""Real firewalls with their default settings, on a node with the daemon and on one without.

Whatever they do, they do the same on both: exit status, and rules down to their order. Pods are masqueraded on the
first whenever the firewall lets them out at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.selftest.packets import PacketError

from ..common import eventually, lasting
from .conftest import MakeMachine
from .machine import UNIT, Machine
from .test_firewalls import firewalld_answers

ROUNDS = round(lasting(1, 10))
_long = pytest.mark.skipif(ROUNDS == 1, reason="test_firewalls.py has that zone; LONG=1 compares its rules too")
LOST_SECONDS = 0.1
_COUNTERS = re.compile(r" ?\[\d+:\d+\]")
_OURS = ("FLANNELD-MASQ", "flanneld-masq:")
_SHARED = frozenset({"filter", "nat", "mangle", "raw", "security"})  # tables of iptables-nft


def foreign_rules(machine: Machine) -> list[str]:
    """Every rule and chain that is not ours, in order, in all interfaces; tables that hold none are left out."""
    found: list[str] = []
    for tools, names in (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")):
        found += _tables(f"{tools}-nft", machine.run(f"{tools}-nft-save").stdout)
        for table in sorted(machine.run("cat", f"/proc/net/{names}", check=False).stdout.split()):
            found += _tables(f"{tools}-legacy", machine.run(f"{tools}-legacy-save", "-t", table).stdout)
    for line in machine.run("nft", "list", "tables").stdout.splitlines():
        _, family, table = line.split()
        if table != "flanneld-masq" and not (family.startswith("ip") and table in _SHARED):
            found += machine.run("nft", "--stateless", "list", "table", family, table).stdout.splitlines()
    return found


def _tables(tool: str, saved: str) -> Iterator[str]:
    """Yield the lines of a listing of iptables-save, without the tables that are as the kernel made them."""
    lines = [_COUNTERS.sub("", line) for line in saved.splitlines() if not line.startswith("#")]
    for table in "\n".join(lines).split("COMMIT"):
        name, *rest = [line for line in table.strip().splitlines() if not any(word in line for word in _OURS)] or [""]
        if any(not line.endswith(" ACCEPT") or line.startswith("-") for line in rest):
            yield from (f"{tool} {name} {line}" for line in sorted(rest, key=lambda line: line.startswith("-")))


def sources(machine: Machine) -> dict[str, str]:
    """Whose address packets from the pod arrive with, of each family."""
    found = {}
    for of in machine.site.topology.addresses:
        try:
            seen = machine.site.outside_sees(of.family, deadline=LOST_SECONDS)
            found[str(of.family)] = {of.node: "node", of.pod: "pod"}[seen]
        except PacketError:
            found[str(of.family)] = "lost"
    return found


@dataclass(frozen=True, **SLOTS)
class Event:
    """Something that an administrator does, and how to see that it is done. Afterwards no packet of a pod passes in the
    `lost` families."""

    argv: tuple[str, ...]
    done: Callable[[Machine], bool] = lambda machine: True
    lost: tuple[Family, ...] = ()

    @property
    def sources(self) -> dict[str, str]:
        return {str(family): "lost" if family in self.lost else "node" for family in Family}


def event(command: str, done: Callable[[Machine], bool] = lambda machine: True, lost: Iterable[Family] = ()) -> Event:
    return Event(tuple(command.split()), done, tuple(lost))


def happens(machine: Machine, what: Event) -> int:
    """Return the exit status. firewalld's ebtables-restore fails now and then if anybody commits to nf_tables
    meanwhile, so it gets a second chance."""
    done = machine.run(*what.argv, check=False)
    if done.returncode and "ebtables-restore" in done.stderr:
        done = machine.run(*what.argv, check=False)
    status = done.returncode
    eventually(lambda: what.done(machine))
    return status


def compare(make_machine: MakeMachine, backend: str, prepare: Callable[[Machine], None], *events: Event) -> None:
    """Have all of it happen on both nodes, side by side."""
    alone, beside = make_machine(), make_machine()
    for machine in (alone, beside):
        machine.boot()
        prepare(machine)
    beside.configure("[reconcile]\nresync_seconds = 3600", backend=backend)
    beside.write_subnet()
    beside.systemctl("start", UNIT)
    beside.reached("synced")
    with ThreadPoolExecutor() as threads:
        for turn in range(ROUNDS):
            for what in events:
                told = f"{' '.join(what.argv)}, round {turn + 1}"
                without = threads.submit(happens, alone, what)
                status = happens(beside, what)
                eventually(lambda: beside.masq("plan", check=False).returncode == 0)
                assert status == without.result(), told
                assert foreign_rules(beside) == foreign_rules(alone), told
                assert sources(beside) == what.sources, told


# ---- firewalld and netfilter-persistent


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
@pytest.mark.parametrize("zone", ["public", pytest.param("trusted", marks=_long)])
@pytest.mark.parametrize("firewall_backend", ["nftables", "iptables"])
def test_firewalld(make_machine: MakeMachine, firewall_backend: str, zone: str) -> None:
    """With its nftables, zone public rejects what pods send in a chain where no accept of another table helps."""
    path = "/etc/firewalld/firewalld.conf"
    rejects = tuple(Family) if (firewall_backend, zone) == ("nftables", "public") else ()

    def prepare(machine: Machine) -> None:
        text = machine.path(path).read_text()
        for key, value in (("FirewallBackend", firewall_backend), ("DefaultZone", zone)):
            text = re.sub(rf"^{key}=.*", f"{key}={value}", text, flags=re.M)
        machine.write(path, text)

    compare(
        make_machine,
        "auto",
        prepare,
        event("systemctl start firewalld", firewalld_answers, rejects),
        event("firewall-cmd --reload", firewalld_answers, rejects),
        event("firewall-cmd --complete-reload", firewalld_answers, rejects),
        event("systemctl restart firewalld", firewalld_answers, rejects),
        event("systemctl stop firewalld"),
    )


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
@pytest.mark.parametrize("backend", ["auto", "iptables-nft"])
def test_netfilter_persistent(make_machine: MakeMachine, backend: str) -> None:
    """The rules that it loads are those of a router: a policy, and the administrator's NAT."""

    def prepare(machine: Machine) -> None:
        for version, address in ((4, "203.0.113.9"), (6, "2001:db8:ff::9")):
            machine.write(
                f"/etc/iptables/rules.v{version}",
                f"*nat\n:POSTROUTING ACCEPT [0:0]\n:ADMIN - [0:0]\n-A POSTROUTING -s {address} -j ADMIN\n"
                "-A ADMIN -j MASQUERADE\nCOMMIT\n"
                "*filter\n:FORWARD DROP [0:0]\n:POLICY - [0:0]\n-A FORWARD -j POLICY\n"
                f"-A POLICY -s {address} -j DROP\nCOMMIT\n",
            )

    compare(
        make_machine,
        backend,
        prepare,
        event("systemctl start netfilter-persistent"),
        event("netfilter-persistent reload"),
        event("systemctl restart netfilter-persistent"),
        event("netfilter-persistent flush"),
        event("systemctl stop netfilter-persistent"),
    )


# ---- those of the other root


@pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)
def test_ufw(make_machine: MakeMachine) -> None:
    compare(
        make_machine,
        "auto",
        lambda machine: None,
        event("ufw --force enable"),
        event("ufw reload"),
        event("systemctl restart ufw"),
        event("ufw route deny from 203.0.113.9"),
        event("ufw disable"),
        event("ufw route delete deny from 203.0.113.9"),
    )


@pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)
def test_docker(make_machine: MakeMachine) -> None:
    def prepare(machine: Machine) -> None:
        """Have systemd not mind how often it starts."""
        machine.write("/etc/systemd/system/docker.service.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n")
        machine.systemctl("daemon-reload")

    compare(
        make_machine,
        "auto",
        prepare,
        event("systemctl start docker"),
        event("systemctl reload docker"),
        event("systemctl restart docker"),
        event("systemctl stop docker.socket docker"),
    )


@pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)
def test_ferm(make_machine: MakeMachine) -> None:
    compare(
        make_machine,
        "auto",
        lambda machine: None,
        event("systemctl start ferm"),
        event("systemctl reload ferm"),
        event("systemctl restart ferm"),
        event("systemctl stop ferm"),
    )


@pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)
def test_shorewall(make_machine: MakeMachine) -> None:
    """Its example for one interface."""

    def prepare(machine: Machine) -> None:
        machine.run("sh", "-c", "cp /usr/share/doc/shorewall/examples/one-interface/[a-z]* /etc/shorewall")
        machine.write("/etc/default/shorewall", "startup=1\n")

    compare(
        make_machine,
        "auto",
        prepare,
        event("systemctl start shorewall"),
        event("systemctl reload shorewall"),
        event("systemctl restart shorewall"),
        event("systemctl stop shorewall"),
        event("shorewall clear"),
    )


@pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)
def test_libvirt(make_machine: MakeMachine) -> None:
    compare(
        make_machine,
        "auto",
        lambda machine: None,
        event("systemctl start libvirtd"),
        event("virsh net-start default"),
        event("systemctl reload libvirtd"),
        event("systemctl restart libvirtd"),
        event("virsh net-destroy default"),
        event("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd"),
    )
