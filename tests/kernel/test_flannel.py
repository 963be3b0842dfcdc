"""Rules of flannel and the CNI plugins: the daemon recognises them, and removes flannel's only when asked."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator

import pytest

from flanneld_masq.model import BackendName, Family

from ..common import eventually
from .conftest import BACKENDS, SUBNET_ENV, Daemon, Node

FLAVOURS = ("nft", "legacy")
CLUSTER = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:10:244::/56"}
PODS = {Family.IPV4: "10.244.1.0/24", Family.IPV6: "fd00:10:244:1::/64"}
OTHER = {Family.IPV4: "10.99.0.0/16", Family.IPV6: "fd00:99::/56"}
MASQ, FORWARD = '-m comment --comment "flanneld masq" ', '-m comment --comment "flanneld forward" '
BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 0.05\n"
TAKEOVER = BY_EVENTS_ALONE + "[takeover]\nremove_flannel_rules = true\n"

# ---- flannel's rules, by generation


def chains(family: Family, *, random: str = " --random-fully") -> str:
    """Releases since 0.20, for iptables-restore --noflush."""
    cluster, pods, multicast = CLUSTER[family], PODS[family], family.data.multicast
    return f"""\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {MASQ}-j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {MASQ}-j RETURN
-A FLANNEL-POSTRTG -s {pods} -d {cluster} {MASQ}-j RETURN
-A FLANNEL-POSTRTG -s {cluster} -d {pods} {MASQ}-j RETURN
-A FLANNEL-POSTRTG ! -s {cluster} -d {pods} {MASQ}-j RETURN
-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} {MASQ}-j MASQUERADE{random}
-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} {MASQ}-j MASQUERADE{random}
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD {FORWARD}-j FLANNEL-FWD
-A FLANNEL-FWD -s {cluster} {FORWARD}-j ACCEPT
-A FLANNEL-FWD -d {cluster} {FORWARD}-j ACCEPT
COMMIT
"""


def flat(family: Family, *, masq: str = "", forward: str = "", random: str = "", cluster: str = "") -> str:
    """Releases before 0.20; since 0.17 with a comment."""
    cluster, pods, multicast = cluster or CLUSTER[family], PODS[family], family.data.multicast
    return f"""\
*nat
-A POSTROUTING -s {cluster} -d {cluster} {masq}-j RETURN
-A POSTROUTING -s {cluster} ! -d {multicast} {masq}-j MASQUERADE{random}
-A POSTROUTING ! -s {cluster} -d {pods} {masq}-j RETURN
-A POSTROUTING ! -s {cluster} -d {cluster} {masq}-j MASQUERADE{random}
COMMIT
*filter
-A FORWARD -s {cluster} {forward}-j ACCEPT
-A FORWARD -d {cluster} {forward}-j ACCEPT
COMMIT
"""


GENERATIONS: dict[str, Callable[[Family], str]] = {
    "chains": chains,
    "chains without random-fully": lambda family: chains(family, random=""),
    "flat": lambda family: flat(family, masq=MASQ, forward=FORWARD, random=" --random-fully"),
    "flat without random-fully": lambda family: flat(family, masq=MASQ, forward=FORWARD),
    "flat without comment": lambda family: flat(family, random=" --random-fully"),
    "flat without comment and random-fully": flat,
}


def tables(family: Family) -> str:
    """Its nftables mode, for nft."""
    name, cluster, pods = family.data.nft, CLUSTER[family], PODS[family]
    return f"""\
table {name} flannel-{family} {{
  comment "rules for flannel";
  chain postrtg {{
    comment "chain to manage traffic masquerading by flannel";
    type nat hook postrouting priority srcnat;
    meta mark 0x4000 return
    {name} saddr {pods} {name} daddr {cluster} return
    {name} saddr {cluster} {name} daddr {pods} return
    {name} saddr != {pods} {name} daddr {cluster} return
    {name} saddr {cluster} {name} daddr != {family.data.multicast} masquerade fully-random
  }}
  chain forward {{
    type filter hook forward priority filter;
    {name} saddr {cluster} accept
    {name} daddr {cluster} accept
  }}
}}
"""


def restore(node: Node, flavour: str, rules: Callable[[Family], str]) -> None:
    for family in Family:
        node.tool(f"{family.data.tools}-{flavour}-restore", "--noflush", "--wait", stdin=rules(family))


def load(node: Node, rules: Callable[[Family], str]) -> None:
    node.tool("nft", "-f", "-", stdin="".join(map(rules, Family)))


# ---- the rules of others, some much like flannel's


def foreign(family: Family, name: str) -> str:
    """Those of `name` are told from those of another name by it."""
    cluster, pods, other = CLUSTER[family], PODS[family], OTHER[family]
    return f"""\
