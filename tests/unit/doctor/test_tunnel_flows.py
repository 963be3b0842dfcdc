"""Rules that drop the VXLAN packets of other nodes, and the commands that let them pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from flanneld_masq.doctor.examine import examine
from flanneld_masq.doctor.facts import Facts, PacketFacts, TunnelDrop
from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.doctor.host_network import HostNetwork, Peer
from flanneld_masq.doctor.tunnel_flows import drops
from flanneld_masq.model import Family
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.rules import Hook, Place
from flanneld_masq.packet_path.state import Effect, Step

from ..packet_path.nodes import ACCEPT, DROP, SADDR, chain, match, payload, rule, snapshot, table
from .test_network_checks import LINKS, NODE, ROUTES, WAYS

RULE = Place("ip filter", "INPUT", 3, text="-A INPUT -j DROP")
POLICY = Place("inet fw", "in")
OTHERS = ("192.0.2.9", "192.0.2.10")


def found(place: Place, owner: str) -> Finding:
    step = Step(Hook.INPUT, place, Effect.REJECTED if owner == "firewalld" else Effect.DROPPED)
    ends = ip_address("192.0.2.9"), ip_address("192.0.2.1")
    drop = TunnelDrop(Family.IPV4, "flannel.1", 8472, *ends, step, owner)
    facts: Facts = replace(NODE, packets=PacketFacts(tunnels=(drop,)))
    (one,) = examine(facts)
    assert one.kind is Kind.TUNNEL_DROPPED
    return one


@pytest.mark.parametrize(
    ("place", "owner", "remedy"),
    [
        (RULE, "firewalld", "firewall-cmd --add-port=8472/udp"),
        (RULE, "ufw", "ufw prepend allow 8472/udp"),
        (RULE, "", "iptables-nft -I INPUT 3 -p udp --dport 8472 -j ACCEPT"),
        (POLICY, "", "nft add rule inet fw in udp dport 8472 accept"),
    ],
)
def test_the_remedy_is_that_of_the_program(place: Place, owner: str, remedy: str) -> None:
    assert found(place, owner).remedy == remedy


def test_what_firewalld_keeps() -> None:
    one = found(RULE, "firewalld")
    assert "rejects" in one.what and one.owner == "firewalld"
    assert one.persist == "`firewall-cmd --permanent --add-port=8472/udp`"


def dropped(*rules: Sequence[object]) -> list[TunnelDrop]:
    """Return the drops of packets from two other nodes. The hook input has these rules, then a drop of their port."""
    tunnel = match(payload("udp", "dport"), 8472), DROP
    objects = [table(), chain("in", "input"), *(rule("in", *one) for one in (*rules, tunnel))]
    ends = tuple(Peer("flannel.1", ip_address(address)) for address in OTHERS)
    return list(drops(Node(snapshot(objects)), HostNetwork(LINKS, ROUTES, WAYS, ends=ends)))


def test_a_rule_that_drops_the_packets_of_all_nodes() -> None:
    (drop,) = dropped()
    assert (drop.family, drop.device, drop.port, drop.step.place.chain) == (Family.IPV4, "flannel.1", 8472, "in")
    assert (drop.src, drop.dst) == (ip_address(OTHERS[0]), ip_address("192.0.2.1"))


def test_a_node_that_is_let_in_is_enough() -> None:
    assert dropped((match(SADDR, OTHERS[1]), ACCEPT)) == []


def test_a_policy_is_named() -> None:
    assert "the policy of in in inet fw" in found(POLICY, "").seen
