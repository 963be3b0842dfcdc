"""Follows the VXLAN packets of other nodes through the rules of every program. Pure over a snapshot.

Only what is certain counts: a node that a firewall lets in is none of them, so all that were tried must be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from flanneld_masq.doctor.facts import TunnelDrop
from flanneld_masq.doctor.flow_remedies import NO_RULE
from flanneld_masq.doctor.host_network import HostNetwork, Link
from flanneld_masq.model import Address, family_of
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.packet import UDP, Packet
from flanneld_masq.packet_path.state import Step

_MOST = 3  # other nodes that are tried; with 50,000 rules that all concern it, a packet takes 1 s


def drops(node: Node, network: HostNetwork) -> Iterator[TunnelDrop]:
    """Yield each of flannel's VXLAN interfaces that no packet of another node reaches, for a rule drops it."""
    for link in network.links:
        if link.is_flannel and link.up and link.vxlan is not None:
            packet, step = _dropped(node, list(_packets(network, link)))
            if packet is not None and step is not None:
                family, owner = family_of(packet.dst), node.owner(step)
                yield TunnelDrop(family, link.name, link.vxlan.port, packet.src, packet.dst, step, owner)


def _dropped(node: Node, packets: list[Packet]) -> tuple[Optional[Packet], Optional[Step]]:
    """Return the first packet and what drops it, if all are dropped; nothing at the first one that may pass."""
    first: Optional[Step] = None
    for packet in packets:
        step = _dropped_at(node, packet)
        if step is None:
            return None, None
        first = first or step
    return (packets[0], first) if packets else (None, None)


def _packets(network: HostNetwork, link: Link) -> Iterator[Packet]:
    """Yield a packet of each of some other nodes, as the kernel sends it: from any port."""
    vxlan = link.vxlan
    if vxlan is None or vxlan.local is None or not vxlan.device:
        return
    for address in _others(network, link, vxlan.local)[:_MOST]:
        yield Packet(address, vxlan.local, UDP, None, vxlan.port, vxlan.device)


def _others(network: HostNetwork, link: Link, local: Address) -> list[Address]:
    found = [end.address for end in network.ends if end.device == link.name]
    return [address for address in found if address.version == local.version and address != local]


def _dropped_at(node: Node, packet: Packet) -> Optional[Step]:
    """Return the rule that certainly drops a packet, None if it may pass or no rule drops it."""
    result = node.evaluate(packet)
    if result.why_not or any(outcome.delivered or not outcome.steps for outcome in result.outcomes):
        return None
    step = result.outcomes[0].steps[-1]
    return None if step.place.table in NO_RULE else step