*nat
:FLANNEL-{name} - [0:0]
-A POSTROUTING -s {cluster} -d {other} -m comment --comment "{name}" -j RETURN
-A POSTROUTING -s {cluster} -d {cluster} -m comment --comment "flanneld masq {name}" -j RETURN
-A POSTROUTING -s {cluster} -d {cluster} -m mark --mark 1 -j RETURN
-A POSTROUTING -s {cluster} -d {cluster} -j ACCEPT
-A POSTROUTING -s {cluster} ! -d {other} -j MASQUERADE
-A POSTROUTING -s {pods} ! -d {family.data.multicast} -j MASQUERADE
-A POSTROUTING -d {cluster} -j RETURN
-A POSTROUTING -m comment --comment "{name}" -j FLANNEL-{name}
-A FLANNEL-{name} -s {cluster} -d {cluster} -j RETURN
-A PREROUTING -s {cluster} -d {cluster} -m comment --comment "flanneld {name}" -j RETURN
COMMIT
*filter
-A FORWARD -s {cluster} -m comment --comment "{name}" -j ACCEPT
-A FORWARD -s {cluster} -d {cluster} -j ACCEPT
-A FORWARD ! -s {cluster} -j ACCEPT
-A FORWARD -d {cluster} -j RETURN
-A INPUT -s {cluster} -j ACCEPT
COMMIT
"""


def add_foreign(node: Node, name: str) -> None:
    for flavour in FLAVOURS:
        restore(node, flavour, lambda family: foreign(family, name) + flat(family, cluster=OTHER[family]))
    load(
        node,
        lambda family: (
            f"table {family.data.nft} flannel-{name} {{ chain postrtg {{ }}; }}\n"
            f"table inet flannel-{family} {{ chain {name} {{ }}; }}\n"
        ),
    )


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ruleset of a node with the rules of others alone."""
    node = Node("untouched", tmp_path_factory.mktemp("untouched"))
    add_foreign(node, "BEFORE")
    add_foreign(node, "AFTER")
    yield node.ruleset()
    node.close()


Around = Callable[[Callable[[Node], None]], Node]


@pytest.fixture
def around(make_node: Callable[[], Node]) -> Around:
    """Makes a node with rules of others before and after those that are put in."""

    def build(put_in: Callable[[Node], None]) -> Node:
        node = make_node()
        add_foreign(node, "BEFORE")
        put_in(node)
        add_foreign(node, "AFTER")
        return node

    return build


def assert_cleans_up(node: Node, expected: str) -> None:
    assert node.ruleset() != expected
    cleaned = node.masq("cleanup", "--flannel")
    assert cleaned.returncode == 0, cleaned.stderr
    assert node.ruleset() == expected


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_cleanup_removes_each_generation_and_nothing_else(
    around: Around, untouched: str, generation: str, flavour: str
) -> None:
    node = around(lambda node: restore(node, flavour, GENERATIONS[generation]))
    assert_cleans_up(node, untouched)


def test_cleanup_removes_the_tables_of_the_nftables_mode(around: Around, untouched: str) -> None:
    node = around(lambda node: load(node, tables))
    assert_cleans_up(node, untouched)


def put_all(node: Node) -> None:
    """Every generation in every flavour, half deleted in one of them, as years of upgrades leave it."""
    for flavour in FLAVOURS:
        for generation in GENERATIONS.values():
            restore(node, flavour, generation)
        node.tool(f"iptables-{flavour}", "-w", "-t", "nat", "-F", "FLANNEL-POSTRTG")
    node.tool("ip6tables-nft", "-w", "-F", "FLANNEL-FWD")
    load(node, tables)


def test_cleanup_removes_all_of_them_at_once_and_ours_too(around: Around, untouched: str) -> None:
    node = around(put_all)
    for backend in BACKENDS:
        assert node.masq("--backend", backend, "apply").returncode == 0
    assert_cleans_up(node, untouched)
    assert "there was nothing to remove" in node.masq("cleanup", "--flannel").stdout


def test_cleanup_without_flannel_leaves_its_rules_alone(node: Node) -> None:
    put_all(node)
    before = node.ruleset()
    assert node.masq("apply").returncode == 0
    assert node.masq("cleanup").returncode == 0
    assert node.ruleset() == before


