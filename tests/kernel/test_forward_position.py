"""The accept stands right before what drops every packet, and behind everything that decides by more."""

from __future__ import annotations

import re
import time

import pytest
from flanneld_masq_iptables import binaries

from flanneld_masq.model import BackendName, Family, Group, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.packets import PacketError
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import eventually, patience
from .conftest import Daemon, Node

LOST_SECONDS = 0.3  # a packet that has not arrived by then on an idle machine is lost
FLAVOURS = ("iptables-nft", "iptables-legacy")
BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\n"
OURS = "ours"
ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


@pytest.fixture
def node(lab_node: Node) -> Node:
    return lab_node


def tool(node: Node, flavour: str, family: Family, *commands: str) -> None:
    for command in commands:
        node.tool(f"{family.data.tools}-{flavour.partition('-')[2]}", "-w", *command.split())


def load(node: Node, flavour: str, family: Family, *lines: str) -> None:
    """Replace the filter table by these lines in one transaction, as a firewall does at a reload."""
    chains = dict.fromkeys(line.split()[1] for line in lines if line.startswith("-A "))
    heads = [
        f":{chain} {'ACCEPT' if chain == 'FORWARD' else '-'} [0:0]" for chain in dict.fromkeys(("FORWARD", *chains))
    ]
    text = "\n".join(["*filter", *heads, *lines, "COMMIT", ""])
    node.tool(f"{family.data.tools}-{flavour.partition('-')[2]}-restore", "-w", stdin=text)


def forward(node: Node, flavour: str, family: Family) -> list[str]:
    """The rules of FORWARD; the daemon's jump as OURS."""
    saved = node.tool(f"{family.data.tools}-{flavour.partition('-')[2]}", "-w", "-S", "FORWARD")
    rules = [line.removeprefix("-A FORWARD ") for line in saved.splitlines() if line.startswith("-A ")]
    rules = [OURS if "FLANNELD-MASQ-FWD" in rule else rule for rule in rules]
    return [re.sub(r" --reject-with \S+", "", rule) for rule in rules]


def reconcile(node: Node, flavour: str, family: Family, text: str = "") -> None:
    """Each time by another process, as it were."""
    node.configure(text, backend=flavour)
    with node.entered():
        node.reconciler(family).reconcile(node.desired_state())
        (plan, *others) = node.reconciler(family).plan(node.desired_state())
        assert not any(found.changes for found in (plan, *others)), "a repair that is repaired again"


def crosses(
    topology: Topology, of: Addresses, *, remote: bool = False, deadline: float = patience(LOST_SECONDS)
) -> bool:
    receiver, destination = (topology.remote, of.remote_pod) if remote else (topology.outside, of.far)
    try:
        packets.udp(topology.pod, receiver, Packet(of.pod, destination), deadline=deadline)
    except PacketError:
        return False
    return True


