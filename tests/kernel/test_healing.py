"""Connections that began while the rules were missing or others get the right source address; answered ones stay."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Optional

import pytest

from flanneld_masq.kernel import conntrack, uapi
from flanneld_masq.kernel.conntrack import Conntrack, Entry, is_local
from flanneld_masq.model import Address, BackendName, Family, Flow
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.healing import Search, heal
from flanneld_masq.selftest import fault_injection
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import Tell, eventually
from .conftest import Node
from .connections import TcpConnection, UdpFlow, entry, flows, insert, ping, statuses

ALONE = "[dbus]\nenabled = false\n"
FOREIGN = "lab-foreign"


@pytest.fixture
def of(topology: Topology, family: Family) -> Addresses:
    return topology.of(family)


@pytest.fixture
def tracked(lab_node: Node, family: Family) -> Node:
    """The node in the middle of the lab. It tracks connections and asks a NAT rule, which does not match."""
    nft(lab_node, family, "add rule {} " + FOREIGN + " nat meta mark 0x1 masquerade")
    return lab_node


def nft(node: Node, family: Family, *lines: str) -> None:
    name = family.data.nft
    chain = f"add chain {name} {FOREIGN} nat {{ type nat hook postrouting priority srcnat; }}"
    node.tool(
        "nft",
        "-f",
        "-",
        stdin="\n".join([f"add table {name} {FOREIGN}", chain, *(line.format(name) for line in lines)]),
    )


def configure(node: Node, backend: BackendName, text: str = "") -> None:
    node.configure(text + ALONE, backend=backend)


def arrives_from(flow: UdpFlow, source: Address) -> None:
    eventually(lambda: flow.send() == source, 1.0)


def unanswered(family: Family, src: Address) -> list[Entry]:
    """The connections from an address that have seen no reply; in the calling thread's namespace."""
    table = Conntrack(family)
    found = [one for batch in table.unanswered() for one in batch if one.flow.src == src]
    table.close()
    return found


def test_a_flow_that_began_too_early_is_masqueraded(
    tracked: Node, topology: Topology, of: Addresses, backend_name: BackendName
) -> None:
    configure(tracked, backend_name)
    with flows(topology.pod, topology.outside, of.pod, of.far, 3) as (silent, answered, other):
        for flow in (silent, answered, other):
            arrives_from(flow, of.pod)
        assert answered.answer()
        connection = TcpConnection(topology.pod, topology.outside, of.pod, of.far)
        assert connection.peer == of.pod
        with tracked.running() as daemon:
            daemon.reached("synced", of.family)
            arrives_from(silent, of.node)
            arrives_from(other, of.node)
            assert "ms: 2 had begun without masquerade" in daemon.logged(f"{of.family}: 2 flows healed")
            eventually(lambda: daemon.status()["families"][str(of.family)]["healed_flows"] == 2)
            assert answered.send() == of.pod, "an answered connection is never touched"
            assert answered.answer()
            assert connection.talks()
        connection.close()


def test_a_flow_of_pods_that_was_masqueraded_keeps_its_address(
    tracked: Node, topology: Topology, of: Addresses, backend_name: BackendName
) -> None:
    """Old rules, of flannel for example, may have masqueraded it."""
    configure(tracked, backend_name)
    nft(tracked, of.family, f"add rule {{}} {FOREIGN} nat oifname flannel.1 masquerade")
    with flows(topology.pod, topology.remote, of.pod, of.remote_pod, 2) as (silent, answered):
        arrives_from(silent, of.overlay)
        arrives_from(answered, of.overlay)
        assert answered.answer()
        tracked.tool("nft", "flush", "chain", of.family.data.nft, FOREIGN, "nat")
        with tracked.running() as daemon:
            daemon.reached("synced", of.family)
            arrives_from(silent, of.pod)
            assert "1 had begun with a masquerade" in daemon.logged(f"{of.family}: 1 flow healed")
            assert answered.send() == of.overlay
            assert answered.answer()


