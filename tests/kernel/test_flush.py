"""What leaves a node with a pod's address while somebody flushes the whole ruleset."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from flanneld_masq.model import Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.topology import Topology

from ..common import Tell, eventually, patience
from .conftest import Node
from .flow import Flow
from .test_events import BY_EVENTS, BY_EVENTS_ALONE, repairs

FLUSHES = 5
PER_SECOND = 1000


@pytest.mark.parametrize("name", BY_EVENTS)
def test_a_flushed_ruleset_lets_few_of_a_thousand_packets_a_second_through(
    topology: Topology, lab_node: Node, name: str, tell: Tell
) -> None:
    """Each packet is a new connection, for one that is known to conntrack keeps its address anyway."""
    lab_node.configure(BY_EVENTS_ALONE, backend=name)
    with lab_node.running() as daemon, ExitStack() as stack:
        daemon.reached("synced")
        for of in topology.addresses:
            packets.udp(topology.pod, topology.outside, Packet(of.pod, of.far))
        flows = {of: stack.enter_context(Flow(topology, of, per_second=PER_SECOND)) for of in topology.addresses}
        for turn in range(FLUSHES):
            for flow in flows.values():
                flow.more(PER_SECOND // 2)
            lab_node.tool("nft", "flush", "ruleset")
            for family in Family:
                eventually(lambda: repairs(daemon, family) > turn)
        for of, flow in flows.items():
            flow.more(PER_SECOND // 2)
            arrived = flow.finish()
            leaked = [source for source in arrived if source != str(of.node)]
            tell(
                f"{name}, {of.family}: {len(leaked)} of {flow.sent} packets at {PER_SECOND} a second left with the "
                f"pod's address in {FLUSHES} flushes of the ruleset"
            )
            assert len(arrived) == flow.sent, "a packet was lost"
            assert set(leaked) <= {str(of.pod)}
            assert arrived[-PER_SECOND // 4 :] == [str(of.node)] * (PER_SECOND // 4), "not masqueraded at the end"
            assert len(leaked) < FLUSHES * PER_SECOND * patience(0.25), "this is no repair by an event"
