"""Each group goes where it works, and moves without losing a packet."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from flanneld_masq.model import Family, Group, Packet, Settings
from flanneld_masq.selftest import packet_cases, packets
from flanneld_masq.selftest.packets import PacketError
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import eventually, patience
from .conftest import Daemon, Node
from .flow import Flow

BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\n"
BY_RESYNC = (
    "[reconcile]\nresync_seconds = 1\n"  # no event reports a policy in a legacy table without a rule of the daemon
)
LOST_SECONDS = 0.3  # a packet that has not arrived by then on an idle machine is lost
FLAVOURS = ("iptables-nft", "iptables-legacy")
DROPS = {
    "iptables-nft": "chain FORWARD of table {family} filter has policy drop",
    "iptables-legacy": "chain FORWARD of legacy table filter has policy DROP",
}


@pytest.fixture
def node(lab_node: Node) -> Node:
    return lab_node


def set_policy(node: Node, flavour: str, policy: str) -> None:
    for family in Family:
        node.tool(f"{family.data.tools}-{flavour.partition('-')[2]}", "-w", "-P", "FORWARD", policy)


def evidence(flavour: str, family: Family) -> str:
    return DROPS[flavour].format(family=family.data.nft)


def backend_of(daemon: Daemon, group: Group, family: Family) -> str:
    groups = daemon.status()["families"][str(family)]["groups"]
    return str(groups[str(group)]["backend"])


def reach(daemon: Daemon, group: Group, backend: str) -> None:
    for family in Family:
        eventually(lambda: backend_of(daemon, group, family) == backend)
    daemon.reached("synced")


def crosses(topology: Topology, of: Addresses, *, deadline: float = patience(LOST_SECONDS)) -> bool:
    try:
        packets.udp(topology.pod, topology.outside, Packet(of.pod, of.far), deadline=deadline)
    except PacketError:
        return False
    return True


def assert_packets_pass(topology: Topology, node: Node) -> None:
    """All of them, for everything that crosses the node comes from a pod or goes to one."""
    hosts = {"pod": topology.pod, "node": topology.node, "remote": topology.remote, "outside": topology.outside}
    for of in topology.addresses:
        for case in packet_cases.cases(of):
            for send in (packets.udp, packets.tcp)[: len(case.transports)]:
                expected = packet_cases.expect(Settings(), (node.lease(),), of, case.packet)
                found = send(hosts[case.sender], hosts[case.receiver], case.packet, device=case.device)
                assert found == expected.source, case


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_pod_traffic_crosses_a_node_whose_forward_chain_drops(topology: Topology, node: Node, flavour: str) -> None:
    set_policy(node, flavour, "DROP")
    assert not any(crosses(topology, of, deadline=LOST_SECONDS) for of in topology.addresses)
    node.configure(BY_EVENTS_ALONE, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        for family in Family:
            assert backend_of(daemon, Group.MASQUERADE, family) == "nft"
            assert backend_of(daemon, Group.FORWARD, family) == flavour
            assert daemon.lines(f"{family} forward: backend {flavour}, {evidence(flavour, family)}")
        assert_packets_pass(topology, node)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_choice_follows_evidence_that_comes_and_goes(topology: Topology, node: Node, flavour: str) -> None:
    node.configure(BY_EVENTS_ALONE if flavour == "iptables-nft" else BY_RESYNC, backend="nft")
    if flavour == "iptables-legacy":
        set_policy(node, flavour, "ACCEPT")
    with node.running() as daemon:
        daemon.reached("synced")
        reach(daemon, Group.FORWARD, "nft")
        rules = node.ruleset()
        for times in (1, 2):
            set_policy(node, flavour, "DROP")
            reach(daemon, Group.FORWARD, flavour)
            assert_packets_pass(topology, node)
            for family in Family:
                table = node.tool("nft", f"list table {family.data.nft} flanneld-masq")
                assert "chain postrouting" in table
                assert "chain forward" not in table
                lines = daemon.lines(f"{family} forward: backend {flavour}, {evidence(flavour, family)}")
                assert len(lines) == times
            set_policy(node, flavour, "ACCEPT")
            reach(daemon, Group.FORWARD, "nft")
            assert_packets_pass(topology, node)
            for family in Family:
                lines = daemon.lines(f"{family} forward: backend nft, goes with the masquerade group")
                assert len(lines) == 1 + times
        assert not daemon.lines("drift repaired"), "what moves was taken by nobody"
        assert all(found["repairs"] == 0 for found in daemon.status()["families"].values())
        if flavour == "iptables-legacy":
            assert sorted(node.ruleset().splitlines()) == sorted(rules.splitlines())
        assert "FLANNELD-MASQ" not in node.ruleset()


def test_no_packet_leaves_without_nat_while_the_backend_changes(topology: Topology, node: Node) -> None:
    node.configure(BY_EVENTS_ALONE, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:  # who is on the link is known by then, so that no packet waits for it
            packets.udp(topology.pod, topology.outside, Packet(of.pod, of.far))
        flows = [Flow(topology, of) for of in topology.addresses]
        with ExitStack() as stack:
            for flow in flows:
                stack.enter_context(flow)
            for backend in ("iptables-nft", "iptables-legacy", "nft", "iptables-legacy", "iptables-nft", "nft"):
                for flow in flows:
                    flow.more(20)
                node.configure(BY_EVENTS_ALONE, backend=backend)
                daemon.signal(signal.SIGHUP)
                for group in Group:
                    reach(daemon, group, backend)
            for flow in flows:
                flow.more(20)
                arrived = flow.finish()
                of = topology.addresses[flows.index(flow)]
                assert set(arrived) == {str(of.node)}
                assert len(arrived) == flow.sent
        assert "FLANNELD-MASQ" not in node.ruleset()