def test_rules_without_a_comment_are_known_by_the_lease_alone(node: Node) -> None:
    restore(node, "nft", flat)
    before = node.ruleset()
    restore(node, "nft", chains)
    node.subnet_file.unlink()
    cleaned = node.masq("cleanup", "--flannel")
    assert cleaned.returncode == 0
    assert "cannot search for rules of old flannel releases" in cleaned.stderr
    assert node.ruleset() == before


# ---- the daemon


@pytest.mark.parametrize("name", BACKENDS)
def test_the_daemon_takes_over_once_ours_are_in_place(around: Around, untouched: str, name: str) -> None:
    node = around(put_all)
    node.configure(TAKEOVER, backend=name)
    with node.running() as daemon:
        for backend in BACKENDS:
            for family in Family:
                daemon.logged(f"{family}: ", "objects that flannel had written removed from", backend)
        daemon.reached("synced")
        for family in Family:
            lines = daemon.lines(f"{family}: ")
            applied, removed = (
                next(number for number, line in enumerate(lines) if words in line)
                for words in ("rules applied", "objects that flannel had written")
            )
            assert applied < removed
            assert daemon.status()["families"][str(family)]["flannel_rules"] == []
            assert daemon.status()["families"][str(family)]["repairs"] == 0
        assert daemon.stop() == 0
    assert node.masq("plan").returncode == 0
    assert node.masq("cleanup").returncode == 0
    assert node.ruleset() == untouched


def test_they_stay_and_are_reported_unless_the_daemon_is_told(node: Node) -> None:
    node.configure(BY_EVENTS_ALONE, backend="nft")
    put_all(node)
    before = node.ruleset()
    with node.running() as daemon:
        daemon.reached("synced")
        for family in Family:
            eventually(lambda: survey(daemon, family, "flannel_rules") == list(BACKENDS))
        assert daemon.stop() == 0
    assert node.masq("cleanup").returncode == 0
    assert node.ruleset() == before


def survey(daemon: Daemon, family: Family, what: str) -> list[str]:
    return list(daemon.status()["families"][str(family)][what])


def lines_of(family: Family, table: str) -> list[str]:
    """Flannel's rules of one table, with the jump."""
    text = chains(family).split(f"*{table}\n")[1].split("COMMIT")[0]
    return [line for line in text.splitlines() if line.startswith("-A ")]


def check(node: Node, flavour: str) -> None:
    """Ask for each rule, as flanneld does every five seconds."""
    for family in Family:
        for table in ("nat", "filter"):
            for line in lines_of(family, table):
                node.tool(
                    f"{family.data.tools}-{flavour}", "-w", "-t", table, *shlex.split(line.replace("-A", "-C", 1))
                )


def rewrite(node: Node, flavour: str, tables: tuple[str, ...] = ("nat", "filter")) -> None:
    """Delete and append all rules, as flanneld does when it believes that one is missing."""
    for family in Family:
        for table in tables:
            lines = lines_of(family, table)
            text = "\n".join([f"*{table}", *(line.replace("-A", "-D", 1) for line in lines), *lines, "COMMIT", ""])
            node.tool(f"{family.data.tools}-{flavour}-restore", "--noflush", "--wait", stdin=text)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", BACKENDS)
