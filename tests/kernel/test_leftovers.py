"""The daemon removes its rules where none belongs, such as those of a restored old dump, and packets stay right."""

from __future__ import annotations

import pytest

from flanneld_masq.model import Family
from flanneld_masq.selftest.topology import Topology

from ..common import eventually
from .conftest import BACKENDS, Node
from .test_forward import BY_EVENTS_ALONE, BY_RESYNC, assert_packets_pass

PAIRS = [(used, other) for used in BACKENDS for other in BACKENDS if used != other]


def old_dump(node: Node, topology: Topology, family: Family, name: str) -> str:
    """Return a dump of the backend from the time when this node had another subnet."""
    of = topology.of(family)
    file = node.directory / "old.env"
    file.write_text(of.subnet_lines(of.next_subnet))
    text = node.masq("--backend", name, "--subnet-file", str(file), "render").stdout
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def restore(node: Node, family: Family, name: str, dump: str) -> None:
    with node.entered():
        if name == "nft":
            node.run(("nft", "-f", "-"), stdin=dump)
        else:
            node.run((f"{family.data.tools}-{name.partition('-')[2]}-restore", "--noflush"), stdin=dump)


def holds_ours(node: Node, family: Family, name: str) -> bool:
    if name == "nft":
        return f"table {family.data.nft} flanneld-masq" in node.tool("nft", "list", "tables")
    return "flanneld-masq:" in node.tool(f"{family.data.tools}-{name.partition('-')[2]}-save")


def make_legacy_tables(node: Node) -> None:
    for family in Family:
        for table in ("nat", "filter"):
            node.tool(f"{family.data.tools}-legacy", "-w", "-t", table, "-S")


@pytest.fixture
def node(lab_node: Node) -> Node:
    return lab_node


@pytest.mark.parametrize(("used", "other"), PAIRS)
def test_an_old_dump_in_another_backend_is_removed(topology: Topology, node: Node, used: str, other: str) -> None:
    if other == "iptables-legacy":
        make_legacy_tables(node)
    node.configure(BY_EVENTS_ALONE, backend=used)
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:
            restore(node, of.family, other, old_dump(node, topology, of.family, other))
        for of in topology.addresses:
            eventually(lambda: not holds_ours(node, of.family, other))
            line = f"{of.family}: drift repaired with {other}"
            eventually(lambda: len(daemon.lines(line)) >= 1)
            if other != "iptables-legacy":
                program = "nft" if other == "nft" else f"{of.family.data.tools}-nft"
                assert daemon.lines(line, ", by ", program), daemon.lines(line)
        assert_packets_pass(topology, node)
        assert node.masq("plan").returncode == 0
        daemon.reached("synced")
        # each transaction of a restore may have been met by itself
        assert all(1 <= len(daemon.lines(f"{of.family}: drift repaired")) <= 2 for of in topology.addresses)


@pytest.mark.parametrize("used", BACKENDS[:2])
def test_a_resync_removes_a_dump_that_made_the_legacy_tables(topology: Topology, node: Node, used: str) -> None:
    node.configure(BY_RESYNC, backend=used)
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:
            restore(node, of.family, "iptables-legacy", old_dump(node, topology, of.family, "iptables-legacy"))
        for of in topology.addresses:
            eventually(lambda: not holds_ours(node, of.family, "iptables-legacy"))
        assert_packets_pass(topology, node)
        assert node.masq("plan").returncode == 0


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_the_other_group_of_a_backend_in_use_is_removed(topology: Topology, node: Node, flavour: str) -> None:
    """The forward group is where FORWARD drops; the nat part of an old dump does not belong there."""
    for family in Family:
        node.tool(f"{family.data.tools}-{flavour}", "-w", "-P", "FORWARD", "DROP")
        node.tool(f"{family.data.tools}-{flavour}", "-w", "-t", "nat", "-S")
    node.configure(BY_EVENTS_ALONE, backend="nft")
    name = f"iptables-{flavour}"
    with node.running() as daemon:
        daemon.reached("synced")
        for of in topology.addresses:
            dump = old_dump(node, topology, of.family, name)
            restore(node, of.family, name, dump[: dump.index("COMMIT")] + "COMMIT\n")
            table = f"{of.family.data.tools}-{flavour}-save"
            eventually(lambda: "flanneld-masq:" not in node.tool(table, "-t", "nat"))
            assert "flanneld-masq:" in node.tool(table, "-t", "filter")
        assert_packets_pass(topology, node)
        assert node.masq("plan").returncode == 0


@pytest.mark.parametrize("other", BACKENDS)
@pytest.mark.parametrize("used", BACKENDS)
def test_a_family_that_no_lease_names_has_no_rules(topology: Topology, node: Node, used: str, other: str) -> None:
    four, six = (topology.of(family) for family in Family)
    make_legacy_tables(node)
    dump = old_dump(node, topology, Family.IPV6, other)
    node.write_subnet(four.subnet_lines())
    node.configure(BY_EVENTS_ALONE, backend=used)
    restore(node, six.family, other, dump)
    with node.running() as daemon:
        daemon.reached("synced")
        eventually(lambda: not holds_ours(node, six.family, other))
        restore(node, six.family, other, dump)
        eventually(lambda: not holds_ours(node, six.family, other))
        assert node.masq("plan").returncode == 0
        node.subnet_file.unlink()
        daemon.reached("synced")
        assert holds_ours(node, four.family, used), "the rules of the last good state stay"


def test_a_file_that_was_never_read_keeps_its_family_rules(topology: Topology, node: Node) -> None:
    """After a restart nobody knows if the file that is missing names IPv6."""
    four, six = (topology.of(family) for family in Family)
    second = node.directory / "flannel" / "second.env"
    node.write_subnet(four.subnet_lines())
    second.write_text(six.subnet_lines())
    node.configure(BY_RESYNC, backend="nft")
    text = node.config_file.read_text().replace("subnet.env", 'subnet.env", "' + str(second))
    node.config_file.write_text(text)
    assert node.masq("apply").returncode == 0
    second.unlink()
    with node.running() as daemon:
        daemon.reached("synced")
        assert node.masq("plan").returncode == 0
        assert holds_ours(node, six.family, "nft")
        second.write_text(six.subnet_lines())
        eventually(lambda: not daemon.status().get("troubles"))
        assert holds_ours(node, six.family, "nft")


@pytest.mark.parametrize(("used", "other"), PAIRS[::2])
def test_apply_of_another_backend_beside_the_daemon_is_refused(node: Node, used: str, other: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend=used)
    with node.running() as daemon:
        daemon.reached("synced")
        before = node.ruleset()
        for words in (("--backend", other), ("--subnet-file", str(node.subnet_file))):
            done = node.masq(*words, "apply")
            assert (done.returncode, done.stdout) == (1, "")
            assert "nothing was changed: the daemon runs (pid" in done.stderr
        assert node.ruleset() == before
        assert not daemon.lines("drift")
    assert node.masq("--backend", other, "apply").returncode == 0
    assert not holds_ours(node, Family.IPV4, used)
