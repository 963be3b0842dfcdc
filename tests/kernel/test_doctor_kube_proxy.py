"""`doctor` beside the rules of a real kube-proxy 1.36, in each of its modes: a healthy node has no problem.

`kube_proxy/README.md` says where the rules come from.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from flanneld_masq.model import Family
from flanneld_masq.packet_path.flow_cases import Flow
from flanneld_masq.packet_path.flows import Judgement

from ..kube_proxy import MODES, Rules
from .conftest import Node
from .test_packet_flows import SKIPPED, evaluated


def problems(node: Node) -> list[dict[str, Any]]:
    done = node.masq("doctor", "--json")
    assert done.stderr == ""
    return [one for one in json.loads(done.stdout)["findings"] if one["severity"] == "problem"]


@pytest.fixture(params=MODES)
def proxied(request: pytest.FixtureRequest, lab_node: Node) -> Node:
    """A node with kube-proxy's rules of one mode."""
    for family in Family:
        with lab_node.entered():
            Rules(request.param, family).load(lab_node.tool)
    return lab_node


@pytest.mark.parametrize("backend", ["nft", "iptables-nft"])
def test_a_healthy_node_has_no_problem(proxied: Node, backend: str) -> None:
    proxied.configure("", backend=backend)
    with proxied.running() as daemon:
        daemon.reached("synced")
        assert problems(proxied) == []
        assert proxied.masq("doctor").returncode == 0
    found = evaluated(proxied)
    skipped = {flow for (_, flow, _), one in found.items() if one.judgement is not Judgement.AS_WANTED}
    assert skipped == SKIPPED - {Flow.POD_TO_SERVICE}
    assert {family for family, flow, _ in found if flow is Flow.POD_TO_SERVICE} == set(Family)
