"""Endpoints of a real kube-proxy's rules change 50 times a second: packets stay right, and nothing is repaired."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flanneld_masq.model import BackendName, Family, Group
from flanneld_masq.selftest.topology import families

from ..common import every_time, lasting, patience
from ..kube_proxy import MODES, Rules, churn
from .conftest import BACKENDS, Node
from .service_flows import ADDRESSES, ServiceLab, cases, changing

# Each mode beside the backend that a node with it has, and the commonest mixture.
BY_EVENTS = ("nft", "iptables-nft")
USUAL = (
    ("nft", "nftables"),
    ("nft", "iptables-nft"),
    ("iptables-nft", "iptables-nft"),
    ("iptables-legacy", "iptables-legacy"),
)
PAIRS = [(backend, mode) for backend in BACKENDS for mode in MODES] if every_time() else USUAL
SIZES = (5, 500, 5000) if every_time() else (5,)
SECONDS = lasting(1, 10)
CONFIG = "[reconcile]\nresync_seconds = 1\n[dbus]\nenabled = false\n"
KINDS = ("pod to service", "node to service", "pod to the world", "outside to remote pod")
# Mode nftables looks for such a packet in a set of local endpoints, from which a change can take it meanwhile.
IPTABLES_KINDS = (*KINDS, "pod to itself by a service")


@pytest.fixture
def lab(node: Node) -> Iterator[ServiceLab]:
    """The network with `node` in its middle."""
    with ServiceLab("churn-") as found:
        own, node.netns = node.netns, found.topology.node
        node.write_subnet("".join(ADDRESSES[family].subnet_lines() for family in families()))
        yield found
        node.netns = own


def load(node: Node, mode: str, services: int) -> list[Rules]:
    kept = families() if services < 5000 else (Family.IPV4,)
    found = [Rules(mode, family, services=services) for family in kept]
    for rules in found:
        with node.entered():  # nft takes 15 s for 5,000 services
            rules.load(lambda *argv, stdin: node.run(argv, stdin=stdin, timeout=patience(60)).stdout)
    return found


@pytest.mark.parametrize("services", SIZES)
@pytest.mark.parametrize(("backend", "mode"), PAIRS)
def test_changing_endpoints_are_no_drift(node: Node, lab: ServiceLab, backend: str, mode: str, services: int) -> None:
    loaded = load(node, mode, services)
    kinds = KINDS if mode == "nftables" else IPTABLES_KINDS
    wanted = {
        rules.family: [
            changing(case, lossy=mode == "nftables") for case in cases(ADDRESSES[rules.family]) if case.name in kinds
        ]
        for rules in loaded
    }
    node.configure(CONFIG, backend=backend)
    with node.running() as daemon, ThreadPoolExecutor() as threads:
        daemon.reached("synced")
        before, logged = daemon.status(), daemon.lines()
        churning = [threads.submit(churn, rules, node.tool, SECONDS) for rules in loaded]
        while not all(one.done() for one in churning):
            for family, flows in wanted.items():
                assert lab.wrong(family, flows) == []
        assert all(one.result() for one in churning)
        daemon.reached("synced")
        assert daemon.lines() == logged
        assert writes(daemon.status()) == writes(before)
        assert node.masq("plan").returncode == 0


def writes(status: dict[str, Any]) -> list[object]:
    """Return the numbers and times of what the daemon wrote so far, one list for each family."""
    return [
        [family.get(key) for key in ("repairs", "last_repair", "last_write")] for family in status["families"].values()
    ]


@pytest.mark.parametrize("groups", [frozenset(), frozenset(Group)], ids=["not in use", "in use"])
@pytest.mark.parametrize("name", BY_EVENTS)
def test_changing_endpoints_need_no_pass(node: Node, name: str, groups: frozenset[Group]) -> None:
    """The fingerprint stays the same when kube-proxy writes the chains again that FORWARD jumps to."""
    rules = load(node, "iptables-nft", 5)[0]
    with node.entered():
        node.reconciler(Family.IPV4).reconcile(node.desired_state())
        backend = node.backends(Family.IPV4)[BackendName(name)]
        backend.drops_forwarding()
        before = backend.fingerprint(groups)
        changes = rules.changes()
        for _ in range(3):
            rules.commit(node.tool, changes.next())
            assert backend.fingerprint(groups) == before
        rules.commit(node.tool, "*filter\n-A KUBE-FORWARD -j DROP\nCOMMIT\n")
        assert (backend.fingerprint(groups) == before) is (name == "nft")
