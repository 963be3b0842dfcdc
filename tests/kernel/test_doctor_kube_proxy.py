"""`doctor` beside the rules of a real kube-proxy 1.36, in each of its modes: a healthy node has no problem.

`kube_proxy/README.md` says where the rules come from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.model import Family
from flanneld_masq.packet_path.flows import Flow, Judgement

from .conftest import Node
from .test_packet_flows import evaluated

RULES = Path(__file__).parent / "kube_proxy"
MODES = ("iptables-nft", "iptables-legacy", "nftables")


def load(node: Node, mode: str) -> None:
    for family in Family:
        if mode == "nftables":
            node.tool("nft", "-f", str(RULES / f"nftables.v{family.data.version}.nft"))
        else:
            tool = mode.replace("iptables", family.data.tools)
            node.tool(f"{tool}-restore", stdin=(RULES / f"iptables.v{family.data.version}.save").read_text())


def problems(node: Node) -> list[dict[str, Any]]:
    done = node.masq("doctor", "--json")
    assert done.stderr == ""
    return [one for one in json.loads(done.stdout)["findings"] if one["severity"] == "problem"]


@pytest.fixture(params=MODES)
def proxied(request: pytest.FixtureRequest, lab_node: Node) -> Node:
    """A node with kube-proxy's rules of one mode."""
    load(lab_node, request.param)
    return lab_node


@pytest.mark.parametrize("backend", ["nft", "iptables-nft"])
def test_a_healthy_node_has_no_problem(proxied: Node, backend: str) -> None:
    proxied.configure("", backend=backend)
    with proxied.running() as daemon:
        daemon.reached("synced")
        assert problems(proxied) == []
        assert proxied.masq("doctor").returncode == 0
    found = evaluated(proxied)
    assert {one.judgement for one in found.values()} == {Judgement.AS_WANTED}
    assert {family for family, flow, _ in found if flow is Flow.POD_TO_SERVICE} == set(Family)
