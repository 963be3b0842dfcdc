"""Real firewalls with their default settings, on a node with the daemon and on one without.

Whatever they do, they do the same on both: exit status, and rules down to their order. Packets fare on the first as on
the second, but for what the policy masquerades and accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional

import pytest

from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import SLOTS, Address, Family, Settings
from flanneld_masq.selftest import packet_cases, packets
from flanneld_masq.selftest.packet_cases import Case
from flanneld_masq.selftest.packets import PacketError
from flanneld_masq.selftest.topology import Addresses

from ..common import eventually, every_time, lasting, patience
from . import libvirt
from .conftest import MakeMachine
from .machine import UNIT, Machine
from .site import SUBNET_FILE, subnet_file_text
from .test_firewalls import firewalld_answers

ROUNDS = round(lasting(1, 10))
_long = pytest.mark.skipif(not every_time(), reason="LONG=1 compares the rules of this one too")
LOST_SECONDS = 0.1
SETTLED_SECONDS = 2.0
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


def sent(machine: Machine) -> list[tuple[Addresses, Case]]:
    """Return the packets that are tried: what a pod sends to the outside, with LONG=1 one of every class."""
    number = None if every_time() else 1
    return [(of, case) for of in machine.site.topology.addresses for case in packet_cases.cases(of)[:number]]


def arrivals(machine: Machine, seconds: float) -> list[Optional[Address]]:
    """Return the source that each packet arrives with; None if it is lost for so long."""
    return [_arrival(machine, case, seconds) for _, case in sent(machine)]


def _arrival(machine: Machine, case: Case, seconds: float) -> Optional[Address]:
    sender, receiver = (getattr(machine.site.topology, role) for role in (case.sender, case.receiver))
    try:
        return packets.udp(sender, receiver, case.packet, device=case.device, deadline=seconds)
    except PacketError:
        return None


def wrong_packets(beside: Machine, alone: Machine, lost: tuple[Family, ...], threads: Executor) -> list[str]:
    """Return the packets that fare otherwise than they should. What passes without the daemon passes with it. What is
    lost without it passes only if it is a pod's. The policy decides on the source. What a pod sends to the outside
    passes except in the `lost` families."""
    leases = (subnet_env.parse(subnet_file_text().encode(), SUBNET_FILE),)
    alone_sees = threads.submit(arrivals, alone, LOST_SECONDS)
    beside_sees = arrivals(beside, patience(LOST_SECONDS))
    found = []
    for (of, case), seen, before in zip(sent(beside), beside_sees, alone_sees.result()):
        right = packet_cases.expect(Settings(), leases, of, case.packet).source
        of_pods = any(address in network for network in of.networks for address in (case.packet.src, case.packet.dst))
        is_right = seen == right or (seen is None and before is None)
        may_pass = before is not None or of_pods or seen is None
        is_outbound = case.name == "pod to outside"
        if not (is_right and may_pass) or (is_outbound and (seen is None) != (of.family in lost)):
            found.append(f"{of.family}, {case.name}: with the daemon from {seen}, without it from {before}")
    return found


@dataclass(frozen=True, **SLOTS)
class Event:
    """Something that an administrator does, and how to see that it is done. Afterwards no packet of a pod passes in the
    `lost` families."""

    argv: tuple[str, ...]
    done: Callable[[Machine], bool] = lambda machine: True
    lost: tuple[Family, ...] = ()


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


def assert_same_rules(beside: Machine, alone: Machine, told: str) -> None:
    """Wait for a program that goes on for a moment after its command."""
    found: list[list[str]] = []

    def are_same() -> bool:
        found[:] = map(foreign_rules, (beside, alone))
        return found[0] == found[1]

    with suppress(AssertionError):
        eventually(are_same, SETTLED_SECONDS)
    assert found[0] == found[1], told


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
                assert_same_rules(beside, alone, told)
                assert wrong_packets(beside, alone, what.lost, threads) == [], told


# ---- firewalld and netfilter-persistent


@pytest.mark.parametrize("release", ["bookworm"], indirect=True)
@pytest.mark.parametrize("zone", ["public", pytest.param("trusted", marks=_long)])
@pytest.mark.parametrize("firewall_backend", ["nftables", "iptables"])
@pytest.mark.parametrize("individual_calls", ["no", pytest.param("yes", marks=_long)])
def test_firewalld(make_machine: MakeMachine, firewall_backend: str, individual_calls: str, zone: str) -> None:
    """With its nftables, zone public rejects what pods send in a chain where no accept of another table helps."""
    path = "/etc/firewalld/firewalld.conf"
    rejects = tuple(Family) if (firewall_backend, zone) == ("nftables", "public") else ()

    def prepare(machine: Machine) -> None:
        text = machine.path(path).read_text()
        settings = {"FirewallBackend": firewall_backend, "IndividualCalls": individual_calls, "DefaultZone": zone}
        for key, value in settings.items():
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


def often(machine: Machine, unit: str) -> None:
    """Have systemd not mind how often a unit starts."""
    machine.write(f"/etc/systemd/system/{unit}.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n")
    machine.systemctl("daemon-reload")


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
    compare(
        make_machine,
        "auto",
        lambda machine: often(machine, "docker.service"),
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
    """A network that its guests leave by NAT. libvirt writes its rules again when it starts or reloads."""

    def prepare(machine: Machine) -> None:
        often(machine, "libvirtd.service")
        libvirt.prepare(machine, "guests", "192.168.150.1")
        # libvirt 9.0 ends by SIGSEGV if it starts while a network is active and finds no dnsmasq.
        machine.write("/usr/sbin/dnsmasq", "#!/bin/sh\necho Dnsmasq version 2.89\n").chmod(0o755)

    compare(
        make_machine,
        "auto",
        prepare,
        event("systemctl start libvirtd", libvirt_answers),
        event(f"virsh net-create {libvirt.NETWORK_FILE}", has_rules),
        event("iptables-nft -t nat -F LIBVIRT_PRT"),  # so that the end of a reload can be seen
        event("systemctl reload libvirtd", has_rules),
        event("systemctl restart libvirtd", has_rules),
        event("virsh net-destroy guests"),
        event("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd"),
    )


def libvirt_answers(machine: Machine) -> bool:
    return machine.run("virsh", "net-list", check=False).returncode == 0


def has_rules(machine: Machine) -> bool:
    """libvirt has written the rules of its network."""
    return libvirt_answers(machine) and "-j MASQUERADE" in machine.run("iptables-nft-save", "-t", "nat").stdout
