"""A restart under traffic: nothing is lost, nothing leaves with a pod's address, nothing is written."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from flanneld_masq.model import BackendName

from .machine import UNIT, Machine
from .rules import BACKENDS, NftRules, rules_of
from .traffic import Traffic


def written(machine: Machine) -> list[tuple[str, int, int]]:
    """Return name, inode and time of each read-back on disk; every write replaces its file."""
    files = [
        path
        for path in machine.path("/run/flanneld-masq").glob("*.json")
        if path.name not in ("status.json", "authors.json")
    ]
    return sorted((path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in files)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_restart_under_traffic_loses_and_writes_nothing(machine: Machine, backend: BackendName) -> None:
    machine.configure(backend=backend)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")
    topology = machine.site.topology
    rules = rules_of(topology, backend)
    pid, cursor = machine.show("MainPID"), machine.cursor()
    before = (rules.look(), written(machine), *numbers(rules))
    flows = [Traffic(topology, of) for of in topology.addresses]
    with ExitStack() as stack:
        for traffic in flows:
            stack.enter_context(traffic.flowing())
        machine.systemctl("restart", UNIT)
        machine.reached("synced")
    assert machine.show("MainPID") != pid
    for traffic, of in zip(flows, topology.addresses):
        assert traffic.missing() == ()
        assert traffic.streamed > 1_000_000
        assert {source for source in traffic.sources if not source.is_link_local} == {of.node}
        machine.logged(f"{of.family}: the kernel already holds the right rules; nothing written", after=cursor)
    assert (rules.look(), written(machine), *numbers(rules)) == before


def numbers(rules: object) -> tuple[object, ...]:
    """Return the numbers that the kernel changes with each write; it has none for legacy."""
    return (rules.handles(), rules.generation()) if isinstance(rules, NftRules) else ()
