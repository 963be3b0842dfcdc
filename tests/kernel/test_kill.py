"""SIGKILL at any moment: each chain of the daemon is the old one or the new one, never empty and never half."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress

import pytest
from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_nft import render

from flanneld_masq.cli import main
from flanneld_masq.kernel.expressions import jump_target
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import BackendName, Family, Group

from .. import preloaded  # noqa: F401  so that `apply` is killed while it writes, not while it imports
from .conftest import SUBNET_ENV, Node

KILLS = 100
OTHER_LEASE = SUBNET_ENV.replace("10.244.", "10.99.").replace("fd00:10:244:", "fd00:10:99:")
Chains = Mapping[str, tuple[str, ...]]


def chains(node: Node, name: BackendName) -> Chains:
    """Our chains, and the jumps to them, each read in one go."""
    read = legacy_chains if name == "iptables-legacy" else nft_chains if name == "nft" else iptables_nft_chains
    return {key: rules for family in Family for key, rules in read(node, family).items()}


def nft_chains(_: Node, family: Family) -> Chains:
    netlink = Nfnetlink()
    places = {group: render.CHAINS[group].name for group in Group}
    return {
        f"{family} {chain}": tuple(rule.raw for rule in netlink.rules(family, render.TABLE, chain))
        for chain in places.values()
    }


def iptables_nft_chains(_: Node, family: Family) -> Chains:
    netlink = Nfnetlink()
    found = {}
    for place in PLACES.values():
        base = netlink.rules(family, place.table, place.base)
        found[f"{family} {place.own}"] = tuple(rule.raw for rule in netlink.rules(family, place.table, place.chain))
        found[f"{family} {place.jump}"] = tuple(rule.raw for rule in base if jump_target(rule) == place.chain)
    return found


def legacy_chains(node: Node, family: Family) -> Chains:
    found = {}
    for place in PLACES.values():
        lines = node.run((f"{family.data.tools}-legacy-save", "-t", place.table)).stdout.splitlines()
        found[f"{family} {place.own}"] = tuple(line for line in lines if line.startswith(f"-A {place.chain} "))
        found[f"{family} {place.jump}"] = tuple(line for line in lines if line.endswith(f" -j {place.chain}"))
    return found


def apply(node: Node) -> int:
    """In a child of the test, which has all modules loaded already, and leads a process group. Its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with suppress(BaseException):
        os.setpgid(0, 0)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = main.main(["--config", str(node.config_file), "apply"])
    os._exit(status)


def finish(node: Node) -> float:
    """An apply that nobody kills. How long it took."""
    started = time.monotonic()
    _, status = os.waitpid(apply(node), 0)
    assert status == 0
    return time.monotonic() - started


@pytest.mark.parametrize("victims", ["the program", "the program and its tools"])
def test_after_sigkill_each_chain_is_the_old_or_the_new_one(
    node: Node, backend_name: BackendName, victims: str
) -> None:
    moments = random.Random(f"{backend_name} {victims}")
    kill: Callable[[int, int], None] = os.kill if victims == "the program" else os.killpg
    node.configure("", backend=backend_name)
    leases = (SUBNET_ENV, OTHER_LEASE)
    with node.entered():
        complete = []
        for lease in leases:
            node.write_subnet(lease)
            duration = finish(node)
            complete.append(chains(node, backend_name))
        assert all(complete[0].values())
        assert complete[0] != complete[1]
        outcomes = set()
        for number in range(KILLS // 2):
            before = chains(node, backend_name)
            node.write_subnet(leases[number % 2])
            pid = apply(node)
            time.sleep(moments.uniform(0, duration))  # the moment itself is what is tried
            with suppress(ProcessLookupError):  # ended, or its group not made yet
                kill(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            after = chains(node, backend_name)
            for key, rules in after.items():
                assert rules in (complete[0][key], complete[1][key]), f"{key} after kill {number}: {rules}"
            outcome = "old" if after == before else "new" if after == complete[number % 2] else "between"
            outcomes.add(outcome)
            duration *= (
                0.9 if outcome == "new" else 1.1
            )  # so the moments stay about the write however busy the machine is
        assert {"old", "new"} <= outcomes, "the moments miss the write"
        finish(node)
        assert chains(node, backend_name) == complete[number % 2]
        assert node.masq("plan").returncode == 0
