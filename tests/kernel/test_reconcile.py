"""The loop's body on the real kernel: write, find in order, remove."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flanneld_masq_iptables.legacy_backend import IptablesLegacy
from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_iptables.sockopt import TableInfo
from flanneld_masq_iptables.xt_entries import Entries

from flanneld_masq.errors import KernelError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import BackendName, Desired, Family, Group, GroupRules
from flanneld_masq.ruleset import diff

from .conftest import Node


def test_apply_writes_once_and_plan_finds_it_in_order(node: Node, backend_name: BackendName) -> None:
    before = node.masq("--backend", backend_name, "plan")
    assert before.returncode == 3, before.stderr
    assert node.masq("--backend", backend_name, "apply").returncode == 0
    ruleset = node.ruleset()
    after = node.masq("--backend", backend_name, "plan", "--json")
    assert after.returncode == 0, after.stdout
    assert json.loads(after.stdout)["in_sync"] is True
    assert json.loads(node.masq("--backend", backend_name, "apply", "--json").stdout)["changed"] == []
    assert node.ruleset() == ruleset


def test_cleanup_leaves_the_ruleset_of_others_as_it_was(node: Node, backend_name: BackendName) -> None:
    for tools in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        node.tool(tools, "-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", "not ours", "-j", "RETURN")
        node.tool(tools, "-A", "FORWARD", "-m", "mark", "--mark", "1", "-j", "DROP")
    before = node.ruleset()
    assert node.masq("--backend", backend_name, "apply").returncode == 0
    assert node.ruleset() != before
    cleaned = node.masq("cleanup")
    assert cleaned.returncode == 0, cleaned.stderr
    assert node.ruleset() == before


def test_another_backend_takes_over_and_the_first_one_is_cleared(node: Node, family: Family) -> None:
    with node.entered():
        reconciler = node.reconciler(family)
        for name in ("iptables-legacy", "nft", "iptables-nft", "nft"):
            node.configure("", backend=name)
            outcome = reconciler.reconcile(node.desired_state())
            assert {choice.backend for chosen in outcome.choices.values() for choice in chosen} == {name}
            assert outcome.repairs[0].plan.backend == name, "the new rules come first"
            assert not any(plan.changes for plan in reconciler.plan(node.desired_state()))


def test_legacy_tables_are_those_of_the_thread_that_reads(node: Node, family: Family) -> None:
    node.configure("", backend="iptables-legacy")

    def reconcile() -> None:
        with node.entered():
            reconciler = node.reconciler(family)
            assert reconciler.reconcile(node.desired_state()).repairs
            assert not any(plan.changes for plan in reconciler.plan(node.desired_state()))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(reconcile).result()


def test_a_pass_with_nothing_changed_starts_no_process(node: Node, family: Family, backend_name: BackendName) -> None:
    node.configure("", backend=backend_name)
    with node.entered():
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        node.run.stop()  # from here on, starting any program is an error
        assert reconciler.reconcile(node.desired_state()).repairs == ()
        node.run.resume()


def test_legacy_rules_are_listed_only_after_a_change(node: Node, family: Family) -> None:
    """Foreign rules elsewhere in the table move the daemon's, and targets of jumps; that alone needs no listing."""
    tool = f"{family.data.tools}-legacy"
    node.configure("", backend="iptables-legacy")
    with node.entered():
        reconciler = node.reconciler(family)
        node.tool(tool, "-t", "nat", "-N", "KUBE-SERVICES")
        node.tool(tool, "-t", "nat", "-A", "POSTROUTING", "-j", "KUBE-SERVICES")
        node.tool(tool, "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "1")
        reconciler.reconcile(node.desired_state())
        for number in range(3):
            node.tool(tool, "-t", "nat", "-N", f"A-CHAIN-{number}")
            node.tool(tool, "-t", "nat", "-A", "KUBE-SERVICES", "-m", "mark", "--mark", "1", "-j", f"A-CHAIN-{number}")
            node.tool(tool, "-t", "nat", "-I", "OUTPUT", "-j", "RETURN")
            node.run.stop()
            assert reconciler.reconcile(node.desired_state()).repairs == ()
            node.run.resume()
        backend = IptablesLegacy(family, Host(node.run))
        before = backend.observe((Group.MASQUERADE,))
        changes = (
            ("-R", "POSTROUTING", "1", "-j", "A-CHAIN-1"),  # the size of the table stays the same
            ("-R", "POSTROUTING", "1", "-g", "A-CHAIN-1"),
            ("-R", "POSTROUTING", "2", "-m", "mark", "--mark", "2"),
            ("-A", "A-CHAIN-2", "-m", "comment", "--comment", "flanneld-masq:0123456789ab", "-j", "FLANNELD-MASQ"),
            ("-F", "A-CHAIN-2"),
        )
        for change in changes:
            node.tool(tool, "-t", "nat", *change)
            seen = backend.observe((Group.MASQUERADE,))
            assert seen == IptablesLegacy(family, Host(node.run)).observe((Group.MASQUERADE,)) != before
            before = seen


def test_a_legacy_table_that_never_stops_changing_is_listed(
    node: Node, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.configure("", backend="iptables-legacy")
    with node.entered():
        node.reconciler(family).reconcile(node.desired_state())
        expected = IptablesLegacy(family, Host(node.run)).observe(tuple(Group))
        read = TableInfo.read
        monkeypatch.setattr(TableInfo, "read", lambda self, table: read(self, table)[:-4] + b"\0\1\0\0")  # the size
        with pytest.raises(KernelError) as caught, TableInfo(family).entries("nat"):
            pass
        assert caught.value.errno == errno.EAGAIN
        observed = IptablesLegacy(family, Host(node.run)).observe(tuple(Group))
        assert observed.items == expected.items
        wanted = Desired(family, (GroupRules(Group.FORWARD, (), observed.items[-1].tag),))
        assert not tuple(diff.moved(PLACES[Group.FORWARD].jump, wanted, (), observed)), "the jump stays where it is"


def test_poll_reports_a_legacy_table_that_changed_during_a_pass(
    node: Node, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.configure("", backend="iptables-legacy")
    with node.entered():
        node.reconciler(family).reconcile(node.desired_state())
        backend = IptablesLegacy(family, Host(node.run))
        mask = Entries.mask

        def meanwhile(entries: Entries) -> bytes:
            monkeypatch.setattr(Entries, "mask", mask)
            node.tool(f"{family.data.tools}-legacy", "-w", "-t", "nat", "-A", "INPUT")
            node.tool(f"{family.data.tools}-legacy", "-w", "-A", "INPUT")
            return mask(entries)

        monkeypatch.setattr(Entries, "mask", meanwhile)
        backend.observe(tuple(Group))
        assert backend.poll()
        backend.observe(tuple(Group))
        assert not backend.poll()


def test_looking_brings_no_legacy_table_into_being(node: Node) -> None:
    for command in ("backends", "plan", "apply", "cleanup"):
        assert node.masq("--backend", "nft", command).returncode in (0, 3)
    assert "*nat" not in node.ruleset()
    assert "*filter" not in node.ruleset()


def test_the_nft_backend_needs_neither_library_nor_program(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nftables.py").write_text("raise ImportError('removed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    node.configure("")
    done = node.masq("--backend", "nft", "apply", environ={"PATH": "/nonexistent"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "flanneld-masq" in node.tool("nft", "list", "tables")
    assert node.masq("cleanup", environ={"PATH": "/nonexistent"}).returncode == 0
    assert "flanneld-masq" not in node.tool("nft", "list", "tables")
