"""A reconciler over a kernel in memory, and what the tests of this package share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from flanneld_masq.hookspecs import Host
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    ForwardSettings,
    Group,
    Lease,
    MasqueradeSettings,
    Observation,
    Settings,
)
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState, Outcome
from flanneld_masq.reconcile.writer import OwnCommits
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryBackend, MemoryKernel, memory_backend_type

ONE, TWO, THREE = map(BackendName, ("one", "two", "three"))
V4 = Family.IPV4
LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
)
OTHER = replace(
    LEASE, ipv4=FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.1.0/24"), ip_address("10.42.1.1"))
)
DUAL = replace(
    LEASE, ipv6=FamilyLease((ip_network("fd00:244::/56"),), ip_network("fd00:244:0:1::/64"), ip_address("fd00:244::1"))
)
DESIRED = DesiredState(Settings(), (LEASE,))
OURS = "one masquerade"
STALE = "flanneld-masq:0123456789ab"  # a comment in the form of the daemon's


def desired_state(backend: str = "auto", forward: str = "auto", *leases: Lease, **masquerade: object) -> DesiredState:
    settings = Settings(
        backend=BackendName(backend),
        forward=ForwardSettings(backend=BackendName(forward)),
        masquerade=MasqueradeSettings(**masquerade),  # type: ignore[arg-type]
    )
    return DesiredState(settings, leases or (LEASE,))


class Bench:
    """A reconciler of IPv4 over a kernel in memory with three backends, the first one preferred."""

    def __init__(self, directory: Path, *, counted: bool = True) -> None:
        self.kernel = MemoryKernel()
        self.directory = directory
        self.commits = OwnCommits()
        self._types = [memory_backend_type(name, kernel=self.kernel, counted=counted) for name in (ONE, TWO, THREE)]
        self.reconciler = self.restarted()
        self.missing = ""

    def restarted(self) -> Reconciler:
        """Return the reconciler that a new process would make."""
        return self.of(V4)

    def of(self, family: Family) -> Reconciler:
        backends = {kind.name: kind.create(family, Host(ProcessRunner())) for kind in self._types}
        ticks = iter(range(10_000))
        return Reconciler(
            family,
            backends,
            StateDirectory(self.directory),
            missing=lambda: self.missing,
            commits=self.commits,
            clock=lambda: next(ticks) * 0.001,
        )

    def calls(self, method: str) -> list[BackendName]:
        return [backend for name, backend, _ in self.kernel.log if name == method]

    def outcome(self, state: DesiredState = DESIRED) -> Outcome:
        """Run one pass after all events have been heard."""
        return self.reconciler.reconcile(state, self.kernel.generation)

    def reconcile(self, state: DesiredState = DESIRED) -> list[BackendName]:
        """Run one pass and return the backends that it wrote, in order."""
        self.kernel.log.clear()
        repaired = [repair.plan.backend for repair in self.outcome(state).repairs]
        assert list(dict.fromkeys(self.calls("replace"))) == list(dict.fromkeys(repaired))
        return list(dict.fromkeys(repaired))

    def in_sync(self, state: DesiredState = DESIRED) -> bool:
        return not any(plan.changes for plan in self.reconciler.plan(state))


def after_observation(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do this once, after the next observation of IPv4 and before the write."""
    observe = MemoryBackend.observe

    def observe_and_act(backend: MemoryBackend, groups: Collection[Group]) -> Observation:
        observed = observe(backend, groups)
        if backend.family is V4:
            monkeypatch.setattr(MemoryBackend, "observe", observe)
            act()
        return observed

    monkeypatch.setattr(MemoryBackend, "observe", observe_and_act)