def test_beside_a_flanneld_that_masquerades_both_stay(node: Node, name: str, flavour: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    node.write_subnet(SUBNET_ENV.replace("FLANNEL_IPMASQ=false", "FLANNEL_IPMASQ=true"))
    with node.running() as daemon:
        daemon.reached("synced")
        restore(node, flavour, chains)
        check(node, flavour)
        assert_in_order(node, daemon)
        for family in Family:  # where flannel appends to FORWARD behind the daemon's jump, the jump goes last again
            assert daemon.status()["families"][str(family)]["repairs"] <= (name == f"iptables-{flavour}")
        assert len(daemon.lines("FLANNEL_IPMASQ=true")) == 1
        for _ in range(3):
            rewrite(node, flavour)
        assert_in_order(node, daemon)
        assert not daemon.lines("keeps undoing the daemon's rules")
        check(node, flavour)
        assert daemon.stop() == 0
    for family in Family:
        for table, chain in (("nat", "FLANNEL-POSTRTG"), ("filter", "FLANNEL-FWD")):
            saved = node.tool(f"{family.data.tools}-{flavour}-save", "-t", table)
            found = [line for line in saved.splitlines() if line.startswith("-A ") and chain in line]
            assert sorted(found) == sorted(lines_of(family, table))


@contextlib.contextmanager
def rewritten(node: Node, name: str, flavour: str, *tables: str) -> Iterator[Daemon]:
    """A daemon that has seen flanneld rewrite its rules in these tables three times."""
    restore(node, flavour, chains)
    node.configure(BY_EVENTS_ALONE, backend=name)
    with node.running() as daemon:
        daemon.reached("synced")
        for _ in range(3):
            rewrite(node, flavour, tables)
            assert_in_order(node, daemon)
        yield daemon
        assert daemon.stop() == 0


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", BACKENDS)
def test_flanneld_that_rewrites_its_nat_rules_causes_no_drift(node: Node, name: str, flavour: str) -> None:
    """Its jump stood ahead of ours, and ends behind it."""
    with rewritten(node, name, flavour, "nat") as daemon:
        for family in Family:
            assert daemon.status()["families"][str(family)]["repairs"] == 0
        assert not daemon.lines("drift repaired") and not daemon.lines("jump was moved")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", BACKENDS)
def test_flanneld_that_rewrites_all_moves_the_forward_jump_alone(node: Node, name: str, flavour: str) -> None:
    """Where flannel appends to FORWARD behind the jump, the jump goes last again: forward.position asks for that."""
    with rewritten(node, name, flavour, "nat", "filter") as daemon:
        for line in daemon.lines("drift repaired"):
            assert "jump was moved in filter FORWARD: the daemon's jump before 1 other rule" in line
            assert "nat POSTROUTING" not in line
        for family in Family:
            assert daemon.status()["families"][str(family)]["repairs"] <= 3 * (name == f"iptables-{flavour}")


def assert_in_order(node: Node, daemon: Daemon) -> None:
    """Once a pass was made for something else, which comes after those for what happened before."""
    before = len(daemon.lines("ipv4: rules applied"))
    subnet = "10.244.9.1/24" if "10.244.1.1/24" in node.subnet_file.read_text() else "10.244.1.1/24"
    fixed = SUBNET_ENV.replace("FLANNEL_IPMASQ=false", "FLANNEL_IPMASQ=true")
    node.write_subnet(fixed.replace("10.244.1.1/24", subnet))
    eventually(lambda: len(daemon.lines("ipv4: rules applied")) > before)
    daemon.reached("synced")
    assert node.masq("plan").returncode == 0


# ---- settings that have no effect beside a flanneld that masquerades

EXCEPTED = '[masquerade]\nnon_masquerade_cidrs = ["192.168.9.0/24", "2001:db8:9::/48"]\n'
ASKED = {
    Family.IPV4: ("explain", "--ours", "--src", "10.244.1.5", "--dst", "192.168.9.2"),
    Family.IPV6: ("explain", "--ours", "--src", "fd00:10:244:1::5", "--dst", "2001:db8:9::2"),
}
WRITERS: dict[str, Callable[[Node], None]] = {
    "iptables-nft": lambda node: restore(node, "nft", chains),
    "iptables-legacy": lambda node: restore(node, "legacy", chains),
    "nft": lambda node: load(node, tables),
}


@pytest.mark.parametrize("flannel", WRITERS)
def test_settings_that_flannel_overrules_are_reported(node: Node, flannel: str) -> None:
    WRITERS[flannel](node)
    node.write_subnet(SUBNET_ENV.replace("FLANNEL_IPMASQ=false", "FLANNEL_IPMASQ=true"))
    node.configure(BY_EVENTS_ALONE + EXCEPTED, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        for family in Family:
            line = daemon.logged(f"{family}: {flannel}: masquerade.non_masquerade_cidrs has no effect")
            assert "WARNING" in line and "flannel's rule that decides: " in line
            eventually(lambda: daemon.status()["families"][str(family)].get("flannel"))
            explained = node.masq(*ASKED[family]).stdout
            assert ": masqueraded" in explained.splitlines()[0]
            assert "decided by flannel, which masquerades too: " in explained and f"in {flannel}" in explained
            assert "decided by row 4" in explained
        assert not daemon.lines("agree")
        examined = node.masq("doctor")
        assert examined.returncode == 1
        assert "masquerade.non_masquerade_cidrs has no effect" in examined.stdout
        assert "agree" not in examined.stdout
        assert "masquerade.non_masquerade_cidrs has no effect" in node.masq("status").stdout
        assert daemon.stop() == 0


@pytest.mark.parametrize("flannel", WRITERS)
def test_rules_are_vouched_for_only_if_they_were_read(node: Node, flannel: str) -> None:
    node.write_subnet(SUBNET_ENV.replace("FLANNEL_IPMASQ=false", "FLANNEL_IPMASQ=true"))
    node.configure("[reconcile]\nresync_seconds = 1\n", backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        examined = node.masq("doctor").stdout
        assert "none of its masquerade rules is there" in examined and "agree" not in examined
        assert not daemon.lines("agree")
        WRITERS[flannel](node)
        said = "masquerade less than the policy" if flannel == "nft" else "were read and agree with the policy"
        for family in Family:
            daemon.logged(f"{family}: {flannel}: flannel's", said)
        assert said in node.masq("doctor").stdout
        assert not daemon.lines("WARNING", "flannel")
        assert daemon.stop() == 0


def test_chain_in_the_wrong_order_is_a_problem(node: Node) -> None:
    rule = f"-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 {MASQ}-j MASQUERADE\n"
    text = chains(Family.IPV4).replace("-A FLANNEL-POSTRTG -m mark", f"{rule}-A FLANNEL-POSTRTG -m mark")
    node.tool("iptables-nft-restore", "--noflush", stdin=text)
    examined = node.masq("doctor")
    assert examined.returncode == 1
    assert "packets from pods of this node to pods get the node's address" in examined.stdout
    assert "FLANNEL-POSTRTG" in examined.stdout


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_takeover_gives_up_on_a_flanneld_that_writes_again(node: Node, family: Family, flavour: str) -> None:
    """After three removals, or two: a tool writes table by table, and on a busy machine a survey may come between."""
    gave_up = "came back after each of 3 removals"
    node.configure(TAKEOVER.replace("3600", "1"), backend="nft")

    def removed() -> int:
        lines = daemon.lines(f"{family}: ", "objects that flannel had written removed")
        return sum(int(line.split(f"{family}: ")[1].split()[0]) for line in lines)

    with node.running() as daemon:
        daemon.reached("synced")
        written = 0
        while not daemon.lines("WARNING", f"{family}: flannel's rules {gave_up}"):
            assert written < 4 * 12
            node.tool(f"{family.data.tools}-{flavour}-restore", "--noflush", "--wait", stdin=chains(family))
            written += 12
            eventually(lambda: removed() == written or daemon.lines(gave_up))
        assert removed() < written
        before, passed = node.ruleset(), removed()
        assert gave_up in node.masq("status").stdout
        examined = node.masq("doctor")
        assert examined.returncode == 1 and gave_up in examined.stdout
        assert len(daemon.lines(gave_up)) == 1
        assert (node.ruleset(), removed()) == (before, passed)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: removed() == written)
        assert daemon.stop() == 0


@pytest.mark.parametrize("generation", [*GENERATIONS, "nftables"])
def test_cleanup_beside_the_daemon_removes_flannels_rules_alone(node: Node, generation: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend="nft")
    add_foreign(node, "BEFORE")
    with node.running() as daemon:
        daemon.reached("synced")
        before = node.ruleset()
        if generation in GENERATIONS:
            for flavour in FLAVOURS:
                restore(node, flavour, GENERATIONS[generation])
        else:
            load(node, tables)
        cleaned = node.masq("cleanup", "--flannel")
        assert cleaned.returncode == 0, cleaned.stderr
        assert "the daemon runs" in cleaned.stderr and "flannel's" in cleaned.stdout
        assert node.ruleset() == before
        assert not daemon.lines("drift repaired")
        refused = node.masq("cleanup")
        assert refused.returncode == 1 and "stop it first" in refused.stderr
        assert node.ruleset() == before
        assert node.masq("plan").returncode == 0
        assert daemon.stop() == 0


# ---- the CNI plugins


def bridge(family: Family) -> str:
    """Return the rules that the bridge plugin writes for one pod when `ipMasq` is on."""
    pod, pods = PODS[family].replace("0/24", "5").replace("::/64", "::5"), PODS[family]
    comment = '-m comment --comment "name: \\"cbr0\\" id: \\"0123456789abcdef\\""'
    chain = "CNI-1f2e3d4c5b6a79881706f5e4"
    return f"""\
*nat
:{chain} - [0:0]
-A POSTROUTING -s {pod} {comment} -j {chain}
-A {chain} -d {pods} {comment} -j ACCEPT
-A {chain} ! -d {family.data.multicast} {comment} -j MASQUERADE
COMMIT
"""


def host_ports(family: Family) -> str:
    """Return rules of the portmap plugin, which the bridge plugin does not write."""
    return """\
*nat
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
"""


def plugin_table(_: Family) -> str:
    return "table inet cni_plugins_masquerade { chain masq_checks { }; }\n"


FOUND = {
    "nft": "chain CNI-1f2e3d4c5b6a79881706f5e4 of table {} nat",
    "legacy": "-j CNI-1f2e3d4c5b6a79881706f5e4 of legacy table nat",
    "table": "table inet cni_plugins_masquerade",
}


@pytest.mark.parametrize("look", ["reload", "resync"])
@pytest.mark.parametrize("where", FOUND)
def test_masquerade_of_the_bridge_plugin_is_shown_until_its_end(node: Node, where: str, look: str) -> None:
    """The pods come after the daemon: at boot there are none."""
    node.configure(BY_EVENTS_ALONE if look == "reload" else "[reconcile]\nresync_seconds = 1", backend="nft")
    for flavour in FLAVOURS:
        restore(node, flavour, host_ports)
    with node.running() as daemon:
        daemon.reached("synced")
        if where == "table":
            load(node, plugin_table)
        else:
            restore(node, where, bridge)
        if look == "reload":
            daemon.signal(signal.SIGHUP)
        for family in Family:
            (found,) = eventually(lambda: survey(daemon, family, "cni_masquerade"))
            assert FOUND[where].format(family.data.nft) in found
            line = daemon.logged(f"WARNING {family}: the CNI bridge plugin masquerades too", found)
            assert '"ipMasq": false' in line
        for family in Family:
            if where == "table":
                node.tool("nft", "add table inet cni_plugins_masquerade; delete table inet cni_plugins_masquerade")
            else:
                node.tool(f"{family.data.tools}-{where}", "-w", "-t", "nat", "-F", "POSTROUTING")
        if look == "reload":
            daemon.signal(signal.SIGHUP)
        for family in Family:
            eventually(lambda: survey(daemon, family, "cni_masquerade") == [])
        assert len(daemon.lines("the CNI bridge plugin masquerades too")) == len(Family)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_bridge_plugin_may_masquerade_other_containers(node: Node, flavour: str) -> None:
    """podman's, say."""
    sources = {Family.IPV4: "10.88.0.5", Family.IPV6: "fd00:88::5"}
    chain = "CNI-1f2e3d4c5b6a79881706f5e4"
    restore(
        node,
        flavour,
        lambda family: f"*nat\n:{chain} - [0:0]\n-A POSTROUTING -s {sources[family]} -j {chain}\nCOMMIT\n",
    )
    with node.entered():
        for family in Family:
            lease = node.lease().of(family)
            assert lease is not None
            found = node.backends(family)[BackendName(f"iptables-{flavour}")].survey((lease,))
            assert (found.flannel, found.cni_masquerade) == ((), "")


@pytest.mark.parametrize("pods", [False, True])
def test_the_bridge_plugin_table_may_be_for_other_networks(node: Node, family: Family, pods: bool) -> None:
    """nerdctl's, say."""
    other, ip = {Family.IPV4: ("198.18.0.5", "ip"), Family.IPV6: ("fd00:88::5", "ip6")}[family]
    sources = [other, PODS[family].replace("0/24", "5").replace("::/64", "::5")][: 1 + pods]
    rules = "".join(f"{ip} saddr {one} {ip} daddr != {one} masquerade\n" for one in sources)
    node.tool("nft", "-f", "-", stdin=f"table inet cni_plugins_masquerade {{ chain masq_checks {{\n{rules}}}; }}\n")
    lease = node.lease().of(family)
    assert lease is not None
    with node.entered():
        found = node.backends(family)[BackendName("nft")].survey((lease,))
    assert found.cni_masquerade == ("table inet cni_plugins_masquerade" if pods else "")


def test_host_ports_of_the_cni_plugins_are_no_such_masquerade(node: Node) -> None:
    node.configure(BY_EVENTS_ALONE, backend="nft")
    for flavour in FLAVOURS:
        restore(node, flavour, host_ports)
    restore(node, "nft", chains)
    with node.running() as daemon:
        daemon.reached("synced")
        for family in Family:  # the look that finds these is the one that would find the others
            eventually(lambda: survey(daemon, family, "flannel_rules") == ["iptables-nft"])
            assert survey(daemon, family, "cni_masquerade") == []
        assert not daemon.lines("CNI")
