"""`doctor` on a booted node with the rules of a real kube-proxy: a healthy node has no finding, in each mode; a broken
one has one, and after its remedy packets arrive and the finding is gone.

`tests/kernel/kube_proxy/README.md` says where the rules come from.
"""

from __future__ import annotations

import pytest

from flanneld_masq.model import Family, Packet
from flanneld_masq.selftest import packets

from ..common import every_time, patience
from ..kube_proxy import MODES, Rules
from .machine import UNIT, Machine
from .test_doctor import LOST_SECONDS, findings, is_lost, named, problems, remedy, start

pytestmark = pytest.mark.parametrize("release", ["bookworm"], indirect=True)

BEFORE_SERVICES = "table inet guard { chain pre { type filter hook prerouting priority -150; iifname cni0 drop; }; }\n"


def load(machine: Machine, mode: str) -> None:
    """Load the rules of a mode, of both families."""
    for family in Family:
        command: tuple[str, ...] = ("nft", "-f", "-")
        if mode != "nftables":
            command = (f"{mode.replace('iptables', family.data.tools)}-restore", "--noflush")
        machine.run(*command, stdin=Rules(mode, family).uncounted)


def remove(machine: Machine, mode: str) -> None:
    for family in Family:
        if mode == "nftables":
            machine.run("nft", "delete", "table", family.data.nft, "kube-proxy")
        else:
            for table in ("nat", "filter", "mangle"):
                for action in ("-F", "-X"):
                    machine.run(mode.replace("iptables", family.data.tools), "-t", table, action)


def wrong_packets(machine: Machine) -> list[str]:
    """Return the packets that fare otherwise than wanted. kube-proxy masquerades those with its mark."""
    return [one for one in machine.site.wrong_packets() if not one.startswith("marked ")]


def test_in_each_mode_only_a_drop_before_services_is_found(machine: Machine) -> None:
    start(machine)
    for mode in MODES if every_time() else MODES[-1:]:  # the kernel tests load all of them
        load(machine, mode)
        assert findings(machine) == [], mode
        assert wrong_packets(machine) == [], mode

        machine.run("nft", "-f", "-", stdin=BEFORE_SERVICES)
        found = problems(machine)
        assert named(found) == {("flow-dropped", str(family), "unknown") for family in Family}, mode
        assert all(is_lost(machine, family) for family in Family), mode
        remedy(machine, found)
        assert findings(machine) == [], mode
        machine.site.assert_masqueraded()
        machine.run("nft", "delete", "table", "inet", "guard")
        remove(machine, mode)


def test_the_mark_of_kube_proxy(machine: Machine) -> None:
    """Another program gives it to packets of pods; then the setting differs from it."""
    start(machine)
    load(machine, "iptables-nft")
    assert remote_sees(machine) == pod(machine)
    marking = ("-i", "cni0", "-j", "MARK", "--set-xmark", "0x4000/0x4000")
    machine.run("iptables", "-t", "mangle", "-A", "PREROUTING", *marking)
    found = problems(machine)
    assert named(found) == {("flow-masqueraded", "ipv4", "kube-proxy")}
    assert "marked at prerouting by rule 1 of PREROUTING in ip mangle" in found[0]["seen"]
    assert remote_sees(machine) != pod(machine)
    remedy(machine, found)
    assert findings(machine) == []
    assert remote_sees(machine) == pod(machine)
    machine.site.assert_masqueraded()

    machine.configure('[masquerade]\nkube_proxy_mark = "0x8000/0x8000"')
    machine.systemctl("reload", UNIT)
    found = problems(machine)
    assert named(found) == {("kube-proxy-mark-differs", str(family), "") for family in Family}
    assert 'kube_proxy_mark = "auto"' in found[0]["remedy"]
    machine.configure('[masquerade]\nkube_proxy_mark = "auto"')
    machine.systemctl("reload", UNIT)
    assert findings(machine) == []


def test_a_drop_in_the_flavour_of_kube_proxy_is_found(machine: Machine) -> None:
    """The setting names a backend whose accept does not help against a drop in the other flavour."""
    start(machine, '[forward]\nbackend = "iptables-nft"')
    load(machine, "iptables-legacy")
    machine.run("iptables-legacy", "-P", "FORWARD", "DROP")
    found = problems(machine)
    assert named(found) == {("flow-dropped", "ipv4", "unknown")}
    assert is_lost(machine, Family.IPV4)
    remedy(machine, found)
    assert problems(machine) == []
    machine.site.assert_masqueraded()


def pod(machine: Machine) -> str:
    return str(machine.site.topology.of(Family.IPV4).pod)


def remote_sees(machine: Machine) -> str:
    """Return the source address of a packet of the pod to a pod of another node."""
    topology = machine.site.topology
    of = topology.of(Family.IPV4)
    packet = Packet(of.pod, of.remote_pod)
    return str(packets.udp(topology.pod, topology.remote, packet, deadline=patience(LOST_SECONDS)))