def test_a_flow_that_slips_out_in_a_gap_is_repaired(
    tracked: Node, topology: Topology, of: Addresses, backend_name: BackendName
) -> None:
    configure(tracked, backend_name)
    tools = fault_injection.tools(backend_name, of.family, ProcessRunner())
    assert tools is not None
    with flows(topology.pod, topology.outside, of.pod, of.far, 2) as (before, within), tracked.running() as daemon:
        daemon.reached("synced", of.family)
        arrives_from(before, of.node)
        daemon.signal(signal.SIGSTOP)
        with tracked.entered():
            tools.damages["chain flushed"]()
        arrives_from(within, of.pod)
        daemon.signal(signal.SIGCONT)
        arrives_from(within, of.node)
        assert daemon.logged(f"{of.family}: 1 flow healed")
        assert before.send() == of.node


def test_nothing_is_healed_if_switched_off(tracked: Node, topology: Topology, of: Addresses) -> None:
    configure(tracked, BackendName("auto"), "[conntrack]\nheal = false\n")
    with flows(topology.pod, topology.outside, of.pod, of.far, 1) as (flow,):
        arrives_from(flow, of.pod)
        with tracked.running() as daemon:
            daemon.reached("synced", of.family)
            assert flow.send() == of.pod
            configure(tracked, BackendName("auto"))
            daemon.signal(signal.SIGHUP)
            arrives_from(flow, of.node)


def test_apply_heals_and_plan_does_not(tracked: Node, topology: Topology, of: Addresses) -> None:
    configure(tracked, BackendName("auto"))
    with flows(topology.pod, topology.outside, of.pod, of.far, 1) as (flow,):
        arrives_from(flow, of.pod)
        assert tracked.masq("plan").returncode == 3
        assert flow.send() == of.pod
        done = tracked.masq("apply")
        assert done.returncode == 0
        assert f"{of.family}: 1 flow healed" in done.stderr
        assert flow.send() == of.node


