"""`probe` on a node with a bridge: its packets go through the real rules, and nothing of it stays."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

import pytest

from flanneld_masq.model import BackendName, Family
from flanneld_masq.selftest.topology import ROUTER, SYSCTLS, batch

from ..common import eventually, patience
from .conftest import Node


@pytest.fixture
def bridged(node: Node) -> Node:
    """A node whose bridge has the first address of each pod subnet, as the CNI plugin gives it, and one pod."""
    node.netns.sysctl({**SYSCTLS, **ROUTER})
    lines = ["link set lo up", "link add cni0 address 02:00:00:00:00:01 mtu 1450 type bridge"]
    for family in Family:
        lease = node.lease().of(family)
        if lease is not None:
            nodad = " nodad" if family is Family.IPV6 else ""
            lines.append(f"address add {lease.subnet[1]}/{lease.subnet.prefixlen} dev cni0{nodad}")
    lines += ["link add veth1 type veth peer name veth2", "link set veth1 master cni0 up", "link set veth2 up"]
    with node.entered():
        batch(node.run, [*lines, "link set cni0 up"])
    return node


def state(node: Node) -> tuple[str, ...]:
    """Return the rules, devices, addresses, neighbours and routes of the node."""
    shown = (
        ("-4", "route", "show", "table", "all"),
        ("-6", "route", "show", "table", "all"),
        ("rule",),
    )
    links = json.loads(node.tool("ip", "-j", "addr"))
    devices = sorted(f"{link['ifname']} {link['mtu']} {link['address']} {len(link['addr_info'])}" for link in links)
    return (node.ruleset(), *devices, *(node.tool("ip", *argv) for argv in shown))


def probed(node: Node, *argv: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    done = node.masq("probe", "--json", *argv)
    found = json.loads(done.stdout)
    return done.returncode, found["results"], found["errors"]


def test_all_is_as_wanted_on_a_healthy_node(bridged: Node, backend_name: BackendName) -> None:
    bridged.configure("", backend=backend_name)
    assert bridged.masq("apply").returncode == 0
    before = state(bridged)
    status, results, errors = probed(bridged)
    assert (status, errors) == (0, [])
    assert {(each["family"], each["class"], each["outcome"]) for each in results} == {
        (str(family), kind, "as-wanted") for family in Family for kind in ("world", "remote-pod", "node", "pod")
    }
    for each in results:
        assert (each["arrived_from"] != each["src"]) is each["masquerade_wanted"] is (each["class"] == "world")
        assert each["packet"]["fate"] == ("translated" if each["masquerade_wanted"] else "delivered")
    owners = {rule["owner"] for each in results for rule in each["packet"]["decided_by"]}
    assert owners == {"flanneld-masq"}
    assert state(bridged) == before


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_the_rule_that_drops_is_named(bridged: Node, family: Family, flavour: str) -> None:
    lease = bridged.lease().of(family)
    assert lease is not None
    bridged.tool(f"{family.data.tools}-{flavour}", *f"-A FORWARD -s {lease.subnet} -j DROP".split())
    before = state(bridged)
    status, results, errors = probed(bridged, "--dst", "world")
    assert (status, errors) == (1, [])
    (dropped,) = (each for each in results if each["family"] == str(family))
    assert (dropped["outcome"], dropped["packet"]["fate"]) == ("not-as-wanted", "dropped")
    (rule,) = dropped["packet"]["decided_by"]
    assert (rule["chain"], str(lease.subnet) in rule["text"], rule["hook"]) == ("FORWARD", True, "forward")
    assert state(bridged) == before


def test_lost_answers_are_found(bridged: Node) -> None:
    """A rule drops what comes back, not what the pod sends."""
    assert bridged.masq("apply").returncode == 0
    bridged.tool("iptables-nft", *["-A", "FORWARD", "-d", "10.244.0.0/16", "-j", "DROP"])
    status, results, _ = probed(bridged, "--dst", "world")
    assert status == 1
    (lost,) = (each for each in results if each["family"] == "ipv4")
    assert lost["packet"]["from"]["src"] == lost["dst"]
    assert "dropped in forward by ip filter FORWARD handle" in lost["verdict"]


def test_a_masquerade_of_another_program_is_named(bridged: Node) -> None:
    assert bridged.masq("apply").returncode == 0
    rule = "-t nat -I POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE"
    bridged.tool("iptables-nft", *rule.split())
    status, results, _ = probed(bridged, "--dst", "remote-pod", "--dst", "world")
    assert status == 1
    outcomes = {(each["family"], each["class"]): each["outcome"] for each in results}
    assert outcomes["ipv4", "remote-pod"] == "not-as-wanted" and outcomes["ipv6", "remote-pod"] == "as-wanted"
    (remote,) = (each for each in results if each["outcome"] == "not-as-wanted")
    assert [rule["owner"] for rule in remote["packet"]["decided_by"]] == ["docker"]
    printed = bridged.masq("probe", "--dst", "remote-pod").stdout
    assert "pod to a pod of another node" in printed and "(docker): " in printed


def test_what_the_node_refuses_for_itself_is_no_fault(bridged: Node) -> None:
    assert bridged.masq("apply").returncode == 0
    bridged.tool("iptables-nft", *["-A", "INPUT", "-s", "10.244.1.0/24", "-p", "tcp", "-j", "REJECT"])
    status, results, _ = probed(bridged)
    assert status == 0
    assert [(each["family"], each["class"]) for each in results if each["outcome"] == "refused"] == [("ipv4", "node")]


def test_sigkill_leaves_nothing(bridged: Node) -> None:
    bridged.tool("iptables-nft", *["-A", "FORWARD", "-s", "10.244.0.0/16", "-j", "DROP"])
    before = state(bridged)

    def devices() -> list[str]:
        return [line for line in bridged.tool("ip", "-o", "link").splitlines() if "fmasq-" in line]

    with bridged.entered():
        process = subprocess.Popen(bridged.argv("probe", "--dst", "world"), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: len(devices()) == 2 and "flanneld-masq-trace" in bridged.tool("nft", "list", "tables"))
    finally:
        process.kill()
        process.wait()
    eventually(lambda: state(bridged) == before)
    assert probed(bridged, "--dst", "node")[0] == 0


def test_sigterm_removes_everything(bridged: Node) -> None:
    bridged.tool("iptables-nft", *["-A", "FORWARD", "-s", "10.244.0.0/16", "-j", "DROP"])
    before = state(bridged)
    with bridged.entered():
        process = subprocess.Popen(bridged.argv("probe", "--dst", "world"), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: "flanneld-masq-trace" in bridged.tool("nft", "list", "tables"))
        process.terminate()
        assert process.wait(patience(10)) == 143
        assert state(bridged) == before
    finally:
        process.kill()
        process.wait()


def test_leftover_devices_of_an_ended_run_are_removed(bridged: Node) -> None:
    assert bridged.masq("apply").returncode == 0
    before = state(bridged)
    ended = subprocess.Popen(("true",))
    ended.wait()
    with bridged.entered():
        batch(bridged.run, [f"link add fmasq-p{ended.pid} type veth peer name left"])
    assert probed(bridged, "--dst", "node")[0] == 0
    assert state(bridged) == before


def test_what_is_routed_elsewhere_by_a_mark_never_leaves(bridged: Node) -> None:
    rule = "-t mangle -A PREROUTING -s 10.244.1.0/24 -j MARK --set-mark 5"
    bridged.tool("iptables-nft", *rule.split())
    with bridged.entered():
        lines = ["address add 192.0.2.1/24 dev veth2", "rule add fwmark 5 lookup 100"]
        lines += ["neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev veth2", "route add default via 192.0.2.9 table 100"]
        batch(bridged.run, lines)
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        wire.bind(("veth1", 0x0800))
        wire.setblocking(False)
    status, results, errors = probed(bridged, "--dst", "world", "--dst", "remote-pod")
    assert (status, errors) == (1, [])
    for each in results:
        if each["family"] == "ipv4":
            assert [rule["owner"] for rule in each["packet"]["decided_by"]] == ["flanneld-masq"]
            assert "dropped in postrouting by ip flanneld-masq-probe-" in each["verdict"]
    with pytest.raises(BlockingIOError):
        wire.recv(2048)
    wire.close()


def test_a_node_without_a_bridge_cannot_tell(node: Node) -> None:
    status, results, errors = probed(node)
    assert (status, results) == (2, [])
    assert all("no bridge of this node has an address of the pod subnet" in error for error in errors)
    assert len(errors) == len(Family)


def test_nothing_is_sent_to_a_bridge_with_a_cable(bridged: Node) -> None:
    with bridged.entered():
        batch(bridged.run, ["tuntap add mode tap name cable", "link set cable master cni0"])
    before = state(bridged)
    status, results, errors = probed(bridged)
    assert (status, results) == (2, [])
    assert all("cable is a port of cni0 and may lead to other hosts" in error for error in errors)
    assert state(bridged) == before


def test_routes_to_every_remote_pod_leave_that_class_out(bridged: Node) -> None:
    assert bridged.masq("apply").returncode == 0
    with bridged.entered():
        batch(bridged.run, ["route add 10.244.0.0/16 dev veth2", "route add fd00:10:244::/56 dev veth2"])
    status, results, _ = probed(bridged)
    remote = [each for each in results if each["class"] == "remote-pod"]
    assert (status, [each["outcome"] for each in remote]) == (0, ["cannot-tell"] * 2)
    assert "so no address is left that belongs to no node" in remote[0]["failure"]
    assert probed(bridged, "--dst", "remote-pod")[0] == 2


def test_the_daemon_is_not_disturbed(bridged: Node, backend_name: BackendName) -> None:
    bridged.configure("", backend=backend_name)
    with bridged.running() as daemon:
        daemon.reached("synced")
        before = bridged.ruleset()
        daemon.logged("system bus")
        said = len(daemon.lines())
        assert probed(bridged, "--dst", "world")[0] == 0
        assert daemon.status()["state"] == "synced"
        assert (bridged.ruleset(), daemon.lines()[said:]) == (before, [])
