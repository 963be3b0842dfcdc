"""Lists the packets that the self-test sends, and computes the source that each must arrive with. Pure.

The policy decides: no rule, or `return`, keeps the source; `masquerade` replaces it with the address of the device that
the packet leaves the node by.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from flanneld_masq.model import SLOTS, Address, Group, Lease, Network, Packet, Settings, Verdict
from flanneld_masq.ruleset.policy import decide, group_rules, rules_of
from flanneld_masq.selftest.topology import Addresses


@dataclass(frozen=True, **SLOTS)
class Case:
    """A packet from one host to another. `device` is set for link-local and multicast destinations."""

    name: str
    sender: str
    receiver: str
    packet: Packet
    device: str = ""

    @property
    def transports(self) -> tuple[str, ...]:
        return ("UDP",) if self.packet.dst.is_multicast else ("UDP", "TCP")


def cases(of: Addresses) -> tuple[Case, ...]:
    """Return a packet of every class that the ruleset tells apart.

    A mark does not cross from one host to another, so marked packets start on the node itself, from its own address in
    the pod subnet.
    """

    def case(name: str, hosts: str, src: Address, dst: Address, mark: int = 0, device: str = "") -> Case:
        sender, receiver = hosts.split()
        return Case(name, sender, receiver, Packet(src, dst, mark), device)

    return (
        case("pod to outside", "pod outside", of.pod, of.far),
        case("pod to the node's neighbour", "pod outside", of.pod, of.outside),
        case("pod to remote pod", "pod remote", of.pod, of.remote_pod),
        case("node's pod address to remote pod", "node remote", of.gateway, of.remote_pod),
        case("outside to local pod", "outside pod", of.far, of.pod),
        case("node to local pod", "node pod", of.node, of.pod),
        case("remote pod to local pod", "remote pod", of.remote_pod, of.pod),
        case("outside to remote pod", "outside remote", of.far, of.remote_pod),
        case("node's other address to remote pod", "node remote", of.node, of.remote_pod),
        case("node to outside", "node outside", of.node, of.far),
        case("remote pod to outside, through here", "remote outside", of.remote_pod, of.far),
        case("outside to a pod of another subnet", "outside pod", of.far, of.next_pod),
        case("pod of another subnet to outside", "pod outside", of.next_pod, of.far),
        case("marked 0x4000 to outside", "node outside", of.gateway, of.far, 0x4000),
        case("marked 0x4001 to outside", "node outside", of.gateway, of.far, 0x4001),
        case("marked 0x8000 to outside", "node outside", of.gateway, of.far, 0x8000),
        case("marked 0x4000 to remote pod", "node remote", of.node, of.remote_pod, 0x4000),
        case("link-local", "node outside", of.gateway, of.link_local, device="eth0"),
        case("multicast", "node outside", of.gateway, of.group, device="eth0"),
    )


def excepted(of: Addresses) -> Network:
    """Return a range for non_masquerade_cidrs that holds the destination of some cases."""
    return ip_network((of.far, of.prefix), strict=False)


@dataclass(frozen=True, **SLOTS)
class Expectation:
    """The source that a packet must arrive with. `row` is the row of the policy that decides; empty if none does."""

    source: Address
    row: str = ""


def expect(settings: Settings, leases: tuple[Lease, ...], of: Addresses, packet: Packet) -> Expectation:
    """Ask the policy which source the packet must arrive with."""
    groups = group_rules(settings, leases, of.family)
    rules = rules_of(groups, Group.MASQUERADE)
    rule = decide(rules, packet)
    if rule is None:
        return Expectation(packet.src)
    masquerade = rule.verdict is Verdict.MASQUERADE
    return Expectation(of.masqueraded(packet.dst) if masquerade else packet.src, rule.row)