@contextmanager
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the kernel dump everything, as before Linux 5.15."""
    with monkeypatch.context() as patched:
        patched.setattr(conntrack, "_UNANSWERED", b"")
        yield


def test_a_kernel_that_does_not_filter_costs_time_alone(
    tracked: Node, topology: Topology, of: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flows(topology.pod, topology.outside, of.pod, of.far, 2) as (silent, answered):
        arrives_from(silent, of.pod)
        arrives_from(answered, of.pod)
        assert answered.answer()
        with tracked.entered(), old_kernel(monkeypatch):
            tracked.reconciler(of.family).reconcile(tracked.desired_state())
            assert heal(of.family, tracked.desired_state()).flows == 1
        assert silent.send() == of.node
        assert answered.send() == of.pod


def test_an_answer_between_reading_and_deleting_is_seen(tracked: Node, topology: Topology, of: Addresses) -> None:
    with flows(topology.pod, topology.outside, of.pod, of.far, 2) as (silent, answered):
        for flow in (silent, answered):
            arrives_from(flow, of.pod)
        with tracked.entered():
            found = unanswered(of.family, of.pod)
            table = Conntrack(of.family)
        assert len(found) == 2
        assert answered.answer()
        assert sorted(table.delete_unanswered(one) for one in found) == [False, True]
        assert [table.delete_unanswered(one) for one in found] == [False, False], "one is gone, one was answered"
        table.close()
        with tracked.entered():
            assert unanswered(of.family, of.pod) == []
        assert answered.answer()


def test_the_connection_that_follows_a_deleted_one_stays(tracked: Node, topology: Topology, of: Addresses) -> None:
    """It has the same tuple, and often the same id."""
    with flows(topology.pod, topology.outside, of.pod, of.far, 1) as (flow,):
        arrives_from(flow, of.pod)
        with tracked.entered():
            (first,) = unanswered(of.family, of.pod)
            table = Conntrack(of.family)
            tracked.reconciler(of.family).reconcile(tracked.desired_state())
        assert table.delete_unanswered(first)
        arrives_from(flow, of.node)
        assert not table.delete_unanswered(first)
        table.close()
        with tracked.entered():
            assert [one.flow.source_nat for one in unanswered(of.family, of.pod)] == [True]


def test_a_ping_is_healed_as_well(tracked: Node, topology: Topology, of: Addresses) -> None:
    """The kernel finds its connection by type, code and id instead of ports."""
    with topology.pod.entered():
        ping(of.pod, of.far + 1)  # which nobody has
    with tracked.entered():
        (found,) = eventually(lambda: unanswered(of.family, of.pod))
        assert found.flow == Flow(of.pod, of.far + 1)
        tracked.reconciler(of.family).reconcile(tracked.desired_state())
        assert heal(of.family, tracked.desired_state()).flows == 1
        assert unanswered(of.family, of.pod) == []


def test_a_large_table_is_searched_at_once(tracked: Node, of: Addresses, tell: Tell) -> None:
    """The figure is for the record; the counts must be right."""
    number, stuck = 100_000, 20
    pods = [of.subnet[10 + index] for index in range(200)]
    ports = [(1024 + index // len(pods), 53) for index in range(number)]
    answered = [
        entry(pods[index % len(pods)], of.far, ports[index], status=uapi.IPS_SEEN_REPLY)
        for index in range(stuck, number)
    ]
    lost = [entry(pods[index % len(pods)], of.far, ports[index]) for index in range(stuck)]
    in_zone = [entry(pods[index], of.far, (60000, 53), zone=1) for index in range(3)]
    with tracked.entered():
        insert(of.family, [*answered, *lost, *in_zone])
        reconciler = tracked.reconciler(of.family)
        reconciler.reconcile(tracked.desired_state())
        began, worked = time.perf_counter(), time.thread_time()
        healed = heal(of.family, tracked.desired_state())
        took, work = (time.perf_counter() - began) * 1000, (time.thread_time() - worked) * 1000
        left = statuses(of.family)
        again = heal(of.family, tracked.desired_state())
    tell(f"{of.family}: {stuck} of {number} connections healed in {took:.0f} ms, {work:.0f} ms of CPU")
    assert (healed.flows, healed.complete, again.flows) == (stuck, True, 0)
    assert sum(bool(status & uapi.IPS_SEEN_REPLY) for status in left) == number - stuck
    assert sum(not status & uapi.IPS_SEEN_REPLY for status in left) == len(in_zone)


def test_a_table_of_unanswered_connections_is_left_in_steps(tracked: Node, of: Addresses) -> None:
    """A flood from outside makes each step no longer, and what is not from a pod stays."""
    number = 20_000
    outside = [entry(of.far, of.node, (1024 + index % 60_000, 1000 + index // 60_000)) for index in range(number)]
    with tracked.entered():
        insert(of.family, [*outside, entry(of.pod, of.far, (5000, 53))])
        search = Search(of.family, tracked.desired_state())
        steps = 1
        while search.step():
            steps += 1
        assert len(statuses(of.family)) == number
    assert search.healed.flows == 1
    assert steps > 2


def test_packets_to_the_node_itself_are_told_apart(lab_node: Node, of: Addresses) -> None:
    with lab_node.entered():
        assert is_local(of.node)
        assert is_local(of.gateway)
        assert not is_local(of.far)
        assert not is_local(of.remote_pod)
        nowhere: Optional[Address] = ip_address("fe80::77") if of.family is Family.IPV6 else None
        assert nowhere is None or not is_local(nowhere)


def test_a_flow_to_the_node_itself_is_left_alone(tracked: Node, topology: Topology, of: Addresses) -> None:
    with flows(topology.pod, topology.node, of.pod, of.node, 1) as (flow,):
        arrives_from(flow, of.pod)
        with tracked.entered():
            tracked.reconciler(of.family).reconcile(tracked.desired_state())
            assert heal(of.family, tracked.desired_state()).flows == 0
            assert len(unanswered(of.family, of.pod)) == 1
