"""Another program flushes the whole ruleset: few packets leave with a pod's address, and its commands succeed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from flanneld_masq.errors import CommandError
from flanneld_masq.model import Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.topology import Topology

from ..common import Tell, eventually, lasting, patience
from .conftest import Daemon, Node
from .flow import Flow
from .test_events import BY_EVENTS, BY_EVENTS_ALONE, repairs

BY_COMMANDS = ("iptables-nft", "iptables-legacy")
FLUSHES = 5
FLUSHED_DAEMONS = round(lasting(2, 20))
SCRIPTS = round(lasting(3, 20))
PER_SECOND = 1000


@pytest.mark.parametrize("name", BY_EVENTS)
def test_a_flushed_ruleset_lets_few_packets_through(topology: Topology, lab_node: Node, name: str, tell: Tell) -> None:
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


def commands(name: str, family: Family) -> list[tuple[str, ...]]:
    """How an administrator, or `netfilter-persistent flush`, flushes."""
    tool = f"{family.data.tools}-{name.partition('-')[2]}"
    return [(tool, "-w", "-t", table, *action) for table in ("filter", "nat") for action in (("-F",), ("-Z",), ("-X",))]


@contextmanager
def synced(node: Node, name: str, text: str = BY_EVENTS_ALONE) -> Iterator[Daemon]:
    node.configure(text, backend=name)
    with node.running() as daemon:
        daemon.reached("synced")
        yield daemon


def whole(node: Node, family: Family) -> bool:
    """All rules of both groups are there."""
    with node.entered():
        return not any(plan.changes for plan in node.reconciler(family).plan(node.desired_state()))


@pytest.mark.timing
@pytest.mark.parametrize("name", BY_COMMANDS)
def test_a_flush_by_single_commands_succeeds(node: Node, name: str, family: Family, tell: Tell) -> None:
    """Also if the daemon sees the first of them long before the last. Each daemon has fewer flushes than repairs that
    are free of any delay."""
    failed = []
    for table, chain in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        node.tool(commands(name, family)[0][0], "-w", "-t", table, "-A", chain, "-o", "nosuch0")
    for _ in range(FLUSHED_DAEMONS):
        with synced(node, name) as daemon:
            for turn in range(FLUSHES):
                try:
                    for command in commands(name, family):
                        node.tool(*command)
                except CommandError as error:
                    failed.append(str(error))
                eventually(lambda daemon=daemon, turn=turn: repairs(daemon, family) > turn)  # type: ignore[misc]
                eventually(lambda: whole(node, family))
    tell(f"{name}, {family}: {len(failed)} of {FLUSHED_DAEMONS * FLUSHES} flushes by single commands failed")
    assert not failed


@pytest.mark.timing
def test_a_flush_after_a_policy_succeeds(node: Node, tell: Tell) -> None:
    """As a firewall script begins. The policy moves the forward group into the chain that is flushed next."""
    failed = []
    with synced(node, "auto") as daemon:
        for turn in range(SCRIPTS):
            daemon.reached("synced")
            node.tool("iptables-nft", "-w", "-A", "FORWARD", "-s", "203.0.113.9", "-j", "ACCEPT")
            try:
                for action in ("-P FORWARD DROP", "-F", "-t nat -F", "-X", "-t nat -X"):
                    node.tool("iptables-nft", "-w", *action.split())
            except CommandError as error:
                failed.append(str(error))
            accepts = "ipv4 forward: backend iptables-nft"
            eventually(lambda turn=turn: len(daemon.lines(accepts)) > turn)  # type: ignore[misc]
            node.tool("iptables-nft", "-w", "-P", "FORWARD", "ACCEPT")
            eventually(lambda turn=turn: len(daemon.lines("ipv4 forward: backend nft")) > turn + 1)  # type: ignore[misc]
    tell(f"{len(failed)} of {SCRIPTS} flushes after a policy failed")
    assert not failed


@pytest.mark.parametrize("name", BY_COMMANDS)
def test_a_flush_that_does_not_end_is_not_waited_for(topology: Topology, lab_node: Node, name: str) -> None:
    of = topology.addresses[0]
    end = threading.Event()

    def flush() -> None:
        while not end.wait(0.03):
            lab_node.tool(*commands(name, of.family)[3])

    with synced(lab_node, name) as daemon:
        thread = threading.Thread(target=flush)
        began = time.monotonic()
        thread.start()
        try:
            eventually(lambda: repairs(daemon, of.family))
            assert time.monotonic() - began < patience(0.5)
        finally:
            end.set()
            thread.join()
        eventually(lambda: whole(lab_node, of.family))


@pytest.mark.timing
@pytest.mark.parametrize("name", BY_EVENTS)
def test_a_deleted_rule_is_not_waited_for(node: Node, name: str, family: Family, tell: Tell) -> None:
    """Nor a chain of the daemon that was flushed, nor a jump that stood alone in its chain."""
    tables = {"nft": ("flanneld-masq", "postrouting", ""), "iptables-nft": ("nat", "FLANNELD-MASQ", "POSTROUTING")}
    table, chain, base = tables[name]
    damages = [("nft", "flush", "chain", family.data.nft, table, chain)]
    if base:
        tool = f"{family.data.tools}-nft"
        damages += [(tool, "-t", table, "-D", chain, "1"), (tool, "-t", table, "-D", base, "1")]
    with synced(node, name) as daemon:
        for number, damage in enumerate(damages):
            node.tool(*damage)
            done = time.monotonic()
            eventually(lambda number=number: repairs(daemon, family) > number)  # type: ignore[misc]
            tell(f"{name}, {family}: {damage[0]} undone in {(time.monotonic() - done) * 1000:.0f} ms")
            assert time.monotonic() - done < patience(0.05)
