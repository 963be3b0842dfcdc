"""The documented examples of ip-masq-agent give the documented packets, followed by a running daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from flanneld_masq.model import Family, Packet, family_of
from flanneld_masq.selftest.packets import Wire

from ..common import eventually
from .conftest import BACKENDS, Daemon, Node

PODS = {Family.IPV4: ip_address("10.244.1.5"), Family.IPV6: ip_address("fd00:10:244:1::5")}
PRIVATE = "10.9.8.7 172.31.0.1 192.168.0.1"  # the destinations of RFC 1918
CLOUD = "1.2.3.4 2.2.9.9 3.3.3.200"
CUSTOM = "155.200.0.1 10.240.3.4 180.132.191.255"
WORLD = "8.8.8.8 172.32.0.1 2.3.0.1 155.127.0.1 2001:db8:1::1"
LINK_LOCAL, LINK_LOCAL_IPV6 = "169.254.10.10", "fe80::9"

CONFIG_CUSTOM = """\
nonMasqueradeCIDRs:
  - 155.128.0.0/9
  - 10.240.0.0/16
  - 180.132.128.0/18
masqLinkLocal: false
masqLinkLocalIPv6: true
"""
CONFIG_CLOUD = """\
nonMasqueradeCIDRs:
  - 1.0.0.0/8
  - 2.2.0.0/16
  - 3.3.3.0/24
masqLinkLocal: true
"""
AGENT_CONFIG = """\
nonMasqueradeCIDRs:
  - 10.0.0.0/8
  - 172.16.0.0/12
  - 192.168.0.0/16
masqLinkLocal: false
resyncInterval: 60s
"""
ONLY_10 = "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\nresyncInterval: 60s\n"


@dataclass(frozen=True)
class Example:
    """Files of the agent, and destinations that pods reach with their own address, and with the node's."""

    files: Mapping[str, str]
    kept: str
    masqueraded: str


# README.md and agent-config/config of ip-masq-agent, the user guide of Kubernetes, examples/ of ip-masq-agent-v2
EXAMPLES = {
    "no file": Example({}, f"{PRIVATE} {LINK_LOCAL} {LINK_LOCAL_IPV6}", f"{WORLD} {CLOUD}"),
    "agent-config": Example(
        {"ip-masq-agent": AGENT_CONFIG}, f"{PRIVATE} {LINK_LOCAL} {LINK_LOCAL_IPV6}", f"{WORLD} {CLOUD}"
    ),
    "only 10.0.0.0/8": Example({"ip-masq-agent": ONLY_10}, f"10.9.8.7 {LINK_LOCAL}", f"{WORLD} 172.31.0.1 192.168.0.1"),
    "with link-local": Example(
        {"ip-masq-agent": f"{ONLY_10}masqLinkLocal: true\n"}, "10.9.8.7", f"{WORLD} 172.31.0.1 {LINK_LOCAL}"
    ),
    "config-custom": Example(
        {"ip-masq-agent": CONFIG_CUSTOM}, f"{CUSTOM} {LINK_LOCAL}", f"{WORLD} {CLOUD} 10.9.8.7 {LINK_LOCAL_IPV6}"
    ),
    "config-custom and config-cloud": Example(
        {"ip-masq-agent": CONFIG_CUSTOM, "ip-masq-agent-cloud": CONFIG_CLOUD},
        f"{CUSTOM} {CLOUD}",
        f"{WORLD} 10.9.8.7 {LINK_LOCAL} {LINK_LOCAL_IPV6}",
    ),
}


class Site:
    """A node on a wire whose daemon follows the agent's files in a directory."""

    def __init__(self, wire: Wire, agent: Path) -> None:
        self._wire = wire
        self.agent = agent

    def write(self, files: Mapping[str, str]) -> None:
        for old in self.agent.iterdir():
            if old.name not in files:
                old.unlink()
        for name, text in files.items():
            new = self.agent / f".{name}"
            new.write_text(text)
            new.replace(self.agent / name)

    def wrong(self, example: Example) -> list[str]:
        """Return the destinations that another source address arrived at."""
        found = []
        for dst in map(ip_address, f"{example.kept} {example.masqueraded}".split()):
            pod, node = PODS[family_of(dst)], self._wire.node_address(family_of(dst), dst)
            wanted = pod if str(dst) in example.kept.split() else node
            if (source := self._wire.observe(Packet(pod, dst))) != wanted:
                found.append(f"{dst}: {source}, not {wanted}")
        return found


@pytest.fixture
def site(node: Node, tmp_path: Path) -> Iterator[Site]:
    agent = tmp_path / "config"
    agent.mkdir()
    with Wire(prefix="agent-") as wire:
        own, node.netns = node.netns, wire.node
        yield Site(wire, agent)
        node.netns = own


def daemon_of(node: Node, site: Site, backend: str) -> Iterator[Daemon]:
    entry = f"{site.agent}/ip-masq-*"
    node.configure(
        f'[masquerade]\nip_masq_agent_files = ["{entry}"]\n[reconcile]\nresync_seconds = 86400\n', backend=backend
    )
    with node.running() as daemon:
        daemon.reached("synced")
        yield daemon


@pytest.mark.parametrize("backend", BACKENDS)
def test_documented_examples_give_the_documented_packets(node: Node, site: Site, backend: str) -> None:
    for daemon in daemon_of(node, site, backend):
        for name, example in EXAMPLES.items():
            site.write(example.files)
            eventually(lambda: not site.wrong(example))
            assert site.wrong(example) == [], name
        daemon.logged("rules applied", "networks of plugins changed")


def test_a_bad_file_changes_no_packet(node: Node, site: Site) -> None:
    example = EXAMPLES["config-custom"]
    for daemon in daemon_of(node, site, "nft"):
        site.write(example.files)
        eventually(lambda: not site.wrong(example))
        site.write({"ip-masq-agent": f"{CONFIG_CUSTOM}cidrLimit: 2\n"})
        daemon.logged("ERROR", "ipmasqagent", "3 networks are more than cidrLimit, 2")
        eventually(lambda: any("cidrLimit" in trouble for trouble in daemon.status()["troubles"]))
        assert site.wrong(example) == []
        assert daemon.status()["state"] == "synced"
        site.write(EXAMPLES["agent-config"].files)
        eventually(lambda: not site.wrong(EXAMPLES["agent-config"]))
        eventually(lambda: daemon.status()["troubles"] == [])
