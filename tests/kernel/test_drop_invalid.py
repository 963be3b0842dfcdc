"""Packets that belong to no connection: NAT passes them by, so they leave a node with a pod's address."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import BackendName, Family, ForwardSettings, Packet, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.topology import Addresses, Topology
from flanneld_masq.state_directory import StateDirectory

from ..common import patience, unable
from .conftest import BACKENDS

ACK = 0x10
PORTS = (33333, 44444)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology(prefix="invalid-") as found:
        # otherwise a lone ACK is taken for a connection that began before the node was watching
        found.node.sysctl({"netfilter/nf_conntrack_tcp_loose": 0})
        yield found


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def lone_ack(packet: Packet) -> bytes:
    segment = bytearray(struct.pack("!HHIIBBHHH", *PORTS, 1000, 2000, 5 << 4, ACK, 512, 0, 0))
    pseudo = packet.src.packed + packet.dst.packed + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
    struct.pack_into("!H", segment, 16, checksum(pseudo + segment))
    return bytes(segment)


def source_of_an_ack(topology: Topology, packet: Packet, seconds: float) -> str:
    """Send lone ACKs from the pod; return the source that the first to arrive outside has, or nothing."""
    family = socket.AF_INET if packet.src.version == 4 else socket.AF_INET6
    with ExitStack() as stack:
        with topology.outside.entered():
            target = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
            target.settimeout(0.1)
        with topology.pod.entered():
            source = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP))
            source.bind((str(packet.src), 0))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            source.sendto(lone_ack(packet), (str(packet.dst), 0))
            try:
                data, (peer, *_) = target.recvfrom(2048)
            except TimeoutError:
                continue
            if struct.pack("!HH", *PORTS) in data:
                return str(peer)
    return ""


def packet_of(of: Addresses) -> Packet:
    return Packet(of.pod, of.far)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_packet_of_no_connection_is_dropped_if_asked_for(
    topology: Topology, tmp_path_factory: pytest.TempPathFactory, name: str, family: Family
) -> None:
    of = topology.of(family)
    packet = packet_of(of)
    run = ProcessRunner()
    backends = plugin_loader.load().create(family, Host(run))
    reconciler = Reconciler(family, backends, StateDirectory(tmp_path_factory.mktemp("state")))
    lease = subnet_env.parse(of.subnet_lines().encode(), "/lab")
    wanted = Settings(backend=BackendName(name))
    with topology.node.entered():
        probe = reconciler.selector.probe(wanted.backend)
        if not probe.usable:
            unable(f"{name}: {probe.reason}; {probe.remedy}")
    try:
        for drop_invalid in (False, True, False):
            settings = replace(wanted, forward=ForwardSettings(drop_invalid=drop_invalid))
            with topology.node.entered():
                reconciler.reconcile(DesiredState(settings, (lease,)))
                assert reconciler.reconcile(DesiredState(settings, (lease,))).repairs == ()
            source = source_of_an_ack(topology, packet, 1.0 if drop_invalid else patience(10))
            assert source == ("" if drop_invalid else str(packet.src)), "NAT passes it by"
            assert packets.tcp(topology.pod, topology.outside, packet) == of.node, "connections are not concerned"
            assert packets.udp(topology.pod, topology.outside, packet) == of.node
    finally:
        with topology.node.entered():
            reconciler.remove_everything()
