"""`doctor` where another program loses or changes the packets of pods: real packets are lost, it names the rule and its
owner, and after its remedy they arrive."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from flanneld_masq.model import Address, Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.packets import PacketError
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import eventually
from .conftest import Node
from .test_packet_flows import DOCKER_NFT, FIREWALLD, OTHER_NETWORK

LOST = "lost"
NATIVE = """
table inet filter {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
  }
}
"""
INGRESS = """
table netdev guard {
  chain in {
    type filter hook ingress device cni0 priority 0; policy accept;
    meta l4proto { tcp, udp } drop
  }
}
"""
BEHIND_NAT = """
table inet late {
  chain post {
    type filter hook postrouting priority 150; policy accept;
    oifname "eth0" meta l4proto { tcp, udp } drop
  }
}
"""
POLICY = "*mangle\n:FORWARD DROP [0:0]\nCOMMIT\n"
JUMPED = "*filter\n:MYFW - [0:0]\n-I FORWARD -j MYFW\n-A MYFW -s {networks} -j DROP\nCOMMIT\n"
UDP = "*filter\n-I FORWARD -s {networks} -p udp -j DROP\nCOMMIT\n"
POLICIES = "*filter\n:cali-FORWARD - [0:0]\n-A FORWARD -j cali-FORWARD\n-A cali-FORWARD -s {pod} -j DROP\nCOMMIT\n"
MASQUERADE = "*nat\n-A POSTROUTING -s {subnet} ! -o cni0 -j MASQUERADE\nCOMMIT\n"
NOTRACK = "*raw\n-A PREROUTING -s {networks} -j CT --notrack\nCOMMIT\n"
INPUT = """*filter
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -j DROP
COMMIT
"""
INPUT_NATIVE = """
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
  }
}
"""
ACCEPTED = "*nat\n-I POSTROUTING -s {networks} -j ACCEPT\nCOMMIT\n"


@dataclass(frozen=True)
class Broken:
    """Rules for `tool`, the flow that they break, what becomes of it, and the finding."""

    tool: str
    rules: str
    flow: str
    id: str
    owner: str
    seen: str


CASES = {
    "native policy": Broken("nft", NATIVE, "world", "flow-dropped", "unknown", "the policy of forward in inet filter"),
    "ingress": Broken("nft", INGRESS, "world", "flow-dropped", "unknown", "rule 1 of in in netdev guard"),
    "policy": Broken("nft", POLICY, "world", "flow-dropped", "unknown", "the policy of FORWARD in {ip} mangle"),
    "behind NAT": Broken("nft", BEHIND_NAT, "world", "flow-dropped", "unknown", "rule 1 of post in inet late"),
    "jumped": Broken("nft", JUMPED, "world", "flow-dropped", "unknown", "rule 1 of MYFW in {ip} filter"),
    "jumped, legacy": Broken(
        "legacy", JUMPED, "world", "flow-dropped", "unknown", "rule 1 of MYFW in legacy {ip} filter"
    ),
    "all UDP": Broken("nft", UDP, "world", "flow-dropped", "unknown", "rule 1 of FORWARD in {ip} filter"),
    "docker": Broken("nft", MASQUERADE, "remote", "flow-masqueraded", "docker", "in {ip} nat: -A POSTROUTING"),
    "docker, legacy": Broken(
        "legacy", MASQUERADE, "remote", "flow-masqueraded", "docker", "in legacy {ip} nat: -A POSTROUTING"
    ),
    "notrack": Broken("nft", NOTRACK, "world", "flow-not-masqueraded", "unknown", "-j CT --notrack"),
}


class Site:
    """The node with the daemon's rules, and packets of its pod."""

    def __init__(self, node: Node, topology: Topology, family: Family) -> None:
        self.node, self._topology, self._family = node, topology, family

    @property
    def of(self) -> Addresses:
        return self._topology.of(self._family)

    def load(self, tool: str, rules: str) -> None:
        if "*" not in rules:
            self.node.tool("nft", "-f", "-", stdin=rules)
            return
        (networks,) = self.of.networks
        filled = rules.format(networks=networks, subnet=self.of.subnet, pod=self.of.pod)
        self.node.tool(f"{self._family.data.tools}-{tool}-restore", "--noflush", stdin=filled)

    def arrives(self, flow: str) -> Address | str:
        """Return the source address with which a packet of the pod arrives."""
        receiver, to = {
            "world": (self._topology.outside, self.of.far),
            "remote": (self._topology.remote, self.of.remote_pod),
        }[flow]
        try:
            return packets.udp(self._topology.pod, receiver, Packet(self.of.pod, to), deadline=0.5)
        except PacketError:
            return LOST

    def wanted(self, flow: str) -> Address:
        return self.of.node if flow == "world" else self.of.pod

    def forget_neighbours(self) -> None:
        """Have the pod and the node ask for each other again."""
        for netns, device in ((self._topology.pod, "eth0"), (self._topology.node, "cni0")):
            with netns.entered():
                self.node.run(("ip", "-6", "neigh", "flush", "dev", device))

    def findings(self) -> list[dict[str, Any]]:
        """Return the findings on flows of the family."""
        done = self.node.masq("doctor", "--json")
        assert done.stderr == ""
        found = [one for one in json.loads(done.stdout)["findings"] if one["id"].startswith("flow")]
        return [one for one in found if one["family"] == str(self._family)]


