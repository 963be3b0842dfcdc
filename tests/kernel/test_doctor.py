"""`doctor` on real nodes: it finds what was broken, says what to do, and is content once that was done."""

from __future__ import annotations

import json
from typing import Any

from flanneld_masq.model import BackendName, Family

from .conftest import Node


def examined(node: Node, *argv: str) -> tuple[int, list[dict[str, Any]]]:
    done = node.masq(*argv, "doctor", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)["findings"]


def test_a_node_with_the_daemon_running_has_no_problem(lab_node: Node, backend_name: BackendName) -> None:
    lab_node.configure("", backend=backend_name)
    with lab_node.running() as daemon:
        daemon.reached("synced")
        before = lab_node.ruleset()
        status, findings = examined(lab_node)
        assert (status, [found for found in findings if found["severity"] == "problem"]) == (0, [])
        assert lab_node.masq("doctor").returncode == 0
        assert lab_node.ruleset() == before


def test_what_breaks_masquerading_is_found(lab_node: Node, family: Family) -> None:
    lab_node.netns.sysctl({family.data.forwarding.replace("net/", "", 1): 0})
    tool = f"{family.data.tools}-nft"
    lab_node.tool(tool, "-t", "nat", "-N", "CNI-0123456789abcdef01234567")
    lab_node.tool(tool, "-t", "nat", "-A", "POSTROUTING", "-j", "CNI-0123456789abcdef01234567")
    before = lab_node.ruleset()
    status, findings = examined(lab_node, "--backend", "iptables-nft")
    assert status == 1
    told = {(found["family"], found["what"]) for found in findings}
    for family_of, what in (
        ("", "the daemon does not run"),
        (str(family), "the kernel forwards no packets"),
        (str(family), "the CNI bridge plugin masquerades too"),
        (str(family), "the rules in the kernel differ from the wanted rules"),
    ):
        assert any(found == family_of and text.startswith(what) for found, text in told), told
    assert lab_node.ruleset() == before
    printed = lab_node.masq("--backend", "iptables-nft", "doctor")
    assert printed.returncode == 1
    assert f"problem: {family}: the kernel forwards no packets" in printed.stdout


def test_both_flavours_count_only_while_both_hold_rules(lab_node: Node, family: Family) -> None:
    def told() -> bool:
        return any("both iptables-legacy" in found["what"] for found in examined(lab_node)[1])

    nft, legacy = (f"{family.data.tools}-{flavour}" for flavour in ("nft", "legacy"))
    lab_node.tool(nft, "-A", "INPUT", "-j", "ACCEPT")
    lab_node.tool(legacy, "-w", "-L", "-n")
    assert not told(), "a listing makes empty tables"
    for used, undone in (("-P INPUT DROP", "-P INPUT ACCEPT"), ("-N X", "-X"), ("-A INPUT -j ACCEPT", "-F")):
        lab_node.tool(legacy, "-w", *used.split())
        assert told()
        lab_node.tool(legacy, "-w", *undone.split())
        assert not told(), "the remedy helps"
    lab_node.tool(legacy, "-w", "-A", "INPUT", "-j", "ACCEPT")
    lab_node.tool(nft, "-F")
    assert not told()


def test_nothing_is_looked_for_without_a_subnet_file(node: Node) -> None:
    node.subnet_file.unlink()
    status, findings = examined(node)
    assert status == 1
    assert any(found["what"].startswith("no subnet is known") for found in findings)
    assert "*nat" not in node.ruleset()
