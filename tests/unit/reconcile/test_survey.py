"""The survey of flannel's rules, and their removal."""

from __future__ import annotations

from dataclasses import replace

from flanneld_masq.model import FamilyLease, Probe, Survey
from flanneld_masq.reconcile.survey import remove_flannel_rules, survey_backends
from flanneld_masq.testing import MemoryBackend, MemoryKernel
from flanneld_masq.testing.fake_backend import FLANNEL_COMMENT

from .bench import LEASE, ONE, THREE, TWO, V4, Bench


def test_flannel_rules_are_listed_and_removed_by_backend(bench: Bench) -> None:
    bench.kernel.append(V4, "postrouting", "masquerade", FLANNEL_COMMENT)
    bench.kernel.append(V4, "postrouting", "foreign")
    bench.kernel.cni_masquerade[V4] = "rule CNI"
    bench.kernel.probes[THREE] = Probe(False, "gone")
    bench.reconcile()
    usable = bench.reconciler.selector.usable()
    surveys = {backend.name: survey for backend, survey in survey_backends(usable, (LEASE,))}
    assert list(surveys) == [ONE, TWO]
    assert [item.text for item in surveys[ONE].flannel] == ['masquerade comment "flannel"']
    assert surveys[ONE].cni_masquerade == "rule CNI"
    ((backend, items),) = remove_flannel_rules(usable, (LEASE,))[:1]
    assert (backend, items) == (ONE, surveys[ONE].flannel)
    assert bench.kernel.chains(V4)["postrouting"][0] == "foreign"
    assert remove_flannel_rules(usable, (LEASE,)) == ()
    assert bench.in_sync()


def test_backends_get_the_leases_of_their_family() -> None:
    asked = []

    class Asked(MemoryBackend):
        def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
            asked.append(leases)
            return super().survey(leases)

    backends = [Asked(ONE, V4, MemoryKernel())]
    for leases in ((), (replace(LEASE, ipv4=None),), (LEASE, replace(LEASE, ipv4=None), LEASE)):
        survey_backends(backends, leases)
    assert asked == [(), (), (LEASE.ipv4, LEASE.ipv4)]
