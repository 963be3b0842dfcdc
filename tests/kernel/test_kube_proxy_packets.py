"""Packets to services, with the rules of a real kube-proxy in each of its modes beside each backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.inputs import subnet_env
from flanneld_masq.model import BackendName, Family, Settings
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.selftest.topology import families

from ..common import every_time, patience
from ..kube_proxy import MODES, OLD_RELEASE, Rules
from .conftest import BACKENDS
from .service_flows import ADDRESSES, ServiceLab, cases
from .test_packets import insist_on, reconcilers

SIZES = (5, 500, 5000) if every_time() else (5,)
MARKS = {"": "0x4000/0x4000", "all": "0x4000/0x4000", "bit0": "0x1/0x1", "bit15": "0x8000/0x8000"}


class Stage:
    """A node that holds the rules of one kube-proxy and one backend at a time."""

    def __init__(self, lab: ServiceLab, state: Path) -> None:
        self._lab, self._state, self._run = lab, state, ProcessRunner()
        text = "".join(ADDRESSES[family].subnet_lines() for family in families())
        self._leases = (subnet_env.parse(text.encode(), "/lab"),)

    def check(self, family: Family, backend: str, rules: Rules, option: str = "") -> None:
        """Load the rules, install the backend beside them, and send a packet of every kind."""
        desired_state = DesiredState(Settings(backend=BackendName(backend)), self._leases)
        with self._lab.topology.node.entered():
            self._clear(family)
            rules.load(self._tool)
            reconciler = self._reconciler(family)
            insist_on(reconciler, backend)
            outcome = reconciler.reconcile(desired_state)
            assert outcome.kube_proxy_mark is not None and str(outcome.kube_proxy_mark.mark) == MARKS[option]
            assert not reconciler.reconcile(desired_state).repairs, "not in order after its own write"
        node_ports = (rules.mode, family) != ("nftables", Family.IPV6)
        assert (
            self._lab.wrong(family, cases(ADDRESSES[family], masquerade_all=option == "all", node_ports=node_ports))
            == []
        )

    def _reconciler(self, family: Family) -> Reconciler:
        """A new one each time: it remembers kube-proxy's mark for a while."""
        return reconcilers(self._state, self._run)[family]

    def _clear(self, family: Family) -> None:
        self._reconciler(family).remove_everything()
        self._tool("nft", "flush", "ruleset")
        names = Path("/proc/thread-self/net", f"{family.data.nft}_tables_names").read_text().split()
        for table in {"nat", "filter", "mangle"} & set(names):
            self._tool(f"{family.data.tools}-legacy-restore", stdin=f"*{table}\nCOMMIT\n")

    def _tool(self, *argv: str, stdin: str = "") -> str:
        return self._run(argv, stdin=stdin, timeout=patience(20)).stdout


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ServiceLab("services-") as lab:
        yield Stage(lab, tmp_path_factory.mktemp("stage"))


@pytest.mark.parametrize("services", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packets_arrive_as_wanted(stage: Stage, family: Family, backend: str, mode: str, services: int) -> None:
    if services == 5000 and family is Family.IPV6:
        pytest.skip("kept for IPv4 alone")
    stage.check(family, backend, Rules(mode, family, services=services))


@pytest.mark.parametrize("option", ["all", "bit0", "bit15"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS if every_time() else ["nft"])
def test_beside_other_options(stage: Stage, family: Family, backend: str, mode: str, option: str) -> None:
    stage.check(family, backend, Rules(mode, family, option=option), option)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS if every_time() else ["nft"])
def test_beside_the_old_release(stage: Stage, family: Family, backend: str, mode: str) -> None:
    stage.check(family, backend, Rules(mode, family, release=OLD_RELEASE))
