"""A repair needs no program: it writes what the daemon encodes (nft) or what the kernel held before (iptables-nft)."""

from __future__ import annotations

import pytest

from flanneld_masq.errors import KernelError, RulesetError
from flanneld_masq.kernel.expressions import comment
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import following
from flanneld_masq.kernel.rule_cache import RuleCache
from flanneld_masq.model import BackendName, Family, VerifiedState
from flanneld_masq.ruleset import policy
from flanneld_masq.selftest import fault_injection
from flanneld_masq.state_directory import StateDirectory

from ..common import needs_long_messages
from .conftest import Node

CHAINS = {
    "nft": (("flanneld-masq", "postrouting"), ("flanneld-masq", "forward")),
    "iptables-nft": (("nat", "FLANNELD-MASQ"), ("filter", "FLANNELD-MASQ-FWD")),
}
TABLES = ("empty", "many")
WITHOUT_A_TOOL = [
    *(("nft", damage) for damage in ("rule deleted", "rule duplicated", "chain flushed", "table deleted")),
    *(("iptables-nft", damage) for damage in ("rule deleted", "rule duplicated", "chain flushed", "jump removed")),
]


@pytest.mark.parametrize(("name", "damage"), WITHOUT_A_TOOL)
@pytest.mark.parametrize("position", ["first", "last"])
def test_a_repair_starts_no_program_and_leaves_the_same_ruleset(
    node: Node, family: Family, name: str, damage: str, position: str
) -> None:
    node.configure(f'[masquerade]\nposition = "{position}"', backend=name)
    tools = fault_injection.tools(name, family, node.run)
    assert tools is not None
    with node.entered():
        reconciler = node.reconciler(family)
        tools.add_foreign()
        reconciler.reconcile(node.desired_state())
        before = node.ruleset()
        tools.damages[damage]()
        assert node.ruleset() != before
        node.run.stop()  # from here on, starting any program is an error
        (repair,) = reconciler.reconcile(node.desired_state()).repairs
        node.run.resume()
        assert repair.plan.backend == name
        assert node.ruleset() == before
        assert not any(plan.changes for plan in reconciler.plan(node.desired_state()))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("hit", [0, 1])
def test_a_repair_writes_no_chain_that_is_in_order(node: Node, family: Family, name: str, hit: int) -> None:
    node.configure("", backend=name)
    with node.entered():
        reconciler, netlink = node.reconciler(family), Nfnetlink()
        reconciler.reconcile(node.desired_state())
        before = [netlink.rules(family, *chain) for chain in CHAINS[name]]
        node.tool("nft", "flush", "chain", family.data.nft, *CHAINS[name][hit])
        reconciler.reconcile(node.desired_state())
        after = [netlink.rules(family, *chain) for chain in CHAINS[name]]
        assert after[not hit] == before[not hit]  # with the handles that they had
        assert [rule.raw for rule in after[hit]] == [rule.raw for rule in before[hit]]
        assert after[hit] != before[hit]


