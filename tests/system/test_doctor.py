"""`doctor` beside real firewalls: a healthy node has no problem, a broken one has a finding that names the program, and
after the remedy packets arrive and the finding is gone."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest

from flanneld_masq.model import Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.packets import PacketError

from ..common import eventually, every_time, patience
from . import libvirt
from .machine import UNIT, Machine

pytestmark = pytest.mark.parametrize("release", ["firewalls-bookworm"], indirect=True)

LOST_SECONDS = 0.3
DENIED = ("from {subnet}", "to {network}", "from {network} to {network}")
WITHOUT_FORWARD = "[forward]\nenabled = false"


def start(machine: Machine, text: str = "") -> None:
    machine.configure(text, backend="auto")
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")


def findings(machine: Machine) -> list[dict[str, Any]]:
    """Return all that doctor finds; its exit status must agree."""
    eventually(lambda: machine.masq("plan", check=False).returncode == 0)
    done = machine.masq("doctor", "--json", check=False)
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    severities = {one["severity"] for one in found}
    assert done.returncode == (1 if "problem" in severities else 2 if "unknown" in severities else 0), done.stdout
    return found


def problems(machine: Machine) -> list[dict[str, Any]]:
    return [one for one in findings(machine) if one["severity"] == "problem"]


def named(found: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(one["id"], one["family"], one["owner"]) for one in found}


def remedy(machine: Machine, found: list[dict[str, Any]]) -> None:
    for one in found:
        machine.run("sh", "-c", one["remedy"])


def is_lost(machine: Machine, family: Family) -> bool:
    try:
        machine.site.outside_sees(family, deadline=LOST_SECONDS)
    except PacketError:
        return True
    return False


def test_ufw_with_its_defaults_is_healthy(machine: Machine) -> None:
    start(machine)
    machine.run("ufw", "--force", "enable")
    assert problems(machine) == []
    assert machine.site.wrong_packets() == []


def test_a_deny_of_ufw_is_found(machine: Machine) -> None:
    start(machine)
    machine.run("ufw", "--force", "enable")
    for of in machine.site.topology.addresses:
        machine.run("ufw", "route", "deny", "from", str(of.networks[0]))
    found = problems(machine)
    assert named(found) == {("flow-dropped", str(family), "ufw") for family in Family}
    assert all(is_lost(machine, family) for family in Family)
    remedy(machine, found)
    assert problems(machine) == []
    machine.site.assert_masqueraded()
    machine.run("ufw", "reload")
    assert problems(machine) == []
    machine.site.assert_masqueraded()


@pytest.mark.parametrize("denied", DENIED if every_time() else DENIED[:1])
def test_each_remedy_of_ufw_stands_ahead_of_its_denies(machine: Machine, denied: str) -> None:
    """A rule that is added behind a deny does not help."""
    start(machine)
    machine.run("ufw", "--force", "enable")
    for of in machine.site.topology.addresses:
        ends = denied.format(subnet=of.subnet, network=of.networks[0])
        machine.run("ufw", "route", "deny", *ends.split())
    found = problems(machine)
    assert {(one["id"], one["owner"]) for one in found} == {("flow-dropped", "ufw")}
    remedy(machine, found)
    assert problems(machine) == []
    machine.site.assert_masqueraded()


def test_a_deny_of_docker_is_passed_in_its_own_chain(machine: Machine) -> None:
    """Docker keeps the chain of its users when it starts again."""
    start(machine)
    machine.systemctl("start", "docker")
    of = machine.site.topology.of(Family.IPV4)
    for end in ("-s", "-d"):
        machine.run("iptables", "-I", "DOCKER-ISOLATION-STAGE-1", end, str(of.networks[0]), "-j", "DROP")
    found = problems(machine)
    assert named(found) == {("flow-dropped", "ipv4", "docker")}
    assert is_lost(machine, Family.IPV4)
    for _ in ("-d", "-s"):  # behind the first deny that doctor finds there may be the other one
        remedy(machine, found)
        found = problems(machine)
    assert found == []
    machine.site.assert_masqueraded()
    machine.systemctl("restart", "docker")
    assert problems(machine) == []
    assert "10.244.0.0/16" in machine.run("iptables", "-S", "DOCKER-USER").stdout
    machine.site.assert_masqueraded()


def test_docker_policy_is_opened_beside_another_backend(machine: Machine) -> None:
    """Docker leaves the policy alone where forwarding is on already, as with the setting that `persist` names."""
    start(machine, '[forward]\nbackend = "nft"')
    machine.systemctl("start", "docker")
    machine.run("iptables", "-P", "FORWARD", "DROP")
    found = problems(machine)
    assert named(found) == {("flow-dropped", "ipv4", "docker")}
    assert is_lost(machine, Family.IPV4)
    remedy(machine, found)
    assert problems(machine) == []
    machine.site.assert_masqueraded()
    machine.systemctl("restart", "docker")
    assert problems(machine) == []
    machine.site.assert_masqueraded()


def test_a_drop_by_ufw_is_found_where_the_daemon_cannot_help(machine: Machine) -> None:
    """ufw sets the policy of chain FORWARD. The remedy is to let the daemon accept what pods send."""
    start(machine, WITHOUT_FORWARD)
    machine.run("ufw", "--force", "enable")
    found = problems(machine)
    assert named(found) == {("forward-drops", str(family), "ufw") for family in Family}
    assert all(is_lost(machine, family) for family in Family)
    machine.configure("", backend="auto")
    machine.systemctl("reload", UNIT)
    assert problems(machine) == []
    assert machine.site.wrong_packets() == []


def test_a_drop_by_docker_is_found_where_the_daemon_cannot_help(machine: Machine) -> None:
    start(machine, WITHOUT_FORWARD)
    machine.systemctl("start", "docker")
    machine.run("iptables", "-P", "FORWARD", "DROP")  # docker itself does so where it turns forwarding on
    found = problems(machine)
    assert named(found) == {("forward-drops", "ipv4", "docker")}
    assert is_lost(machine, Family.IPV4) and not is_lost(machine, Family.IPV6)
    machine.configure("", backend="auto")
    machine.systemctl("reload", UNIT)
    assert problems(machine) == []
    assert machine.site.wrong_packets() == []


def test_libvirt_that_rejects_what_goes_to_its_network_is_found(machine: Machine) -> None:
    """Another node is a guest of this one: what pods of this node begin is rejected on its way there."""
    start(machine)
    libvirt.prepare(machine, "pods", "192.168.122.1")
    machine.systemctl("start", "libvirtd")
    for action in (("net-define", libvirt.NETWORK_FILE), ("net-start", "pods")):
        machine.run("virsh", *action)
    assert problems(machine) == []
    machine.site.assert_masqueraded()

    of = machine.site.topology.of(Family.IPV4)
    machine.run("ip", "link", "set", "flannel.1", "master", "virbr9")
    remote = str(ip_network(f"{of.remote_pod}/24", strict=False))
    machine.run("ip", "route", "replace", remote, "via", str(of.remote_overlay), "dev", "virbr9", "onlink")

    def arrives() -> str:
        packet = Packet(of.pod, of.remote_pod)
        topology = machine.site.topology
        return str(packets.udp(topology.pod, topology.remote, packet, deadline=patience(LOST_SECONDS)))

    found = [one for one in problems(machine) if one["family"] == "ipv4"]
    assert named(found) == {("flow-dropped", "ipv4", "libvirt")}
    with pytest.raises(PacketError):
        arrives()
    remedy(machine, found)
    assert [one for one in problems(machine) if one["family"] == "ipv4"] == []
    assert arrives() == str(of.pod)