@pytest.fixture
def site(lab_node: Node, topology: Topology, family: Family) -> Site:
    lab_node.configure("", backend="nft")
    done = lab_node.masq("apply")
    assert done.returncode == 0, done.stderr
    return Site(lab_node, topology, family)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_is_named_and_the_remedy_works(site: Site, name: str) -> None:
    broken = CASES[name]
    site.load(broken.tool, broken.rules)
    assert site.arrives(broken.flow) != site.wanted(broken.flow)
    (found,) = site.findings()
    assert (found["id"], found["severity"], found["owner"]) == (broken.id, "problem", broken.owner)
    assert broken.seen.format(ip=site.of.family.data.nft) in found["seen"]
    assert found["persist"]
    site.node.tool("sh", "-c", found["remedy"])
    assert site.arrives(broken.flow) == site.wanted(broken.flow)
    assert site.findings() == []


@pytest.mark.parametrize("family", [Family.IPV6], ids=str)
@pytest.mark.parametrize(
    ("tool", "rules", "seen"),
    [
        ("nft", INPUT_NATIVE, "the policy of input in inet filter"),
        ("nft", INPUT, "rule 3 of INPUT in ip6 filter"),
        ("legacy", INPUT, "rule 3 of INPUT in legacy ip6 filter"),
    ],
)
def test_pods_that_do_not_find_their_gateway(site: Site, tool: str, rules: str, seen: str) -> None:
    assert site.arrives("world") == site.of.node
    site.load(tool, rules)
    site.forget_neighbours()
    assert site.arrives("world") == LOST
    (found,) = site.findings()
    assert (found["id"], found["severity"]) == ("flow-dropped", "problem")
    assert "pod to gateway by neighbour discovery" in found["seen"] and seen in found["seen"]
    site.node.tool("sh", "-c", found["remedy"])
    assert eventually(lambda: site.arrives("world") == site.of.node)
    assert site.findings() == []


@pytest.mark.parametrize("family", [Family.IPV4], ids=str)
@pytest.mark.parametrize(
    ("rules", "owner", "chain"),
    [(FIREWALLD, "firewalld", "filter_FORWARD"), (DOCKER_NFT, "docker", "filter-forward-in__cni0")],
)
def test_programs_of_native_nftables(site: Site, rules: str, owner: str, chain: str) -> None:
    site.load("nft", rules)
    (found,) = site.findings()
    assert (found["id"], found["owner"]) == ("flow-dropped", owner)
    assert chain in found["seen"]
    if owner == "docker":
        site.node.tool("sh", "-c", found["remedy"])
        assert site.findings() == []
    else:
        (networks,) = site.of.networks
        assert found["remedy"] == f"firewall-cmd --zone=trusted --add-source={networks}"


def test_an_accept_ahead_of_the_jump_of_the_daemon(site: Site) -> None:
    site.node.configure("", backend="iptables-nft")
    assert site.node.masq("apply").returncode == 0
    site.load("nft", ACCEPTED)
    assert site.arrives("world") == site.of.pod
    (found,) = site.findings()
    assert found["id"] == "flow-not-masqueraded"
    assert 'masquerade.position = "first"' in found["remedy"]
    site.node.configure('[masquerade]\nposition = "first"', backend="iptables-nft")
    assert site.node.masq("apply").returncode == 0
    assert site.arrives("world") == site.of.node
    assert site.findings() == []


@pytest.mark.parametrize("rules", [POLICIES, OTHER_NETWORK], ids=["policies of one pod", "another network"])
def test_what_does_not_concern_all_pods_is_no_finding(site: Site, rules: str) -> None:
    site.load("nft", rules)
    assert site.findings() == []