def of_family(topology: Topology, family: Family) -> Addresses:
    return next(of for of in topology.addresses if of.family is family)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("rules", "place"),
    [
        pytest.param([f"-A FORWARD {ESTABLISHED}", "-A FORWARD -j REJECT"], 1, id="a reject at the end"),
        pytest.param(["-A FORWARD -j DROP"], 0, id="a drop alone"),
        pytest.param(["-A FORWARD -m comment --comment all -j DROP"], 0, id="a comment is no condition"),
        pytest.param(["-A FORWARD -i nosuch0 -j DROP"], 1, id="an interface is one"),
        pytest.param(
            ["-A FORWARD -i + -g X", "-A X -o + -j DROP"], 0, id="any interface is none, as firewalld writes it"
        ),
        pytest.param(["-A FORWARD -m mark --mark 0x7 -j DROP"], 1, id="a match is one"),
        pytest.param(["-A FORWARD -p tcp -j DROP"], 1, id="a protocol is one"),
        pytest.param(["-A FORWARD -j X", f"-A X {ESTABLISHED}", "-A X -j REJECT"], 0, id="in a chain behind accepts"),
        pytest.param(["-A FORWARD -g X", "-A X -j DROP"], 0, id="in a chain that is gone to"),
        pytest.param(["-A FORWARD -j X", "-A X -j Y", "-A Y -j Z", "-A Z -j DROP"], 0, id="in a chain of a chain"),
        pytest.param(["-A FORWARD -i nosuch0 -j X", "-A X -j DROP"], 1, id="in a chain by a condition"),
        pytest.param(
            ["-A FORWARD -j X", "-A X -i nosuch0 -j RETURN", "-A X -j DROP", "-A FORWARD -j Y", "-A Y -j DROP"],
            1,
            id="in a chain that some return from",
        ),
        pytest.param(
            ["-A FORWARD -j X", "-A X -i nosuch0 -j DROP", "-A FORWARD -j REJECT"], 1, id="a policy, then a reject"
        ),
        pytest.param(
            ["-A FORWARD -j X", "-A X -i nosuch0 -j DROP", "-A X -j DROP"], 1, id="a chain that decides by more"
        ),
    ],
)
def test_the_jump_stands_right_before_the_first_drop_of_all(
    node: Node, family: Family, flavour: str, rules: list[str], place: int
) -> None:
    load(node, flavour, family, *rules)
    foreign = forward(node, flavour, family)
    for _ in range(2):
        reconcile(node, flavour, family)
        assert forward(node, flavour, family) == [*foreign[:place], OURS, *foreign[place:]]
    for position, where in (("first", 0), ("last", len(foreign)), ("auto", place)):
        reconcile(node, flavour, family, f'[forward]\nposition = "{position}"')
        assert forward(node, flavour, family) == [*foreign[:where], OURS, *foreign[where:]]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("chained", [False, True])