@pytest.mark.parametrize("name", CHAINS)
def test_a_rule_forged_before_the_write_is_not_taken_for_ours(
    node: Node, family: Family, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chain is flushed. Before the daemon writes it, another program forges a rule of the other chain."""
    node.configure("", backend=name)
    verified_state = StateDirectory.verified_state
    with node.entered():
        reconciler, netlink = node.reconciler(family), Nfnetlink()
        reconciler.reconcile(node.desired_state())
        before = [rule.raw for rule in netlink.rules(family, *CHAINS[name][1])]

        def forge_and_compare(store: StateDirectory, backend: BackendName, family: Family) -> VerifiedState | None:
            monkeypatch.setattr(StateDirectory, "verified_state", verified_state)
            rule = netlink.rules(family, *CHAINS[name][1])[0]
            source = "198.51.100.0/24" if family is Family.IPV4 else "2001:db8::/32"
            if name == "nft":
                forged = f'handle {rule.handle} {family.data.nft} saddr {source} accept comment "{comment(rule)}"'
                node.tool("nft", f"replace rule {family.data.nft} {' '.join(CHAINS[name][1])} {forged}")
            else:
                said = ("-m", "comment", "--comment", comment(rule))
                table, chain = CHAINS[name][1]
                node.tool(
                    f"{family.data.tools}-nft", "-t", table, "-R", chain, "1", "-s", source, *said, "-j", "ACCEPT"
                )
            return verified_state(store, backend, family)

        monkeypatch.setattr(StateDirectory, "verified_state", forge_and_compare)
        node.tool("nft", "flush", "chain", family.data.nft, *CHAINS[name][0])
        reconciler.reconcile(node.desired_state())
        reconciler.reconcile(node.desired_state())
        assert [rule.raw for rule in netlink.rules(family, *CHAINS[name][1])] == before


@pytest.mark.parametrize("name", CHAINS)
def test_rules_of_a_new_lease_are_written_by_the_tool_once(node: Node, family: Family, name: str) -> None:
    node.configure("", backend=name)
    with node.entered():
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        text = node.subnet_file.read_text()
        node.write_subnet(text.replace("10.244.1.1/24", "10.244.9.1/24").replace("244:1::1/64", "244:9::1/64"))
        reconciler.reconcile(node.desired_state())
        before = node.ruleset()
        assert "10.244.9.0/24" in before or "244:9::/64" in before
        table, chain = CHAINS[name][0]
        node.tool("nft", "flush", "chain", family.data.nft, table, chain)
        node.run.stop()
        reconciler.reconcile(node.desired_state())
        node.run.resume()
        assert node.ruleset() == before


@pytest.mark.parametrize("name", CHAINS)
def test_the_socket_works_after_a_repair_of_hundreds_of_rules(node: Node, family: Family, name: str) -> None:
    """An acknowledgement of each would be more than a socket holds."""
    if name == "iptables-nft":
        needs_long_messages()
    many = ", ".join(
        f'"198.18.{number // 8}.{number % 8 * 32}/27", "2001:db8:{number:x}::/48"' for number in range(400)
    )
    node.configure(f"[masquerade]\nnon_masquerade_cidrs = [{many}]", backend=name)
    with node.entered():
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        before = node.ruleset()
        for _ in range(3):
            node.tool("nft", "flush", "chain", family.data.nft, *CHAINS[name][0])
            (repair,) = reconciler.reconcile(node.desired_state()).repairs
            assert repair.plan.backend == name
            assert node.ruleset() == before


def test_a_refused_transaction_changes_nothing_leaves_no_reply(node: Node, family: Family) -> None:
    with node.entered():
        node.tool("nft", f"add table {family.data.nft} t; add chain {family.data.nft} t c")
        netlink, before = Nfnetlink(), node.ruleset()
        with pytest.raises(KernelError, match=r"deleting 500 rules in table .* t: No such file or directory"):
            netlink.delete(family, "t", tuple(("c", handle) for handle in range(1000, 1500)))
        assert netlink.generation() == Nfnetlink().generation()
        assert netlink.rules(family, "t", "c") == ()
        assert node.ruleset() == before


def test_rules_of_a_table_are_found_without_reading_all(node: Node, family: Family) -> None:
    many = "".join(f"add rule {family.data.nft} many c mark {number}\n" for number in range(3000))
    made = "".join(f"add table {family.data.nft} {table}; add chain {family.data.nft} {table} c\n" for table in TABLES)
    with node.entered():
        node.tool("nft", "-f", "-", stdin=f"{made}{many}")
        netlink = Nfnetlink()
        assert [netlink.holds_rules(family, table) for table in (*TABLES, "gone")] == [False, True, False]
        assert len(netlink.rules(family, "many")) == 3000


@pytest.mark.parametrize("gone", ["tables", "chains", "the jump and a chain"])
def test_lost_iptables_tables_and_chains_return_without_the_tool(node: Node, family: Family, gone: str) -> None:
    """`iptables-nft -X` removes the base chains that are empty as well, if their policy is to accept."""
    tool = f"{family.data.tools}-nft"
    node.configure("", backend="iptables-nft")
    with node.entered():
        reconciler = node.reconciler(family)
        if gone != "tables":
            node.tool(tool, "-t", "filter", "-P", "FORWARD", "DROP")
        reconciler.reconcile(node.desired_state())
        before = node.ruleset()
        if gone == "tables":
            node.tool("nft", "flush", "ruleset")
        for table in ("nat", "filter") if gone == "chains" else ("nat",) if gone != "tables" else ():
            node.tool(tool, "-t", table, "-F")
            node.tool(tool, "-t", table, "-X")
        node.run.stop()
        reconciler.reconcile(node.desired_state())
        node.run.resume()
        assert sorted(node.ruleset().splitlines()) == sorted(before.splitlines())


def test_a_base_chain_of_another_priority_is_left_to_the_tool(node: Node, family: Family) -> None:
    node.configure("", backend="iptables-nft")
    with node.entered():
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        node.tool("nft", "flush", "ruleset")
        base = "{ type nat hook postrouting priority 99; }"
        node.tool("nft", f"add table {family.data.nft} nat; add chain {family.data.nft} nat POSTROUTING {base}")
        before = node.ruleset()
        if "v1.8.7 " in node.tool("iptables-nft", "--version"):  # takes the chain as it is
            reconciler.reconcile(node.desired_state())
            assert "priority srcnat - 1;" in node.ruleset()
            assert "jump FLANNELD-MASQ\n" in node.ruleset()
            return
        with pytest.raises(RulesetError, match=r"hook 4, priority 99, and iptables can use.*tables-restore"):
            reconciler.reconcile(node.desired_state())
        assert node.ruleset() == before


def test_cache_learns_nothing_if_another_program_commits_too(node: Node, family: Family) -> None:
    name = "iptables-nft"
    node.configure("", backend=name)
    with node.entered():
        node.reconciler(family).reconcile(node.desired_state())
        netlink = Nfnetlink()
        table, chain = CHAINS[name][0]
        masquerade, _ = policy.group_rules(node.settings, (node.lease(),), family)
        comments = [rule.comment for rule in masquerade.rules]
        known = RuleCache(family)
        known.learn(netlink, CHAINS[name], following(netlink.generation()))
        with pytest.raises(LookupError):
            known.rules(chain, comments)
        known.learn(netlink, CHAINS[name], netlink.generation())
        assert known.rules(chain, comments) == netlink.rules(family, table, chain)
