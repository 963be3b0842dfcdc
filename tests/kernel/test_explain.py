"""`explain` on a node with rules of other programs, beside real packets."""

from __future__ import annotations

import json

import pytest

from flanneld_masq.model import Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.topology import Topology

from .conftest import Node


@pytest.fixture
def masquerading(lab_node: Node) -> Node:
    lab_node.configure("", backend="nft")
    assert lab_node.masq("apply").returncode == 0
    return lab_node


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_the_rule_that_masquerades_is_named_with_its_owner(
    masquerading: Node, topology: Topology, family: Family, flavour: str
) -> None:
    of = topology.of(family)
    flow = ("--src", str(of.pod), "--dst", str(of.remote_pod))
    assert ": keeps its source address" in masquerading.masq("explain", *flow).stdout.splitlines()[0]
    tool = f"{family.data.tools}-{flavour}"
    masquerading.tool(tool, *f"-t nat -A POSTROUTING -s {of.subnet} ! -o cni0 -j MASQUERADE".split())
    arrived = packets.udp(topology.pod, topology.remote, Packet(of.pod, of.remote_pod))
    before = masquerading.ruleset()
    done = masquerading.masq("explain", *flow)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[:2]
    assert first == f"{of.pod} -> {of.remote_pod}, tcp, from cni0: masqueraded as {arrived}"
    assert "flanneld-masq leaves it alone, but rule 1 of POSTROUTING in " in second
    assert f"{family.data.nft} nat (docker) masquerades it: -A POSTROUTING -s {of.subnet}" in second
    data = json.loads(masquerading.masq("explain", "--json", *flow).stdout)
    assert (data["masquerade"], data["node"]["arrives_from"], data["node"]["to"]) == (False, str(arrived), "flannel.1")
    ours = json.loads(masquerading.masq("explain", "--json", "--ours", *flow).stdout)
    assert not ours.keys() & {"node", "node_unread"}
    assert masquerading.ruleset() == before