def test_pods_cross_a_node_whose_forward_chain_ends_in_a_reject(
    topology: Topology, node: Node, flavour: str, chained: bool
) -> None:
    for family in Family:
        end = ("-A FORWARD -j FW", "-A FW -j REJECT") if chained else ("-A FORWARD -j REJECT",)
        load(node, flavour, family, f"-A FORWARD {ESTABLISHED}", *end)
    assert not any(crosses(topology, of, deadline=LOST_SECONDS) for of in topology.addresses)
    node.configure(BY_EVENTS_ALONE)
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:
            assert crosses(topology, of)
            assert crosses(topology, of, remote=True)
            groups = daemon.status()["families"][str(of.family)]["groups"]
            assert groups["forward"]["backend"] == flavour
            assert "has a rule that drops every packet" in groups["forward"]["why"]
            assert "also" not in groups["forward"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_policies_decide_first_whenever_they_come(topology: Topology, node: Node, flavour: str) -> None:
    node.configure(BY_EVENTS_ALONE)
    for family in Family:
        tool(node, flavour, family, "-P FORWARD DROP", "-N POLICY")
        of = of_family(topology, family)
        tool(node, flavour, family, f"-A POLICY -s {of.pod} -d {of.remote_pod} -j DROP")
    with node.running() as daemon:
        daemon.reached("synced")
        assert all(crosses(topology, of, remote=True) for of in topology.addresses)
        for add in ("-A FORWARD -j POLICY", "-I FORWARD -j POLICY", "-I FORWARD 2 -j POLICY"):
            for family in Family:
                tool(node, flavour, family, "-D FORWARD -j POLICY" if add != "-A FORWARD -j POLICY" else "-L -n", add)
            for of in topology.addresses:
                eventually(lambda of=of: forward(node, flavour, of.family) == ["-j POLICY", OURS])  # type: ignore[misc]
                assert not crosses(topology, of, remote=True, deadline=LOST_SECONDS)
                assert crosses(topology, of)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("target", ["-j ACCEPT", "-j RETURN", "-g X"])
def test_a_rule_with_our_tag_hides_nothing_that_drops(node: Node, family: Family, flavour: str, target: str) -> None:
    """The pass removes it. The group must be in its place then, for no event of another program follows."""
    tagged = f"-A FORWARD -m comment --comment flanneld-masq:0123456789ab {target}"
    load(node, flavour, family, tagged, "-A FORWARD -j DROP", "-A X -j ACCEPT")
    node.configure("", backend="nft")
    with node.entered():
        reconciler = node.reconciler(family)
        choices = reconciler.reconcile(node.desired_state()).choices
        assert [choice.backend for choice in choices[Group.FORWARD]] == [flavour]
        assert not any(plan.changes for plan in reconciler.plan(node.desired_state()))
    assert forward(node, flavour, family) == [OURS, "-j DROP"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_any_order_of_events_gives_the_same_ruleset(node: Node, family: Family, flavour: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend=flavour)
    commands = (
        "-N P",
        "-A P -i nosuch0 -j DROP",
        "-A FORWARD -j P",
        "-A FORWARD -i nosuch1 -j DROP",
        "-A FORWARD -j DROP",
    )
    foreign = ["-j P", "-i nosuch1 -j DROP", "-j DROP"]
    wanted = [*foreign[:2], OURS, foreign[2]]
    for before in range(len(commands) + 1):
        tool(node, flavour, family, *commands[:before])
        with node.running() as daemon:
            daemon.reached("synced", family)
            tool(node, flavour, family, *commands[before:])
            eventually(lambda: forward(node, flavour, family) == wanted)
            tool(node, flavour, family, "-D FORWARD -j DROP")
            eventually(lambda: forward(node, flavour, family) == [*foreign[:2], OURS])
            tool(node, flavour, family, "-I FORWARD -j DROP")
            eventually(lambda: forward(node, flavour, family) == [OURS, "-j DROP", *foreign[:2]])
            daemon.stop()
        node.masq("--backend", flavour, "cleanup")
        tool(node, flavour, family, "-F", "-X")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_chain_that_begins_to_drop_is_noticed(node: Node, family: Family, flavour: str) -> None:
    """The event is in the other chain alone."""
    node.configure(BY_EVENTS_ALONE, backend=flavour)
    tool(node, flavour, family, "-N X", "-A FORWARD -j X", "-A FORWARD -i nosuch0 -j DROP")
    with node.running() as daemon:
        daemon.reached("synced", family)
        assert forward(node, flavour, family) == ["-j X", "-i nosuch0 -j DROP", OURS]
        tool(node, flavour, family, "-A X -j DROP")
        eventually(lambda: forward(node, flavour, family) == [OURS, "-j X", "-i nosuch0 -j DROP"])
        tool(node, flavour, family, "-F X")
        eventually(lambda: forward(node, flavour, family) == ["-j X", "-i nosuch0 -j DROP", OURS])


def test_both_flavours_get_the_accept_if_both_drop(topology: Topology, node: Node) -> None:
    for family in Family:
        for flavour in FLAVOURS:
            tool(node, flavour, family, "-P FORWARD DROP")
    node.configure(BY_EVENTS_ALONE)
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:
            assert crosses(topology, of)
            forward_group = daemon.status()["families"][str(of.family)]["groups"]["forward"]
            assert forward_group["backend"] == "iptables-nft"
            (also,) = forward_group["also"]
            assert (also["backend"], also["rules"]) == ("iptables-legacy", forward_group["rules"])
            assert also["why"] == "chain FORWARD of legacy table filter has policy DROP"
            tool(node, "iptables-nft", of.family, "-F FORWARD")
            eventually(lambda of=of: crosses(topology, of))  # type: ignore[misc]
        for family in Family:
            tool(node, "iptables-nft", family, "-P FORWARD ACCEPT")
            eventually(lambda family=family: forward(node, "iptables-nft", family) == [])  # type: ignore[misc]
        assert all(crosses(topology, of) for of in topology.addresses)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_drop_that_is_back_within_a_moment_moves_nothing(node: Node, family: Family, flavour: str) -> None:
    """As at a reload of ufw. It leaves where nothing drops for longer."""
    tool(node, flavour, family, "-P FORWARD DROP")
    node.configure(BY_EVENTS_ALONE, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced", family)
        assert forward_backend(daemon, family) == flavour
        before = daemon.lines()
        for _ in range(3):
            tool(node, flavour, family, "-P FORWARD ACCEPT", "-N X", "-X X", "-P FORWARD DROP")
        tool(node, flavour, family, "-A FORWARD -i nosuch0 -j DROP")
        eventually(lambda: forward(node, flavour, family) == ["-i nosuch0 -j DROP", OURS])
        moves = [line for line in daemon.lines(str(family)) if line not in before and "jump was moved" not in line]
        assert not moves
        tool(node, flavour, family, "-P FORWARD ACCEPT")
        eventually(lambda: forward_backend(daemon, family) == "nft")
        assert forward(node, flavour, family) == ["-i nosuch0 -j DROP"]


@pytest.mark.parametrize("tables", [True, False])
def test_a_drop_that_begins_in_legacy_is_noticed_within_a_second(
    topology: Topology, node: Node, family: Family, tables: bool
) -> None:
    of = of_family(topology, family)
    if tables:
        tool(node, "iptables-legacy", family, "-P FORWARD ACCEPT")
    node.configure(BY_EVENTS_ALONE)
    with node.running() as daemon:
        daemon.reached("synced")
        assert crosses(topology, of)
        for command in ("-P FORWARD DROP", "-A FORWARD -j REJECT"):
            tool(node, "iptables-legacy", family, command)
            began = time.monotonic()
            eventually(lambda: OURS in forward(node, "iptables-legacy", family))
            assert time.monotonic() - began < 1.5, "and a busy machine's time"
            assert crosses(topology, of)
            tool(node, "iptables-legacy", family, "-F FORWARD", "-P FORWARD ACCEPT")
            eventually(lambda: forward_backend(daemon, family) == "nft")


def test_every_pass_notices_the_policy_of_a_large_legacy_table(node: Node, family: Family) -> None:
    """A policy alone changes neither the size of a table nor the number of its entries, so the poll does not see it."""
    load(node, "iptables-legacy", family, *(f"-A X -p tcp --dport {port} -j ACCEPT" for port in range(1, 1001)))
    node.configure("")
    with node.entered():
        reconciler = node.reconciler(family)
        for policy, backend in (("ACCEPT", "nft"), ("DROP", "iptables-legacy"), ("ACCEPT", "nft")):
            tool(node, "iptables-legacy", family, f"-P FORWARD {policy}")
            outcome = reconciler.reconcile(node.desired_state())
            assert [choice.backend for choice in outcome.choices[Group.FORWARD]] == [backend]


def test_legacy_is_not_touched_where_it_has_no_tables(node: Node) -> None:
    node.configure("[reconcile]\nlegacy_poll_seconds = 0.05\n")
    with node.running() as daemon:
        daemon.reached("synced")
        for repairs in (1, 2, 3):  # each in a pass that reads all backends
            node.tool("nft", "flush", "chain", "ip", "flanneld-masq", "postrouting")
            eventually(lambda: daemon.status()["families"]["ipv4"]["repairs"] == repairs)
        assert "*filter" not in node.ruleset()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_narrow_drop_is_no_evidence(node: Node, family: Family, flavour: str) -> None:
    tool(node, flavour, family, "-A FORWARD -i nosuch0 -j DROP")
    with node.entered():
        assert node.backends(family)[BackendName(flavour)].drops_forwarding() == ""


def test_a_dormant_table_drops_nothing(node: Node, family: Family) -> None:
    table = f"{family.data.nft} filter"
    hook = "{ type filter hook forward priority 0; policy drop; }"
    node.tool("nft", f"add table {table} {{ flags dormant; }}; add chain {table} FORWARD {hook}")
    node.configure(BY_EVENTS_ALONE)
    with node.running() as daemon:
        daemon.reached("synced", family)
        assert forward_backend(daemon, family) == "nft"
        node.tool("nft", f"add table {table}")
        eventually(lambda: forward_backend(daemon, family) == "iptables-nft")


def test_a_drop_beyond_any_accept_is_named_with_its_package(
    node: Node, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(node, "iptables-nft", family, "-P FORWARD DROP")
    monkeypatch.setattr(binaries, "_NAMES", ())
    node.configure("")
    with node.entered():
        reconciler = node.reconciler(family)
        outcome = reconciler.reconcile(node.desired_state())
        assert [choice.backend for choice in outcome.choices[Group.FORWARD]] == ["nft"]
        assert node.tool("nft", f"list chain {family.data.nft} flanneld-masq postrouting")
    (unhelped,) = outcome.unhelped
    assert unhelped.startswith(f"chain FORWARD of table {family.data.nft} filter has policy drop")
    assert "install the package iptables" in unhelped


def forward_backend(daemon: Daemon, family: Family) -> str:
    return str(daemon.status()["families"][str(family)]["groups"]["forward"]["backend"])
