"""Hostile states end in the right rules, or in an error with the reason; nothing of others is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from nftables import Nftables

from flanneld_masq import plugin_loader
from flanneld_masq.errors import CommandError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.model import BackendName, Family
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.state_directory import StateDirectory

from ..common import eventually
from .conftest import Node, at_once
from .mutations import Nft, add_foreign, legacy_snapshot

FLAVOURS = ("nft", "legacy")
NAT, FORWARD = "FLANNELD-MASQ", "FLANNELD-MASQ-FWD"
STALE, LIKE_OURS = "flanneld-masq:0123456789ab", "flanneld-masq: do not NAT the office"
iptables_backends = pytest.mark.parametrize("backend_name", ["iptables-nft", "iptables-legacy"], indirect=True)
iptables_nft = pytest.mark.parametrize("backend_name", ["iptables-nft"], indirect=True)


def foreign(node: Node, family: Family) -> tuple[str, ...]:
    """All that is not ours, with handles and counters. In the namespace of the calling thread."""
    return (*Nft(family).snapshot().foreign, *legacy_snapshot(family, node.run).foreign)


def foreign_rules(node: Node, family: Family) -> tuple[str, ...]:
    """Without the chains and tables, of which the tools make those that are missing."""
    return (*Nft(family).snapshot().foreign_rules, *legacy_snapshot(family, node.run).foreign_rules)


def ours(node: Node, family: Family) -> tuple[str, ...]:
    return (*Nft(family).snapshot().ours, *legacy_snapshot(family, node.run).ours)


def in_order(node: Node, reconciler: Reconciler) -> bool:
    return not any(plan.changes for plan in reconciler.plan(node.desired_state()))


def flavour_of(name: BackendName) -> str:
    return name.partition("-")[2]


def restore(node: Node, family: Family, flavour: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in (*lines, "COMMIT"))
    node.run((f"{family.data.tools}-{flavour}-restore", "--noflush"), stdin=text)


# ---- tools that lie

WRAPPER = """\
#!/bin/bash
# every check and every deletion fails, as iptables-nft's do in a state that it misreads
name=$(basename "$0")
echo "$name $*" >> {log}
case $name in *legacy*) program={legacy};; *) program={nft};; esac
for word in "$@"; do
    case $word in -C|-D|--check|--delete) echo "iptables: Bad rule (does a matching rule exist in that chain?)." >&2
        exit 1;; esac
done
case "$name $1" in
*restore*)
    input=$(cat)
    if grep -qE '^-(C|D) ' <<< "$input"; then
        echo "$name: line 8 failed: Bad rule (does a matching rule exist in that chain?)." >&2
        exit 1
    fi
    exec -a "$name" $program "$@" <<< "$input";;
esac
exec -a "$name" $program "$@"
"""
WRAPPED = [
    f"{tool}{flavour}{what}"
    for tool in ("iptables", "ip6tables")
    for flavour in ("", "-nft", "-legacy")
    for what in ("", "-restore", "-save")
]


@pytest.fixture
def lying_path(tmp_path: Path) -> tuple[Path, Path]:
    """A directory of wrappers, and the log of their calls."""
    directory, log = tmp_path / "lying", tmp_path / "calls"
    directory.mkdir()
    text = WRAPPER.format(log=log, legacy="/usr/sbin/xtables-legacy-multi", nft="/usr/sbin/xtables-nft-multi")
    for name in (*WRAPPED, "xtables-nft-multi", "xtables-legacy-multi"):
        path = directory / name
        path.write_text(text)
        path.chmod(0o755)
    return directory, log


def test_tools_that_fail_every_check_and_deletion_change_nothing(
    make_node: Callable[[], Node], backend_name: BackendName, lying_path: tuple[Path, Path]
) -> None:
    directory, log = lying_path
    environ = {"PATH": f"{directory}:{os.environ['PATH']}"}
    plain, lied_to = make_node(), make_node()
    outcomes = []
    for node, environment in ((plain, {}), (lied_to, environ)):
        node.configure("", backend=backend_name)
        assert node.masq("apply", environ=environment).returncode == 0
        states = [node.ruleset()]
        with node.entered():
            for family in Family:
                damage(node, family, backend_name)
        assert node.masq("plan", environ=environment).returncode == 3
        assert node.masq("apply", environ=environment).returncode == 0
        states.append(node.ruleset())
        assert node.masq("cleanup", environ=environment).returncode == 0
        outcomes.append([*states, node.ruleset()])
    assert outcomes[0] == outcomes[1]
    assert not log.exists(), "the real programs were found behind the wrappers"
    with pytest.raises(CommandError, match="Bad rule"):
        lied_to.tool(str(directory / "iptables"), "-t", "nat", "-C", "POSTROUTING", "-j", "ACCEPT")


def damage(node: Node, family: Family, name: BackendName) -> None:
    """Two jumps instead of one, one rule missing, one too many."""
    if name == "nft":
        table = f"{family.data.nft} flanneld-masq"
        node.run(("nft", "-f", "-"), stdin=f"flush chain {table} postrouting\nadd rule {table} forward accept\n")
    else:
        jump = f'-A POSTROUTING -m comment --comment "{STALE}" -j {NAT}'
        restore(node, family, flavour_of(name), "*nat", jump, f"-D {NAT} 2", f"-A {NAT} -j ACCEPT")


def saved(node: Node, family: Family, name: BackendName, table: str = "nat") -> list[str]:
    return node.run((f"{family.data.tools}-{flavour_of(name)}-save", "-t", table)).stdout.splitlines()


@pytest.mark.parametrize(
    "links",
    [
        {"iptables": "legacy", "iptables-restore": "nft", "iptables-save": "nft"},
        {"iptables": "nft", "iptables-restore": "legacy", "iptables-save": "legacy"},
        {"iptables-nft": "legacy", "iptables-legacy": "nft", "xtables-nft-multi": "legacy"},
    ],
    ids=["check-legacy-restore-nft", "check-nft-restore-legacy", "names-exchanged"],
)
@iptables_backends
def test_tools_of_both_flavours_side_by_side_are_told_apart(
    node: Node, backend_name: BackendName, links: dict[str, str], tmp_path: Path
) -> None:
    directory = tmp_path / "mixed"
    directory.mkdir()
    for name, flavour in links.items():
        for link in (name, name.replace("iptables", "ip6tables")):
            if not (directory / link).exists():
                (directory / link).symlink_to(f"/usr/sbin/xtables-{flavour}-multi")
    environ = {"PATH": f"{directory}:{os.environ['PATH']}"}
    node.configure("", backend=backend_name)
    assert node.masq("apply", environ=environ).returncode == 0
    with node.entered():
        for family in Family:
            mine = flavour_of(backend_name)
            assert any(NAT in line for line in saved(node, family, backend_name)), f"written with {mine}"
            assert mine == "legacy" or not legacy_snapshot(family, node.run).ours
            assert mine == "nft" or not Nft(family).snapshot().ours
    listed = json.loads(node.masq("backends", "--json", environ=environ).stdout)
    for family in Family:
        versions = {each["name"]: each["versions"] for each in listed["families"][str(family)]["backends"]}
        assert versions["iptables-nft"][0].endswith("(nf_tables)")
        assert versions["iptables-legacy"][0].endswith("(legacy)")


class Broken(ProcessRunner):
    """Its listings come out as `distort` makes them, and it notes what is restored."""

    def __init__(self, distort: Callable[[str], str]) -> None:
        super().__init__()
        self.restored: list[str] = []
        self._distort = distort

    def __call__(self, argv: tuple[str, ...], **options: object) -> Completed:
        if argv[0].endswith("-restore"):
            self.restored.append(argv[0])
        done = super().__call__(argv, **options)  # type: ignore[arg-type]
        if argv[0].endswith("-save"):
            return Completed(argv, self._distort(done.stdout), "")
        return done


@pytest.mark.parametrize(
    ("name", "distort"),
    [
        ("empty", lambda _: ""),
        ("incompatible", lambda _: "# Table `nat' is incompatible, use 'nft' tool.\n"),
        ("cut off before its end", lambda text: text[: text.rindex("COMMIT")]),
        ("cut off within a line", lambda text: text[: text.index("-A POSTROUTING") + 20]),
        ("of another table", lambda text: text.replace("*nat", "*raw").replace("*filter", "*raw")),
        ("interrupted by a warning", lambda text: text.replace("-A POSTROUTING", "Warning: \n-A POSTROUTING", 1)),
        ("with an open quote", lambda text: text.replace('"', "", 1)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
@pytest.mark.parametrize("backend_name", ["iptables-legacy"], indirect=True)
def test_an_unreadable_listing_is_an_error_without_a_write(
    node: Node, family: Family, backend_name: BackendName, name: str, distort: Callable[[str], str]
) -> None:
    node.configure("", backend=backend_name)
    with node.entered():
        node.reconciler(family).reconcile(node.desired_state())
        before = ours(node, family)
        broken = Broken(distort)
        backend = plugin_loader.load().create(family, Host(broken))[backend_name]
        reconciler = Reconciler(family, {backend_name: backend}, StateDirectory(node.state))
        for call in (reconciler.plan, reconciler.reconcile):
            with pytest.raises(CommandError, match="-save"):
                call(node.desired_state())
        _, errors = reconciler.remove_everything()
        assert [type(error) for error in errors] == [CommandError]
        assert not broken.restored
        assert ours(node, family) == before


class Idle(ProcessRunner):
    """Says that it restored, and did nothing."""

    def __call__(self, argv: tuple[str, ...], **options: object) -> Completed:
        if argv[0].endswith("-restore"):
            return Completed(argv, "", "")
        return super().__call__(argv, **options)  # type: ignore[arg-type]


@iptables_backends
def test_a_tool_that_succeeds_but_does_nothing_is_an_error(
    node: Node, family: Family, backend_name: BackendName
) -> None:
    node.configure("", backend=backend_name)
    with node.entered():
        backend = plugin_loader.load().create(family, Host(Idle()))[backend_name]
        reconciler = Reconciler(family, {backend_name: backend}, StateDirectory(node.state))
        with pytest.raises(RulesetError, match=rf"{backend_name} wrote the rules .* {NAT}"):
            reconciler.reconcile(node.desired_state())


# ---- the project's names are taken


@iptables_nft
def test_a_base_chain_with_the_project_name_is_an_error(node: Node, family: Family, backend_name: BackendName) -> None:
    node.configure("", backend=backend_name)
    other = next(found for found in Family if found is not family)
    chain = f"{family.data.nft} nat {NAT}"
    with node.entered():
        node.tool(
            "nft", f"table {family.data.nft} nat {{ chain {NAT} {{ type nat hook postrouting priority 150; }}; }}"
        )
        before = node.tool("nft", "-a", "list", "ruleset", family.data.nft)
        failed = node.masq("apply")
        assert failed.returncode == 1
        for said in (f"chain {NAT} in table {family.data.nft} nat is a base chain", f"nft delete chain {chain}"):
            assert said in failed.stderr
        assert node.tool("nft", "-a", "list", "ruleset", family.data.nft) == before
        assert in_order(node, node.reconciler(other)), "the other family has its rules"
        node.tool("nft", "delete", "chain", *chain.split())
        assert node.masq("apply").returncode == 0
        assert in_order(node, node.reconciler(family))


@iptables_nft
def test_a_built_in_name_on_another_chain_is_explained(node: Node, family: Family, backend_name: BackendName) -> None:
    node.configure("", backend=backend_name)
    chain = "chain POSTROUTING { type nat hook postrouting priority 90; }"
    with node.entered():
        node.tool("nft", f"table {family.data.nft} nat {{ {chain}; }}")
        before = node.tool("nft", "-a", "list", "ruleset", family.data.nft)
        failed = node.masq("apply")
        assert failed.returncode == 1
        what = "is a base chain of type nat, hook 4, priority 90, and iptables can use the table only if"
        assert f"chain POSTROUTING in table {family.data.nft} nat {what}" in failed.stderr
        assert node.tool("nft", "-a", "list", "ruleset", family.data.nft) == before
        node.tool("nft", "delete", "table", family.data.nft, "nat")
        assert node.masq("apply").returncode == 0
        assert in_order(node, node.reconciler(family))


@iptables_backends
@pytest.mark.parametrize(("table", "chain"), [("nat", NAT), ("filter", FORWARD)])
def test_a_foreign_chain_with_the_project_name_is_left_alone(
    node: Node, family: Family, backend_name: BackendName, table: str, chain: str
) -> None:
    """Nothing in it has a tag. Where it is in the way that is an error; elsewhere it is nobody's business."""
    node.configure("", backend=backend_name)
    flavour = flavour_of(backend_name)
    theirs = f'-A {chain} -m comment --comment "{LIKE_OURS}" -j RETURN'
    with node.entered():
        restore(node, family, flavour, f"*{table}", f":{chain} - [0:0]", theirs, f"-A {chain} -j ACCEPT")
        before = saved(node, family, backend_name, table)
        for command in ("plan", "apply"):
            done = node.masq(command)
            assert done.returncode in (1, 3), "3: the other family has no rules yet"
            assert f"chain {table} {chain} has a name of flanneld-masq, but another program made it" in done.stderr
        assert node.masq("cleanup").returncode == 0
        assert lines_of(saved(node, family, backend_name, table)) == lines_of(before)
        other = next(name for name in ("nft", "iptables-nft", "iptables-legacy") if name != backend_name)
        assert node.masq("--backend", other, "apply").returncode == 0
        assert node.masq("--backend", other, "plan").returncode == 0
        assert lines_of(saved(node, family, backend_name, table)) == lines_of(before)
        node.tool(f"{family.data.tools}-{flavour}", "-w", "-t", table, "-F", chain)
        assert node.masq("apply").returncode == 0, "an empty one is taken"
        assert node.masq("plan").returncode == 0


def lines_of(listing: list[str]) -> list[str]:
    """The chains and rules of a listing, without its dates and counters."""
    return [line.split(" [")[0] for line in listing if not line.startswith("#")]


def test_what_has_no_tag_is_removed_by_nothing(node: Node, family: Family, backend_name: BackendName) -> None:
    """Comments that begin like ours, in the chains with our jumps and elsewhere, and empty chains with our name."""
    nft = family.data.nft
    host = "203.0.113.9" if family is Family.IPV4 else "2001:db8::9"
    with node.entered():
        for flavour in FLAVOURS:
            for table, base, chain in (("nat", "POSTROUTING", NAT), ("filter", "FORWARD", FORWARD)):
                names = [] if backend_name == f"iptables-{flavour}" else [f":{chain} - [0:0]"]
                places = (base, "THEIRS", f"{chain}-THEIRS")
                comments = (LIKE_OURS, STALE[:-1], f"{STALE}0", STALE.upper(), f"{STALE} x", "flanneld-masq:", "x")
                rules = [
                    f'-A {to} -s {host} -m comment --comment "{text}" -j RETURN' for to in places for text in comments
                ]
                jumps = [f'-A {base} -s {host} -m comment --comment "{LIKE_OURS}" -j {chain}'] if names else []
                made = (*names, ":THEIRS - [0:0]", f":{chain}-THEIRS - [0:0]", *rules, *jumps)
                restore(node, family, flavour, f"*{table}", *made)
        table = f'table inet flanneld-masq {{ chain c {{ return comment "{LIKE_OURS}"; }}; }}\n'
        if backend_name != "nft":
            table += f'table {nft} flanneld-masq {{ chain postrouting {{ return comment "{LIKE_OURS}"; }}; }}\n'
        node.run(("nft", "-f", "-"), stdin=table)
        before = node.ruleset()
        node.configure("[reconcile]\nresync_seconds = 1", backend=backend_name)
        with node.running():
            eventually(lambda: node.masq("plan").returncode == 0)
            assert not rules_only(before) - rules_only(node.ruleset())
        assert node.masq("cleanup").returncode == 0
        assert not rules_only(before) - rules_only(node.ruleset())


def rules_only(ruleset: str) -> set[str]:
    return {line.split(" [")[0] for line in ruleset.splitlines() if not line.startswith("#")}


@iptables_backends
def test_cleanup_empties_a_chain_with_a_foreign_jump_to_it(
    node: Node, family: Family, backend_name: BackendName
) -> None:
    node.configure("", backend=backend_name)
    flavour = flavour_of(backend_name)
    jump = f"-A THEIRS -m comment --comment theirs -j {NAT}"
    with node.entered():
        restore(node, family, flavour, "*nat", f":{NAT} - [0:0]", ":THEIRS - [0:0]", jump)
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)
        assert reconciler.reconcile(node.desired_state()).repairs == ()
        assert jump in saved(node, family, backend_name)
        _, errors = reconciler.remove_everything()
        assert len(errors) == 1
        assert NAT in str(errors[0])
        assert "is empty now but stays" in str(errors[0])
        assert reconciler.remove_everything() == ((), ()), "an empty chain without a tag is not ours any more"
        left = [line for line in saved(node, family, backend_name) if NAT in line]
        assert [line.split(" [")[0] for line in left] == [f":{NAT} -", jump]
        assert not [line for line in saved(node, family, backend_name, "filter") if FORWARD in line]


@pytest.mark.parametrize("backend_name", ["nft"], indirect=True)
@pytest.mark.parametrize(
    "content",
    [
        "chain postrouting { accept; }; chain x { jump postrouting; };",
        f'chain c {{ accept comment "{LIKE_OURS}"; }};',
        "chain theirs { };",
        "set theirs { type inet_service; };",
    ],
)
def test_a_foreign_table_with_the_project_name_is_left_alone(
    node: Node, family: Family, backend_name: BackendName, content: str
) -> None:
    node.configure("", backend=backend_name)
    table = f"{family.data.nft} flanneld-masq"
    with node.entered():
        node.tool("nft", f"table {table} {{ {content} }}")
        before = node.tool("nft", "-a", "list", "ruleset", family.data.nft)
        failed = node.masq("apply")
        assert failed.returncode == 1
        assert f"table {table} has a name of flanneld-masq, but another program made it" in failed.stderr
        assert node.masq("cleanup").returncode == 0
        assert node.tool("nft", "-a", "list", "ruleset", family.data.nft) == before
        assert node.masq("--backend", "iptables-nft", "apply").returncode == 0
        assert node.masq("--backend", "iptables-nft", "plan").returncode == 0
        assert node.tool("nft", "-a", "list", "table", *table.split()) in before
        node.tool("nft", "delete", "table", *table.split())
        assert node.masq("apply").returncode == 0


@pytest.mark.parametrize("backend_name", ["nft"], indirect=True)
def test_an_empty_table_with_our_name_is_taken(node: Node, family: Family, backend_name: BackendName) -> None:
    node.configure("", backend=backend_name)
    with node.entered():
        node.tool("nft", "add", "table", family.data.nft, "flanneld-masq")
        assert node.masq("cleanup").returncode == 0
        assert "flanneld-masq" in node.ruleset()
        assert node.masq("apply").returncode == 0
        assert in_order(node, node.reconciler(family))


# ---- tables asleep, owned, half deleted, unreadable


@iptables_nft
@pytest.mark.parametrize("table", ["nat", "filter"])
def test_a_foreign_dormant_table_is_an_error_and_stays_dormant(
    node: Node, family: Family, backend_name: BackendName, table: str
) -> None:
    node.configure("", backend=backend_name)
    name = f"{family.data.nft} {table}"
    with node.entered():
        node.tool("nft", f"add table {name} {{ flags dormant; }}")
        before = node.tool("nft", "-a", "list", "ruleset")
        reconciler = node.reconciler(family)
        for call in (reconciler.plan, reconciler.reconcile):
            with pytest.raises(RulesetError, match=f"table {name} is dormant.*nft add table {name}"):
                call(node.desired_state())
        assert node.tool("nft", "-a", "list", "ruleset") == before
        node.tool("nft", f"add table {name}")
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)


def test_our_dormant_table_is_woken(node: Node, family: Family) -> None:
    node.configure("", backend="nft")
    with node.entered():
        node.tool("nft", f"add table {family.data.nft} flanneld-masq {{ flags dormant; }}")
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)
        assert "dormant" not in node.ruleset()


@pytest.mark.parametrize(("name", "table"), [("nft", "flanneld-masq"), ("iptables-nft", "nat")])
def test_a_table_of_another_owner_is_an_error_until_it_exits(node: Node, family: Family, name: str, table: str) -> None:
    node.configure("", backend=name)
    with node.entered():
        owner = Nftables()  # the kernel takes the table away with the socket that made it
        status, _, error = owner.cmd(f"add table {family.data.nft} {table} {{ flags owner; }}")
        if "unknown table option" in error:
            pytest.skip("this nft cannot own a table: the flag came with 0.9.9")
        assert status == 0, error
        reconciler = node.reconciler(family)
        for call in (reconciler.plan, reconciler.reconcile):
            with pytest.raises(RulesetError, match=f"table {family.data.nft} {table} is owned by another program"):
                call(node.desired_state())
        del owner
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "lines",
    [
        ["-A POSTROUTING -j FLANNEL-POSTRTG"],
        ["-A FLANNEL-POSTRTG -j RETURN"],
        ["-A POSTROUTING -j FLANNEL-POSTRTG", "-A POSTROUTING -j FLANNEL-POSTRTG", "-A FLANNEL-POSTRTG -j MASQUERADE"],
    ],
    ids=["chain-empty", "jump-gone", "jump-twice"],
)
def test_flannels_chains_half_deleted_are_left_alone(
    node: Node, family: Family, backend_name: BackendName, flavour: str, lines: list[str]
) -> None:
    node.configure("", backend=backend_name)
    with node.entered():
        restore(node, family, flavour, "*nat", ":FLANNEL-POSTRTG - [0:0]", *lines)
        restore(node, family, flavour, "*filter", ":FLANNEL-FWD - [0:0]", "-A FORWARD -j ACCEPT")
        before = foreign_rules(node, family)
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)
        assert foreign_rules(node, family) == before
        reconciler.remove_everything()
        assert foreign_rules(node, family) == before
        for chain in ("FLANNEL-POSTRTG", "FLANNEL-FWD"):
            assert chain in node.ruleset()


@iptables_nft
def test_rules_that_iptables_cannot_read_stay_and_do_no_harm(
    node: Node, family: Family, backend_name: BackendName
) -> None:
    node.configure("", backend=backend_name)
    nft = family.data.nft
    unreadable = (
        "meta l4proto vmap { tcp : accept, udp : return }",
        "tcp dport vmap { 80 : accept, 81 : goto FOREIGN }",
        f'{nft} daddr @theirs tcp dport 1-5 numgen random mod 2 == 1 log prefix "theirs" accept',
    )
    kind = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    with node.entered():
        add_foreign(family, node.run)
        chains = [f"{nft} nat POSTROUTING", f"{nft} nat THEIRS", f"{nft} filter FORWARD"]
        sets = [f"add set {nft} {table} theirs {{ type {kind}; flags interval; }}" for table in ("nat", "filter")]
        made = [f"add chain {nft} nat THEIRS", f"add chain {nft} filter THEIRS", *sets]
        rules = [
            f"insert rule {chain} {rule}" for chain in chains for rule in unreadable if "THEIRS" not in chain + rule
        ]
        rules += [f"add rule {chain} {rule}" for chain in chains for rule in unreadable if "THEIRS" not in chain]
        node.run(("nft", "-f", "-"), stdin="".join(f"{line}\n" for line in (*made, *rules)))
        before = foreign(node, family)
        reconciler = node.reconciler(family)
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)
        damage(node, family, backend_name)
        assert not in_order(node, reconciler)
        reconciler.reconcile(node.desired_state())
        assert in_order(node, reconciler)
        assert foreign(node, family) == before
        _, errors = reconciler.remove_everything()
        assert not errors
        assert foreign(node, family) == before
        assert not ours(node, family)


# ---- company


def test_a_second_daemon_refuses_and_names_the_first(node: Node) -> None:
    with node.running() as first:
        first.reached("synced")
        second = node.masq("run")
        assert second.returncode == 1
        assert f"pid {first.process.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert first.status()["state"] == "synced"
        refused = node.masq("cleanup")
        assert refused.returncode == 1
        assert f"pid {first.process.pid}" in refused.stderr


def test_of_two_daemons_started_at_once_one_runs(node: Node) -> None:
    with node.running() as one, node.running() as another:
        both = [one, another]
        ended = eventually(lambda: next((each for each in both if each.process.poll() is not None), None))
        assert ended.process.returncode == 1
        assert ended.lines("another flanneld-masq runs")
        both.remove(ended)
        both[0].reached("synced")
        assert both[0].stop() == 0


def test_applies_at_once_leave_one_ruleset(make_node: Callable[[], Node], backend_name: BackendName) -> None:
    alone, crowded = make_node(), make_node()
    for node, count in ((alone, 1), (crowded, 4)):
        node.configure("", backend=backend_name)
        done = at_once(*[partial(node.masq, "apply")] * count)
        assert [each.returncode for each in done] == [0] * count, done
    assert crowded.ruleset() == alone.ruleset()


# ---- text that commands a terminal

EVIL = "a\x1b[2J\x1b]0;pwned\x07"
FORGED = "Nov 26 node sshd[1]: Accepted password for root"


def add_evil_rule(node: Node, backend: BackendName) -> None:
    """Add a rule to the daemon's chain. Its comment clears a screen and, if the tool permits, imitates a log line."""
    if backend != "nft":
        comment = f'-A {NAT} -m comment --comment "{EVIL}" -j RETURN'
        restore(node, Family.IPV4, flavour_of(backend), "*nat", comment)
        return
    names = {"family": "ip", "table": "flanneld-masq", "chain": "postrouting"}
    rule = {**names, "comment": f"{EVIL}\n{FORGED}", "expr": [{"accept": None}]}
    node.tool("nft", "-j", "-f", "-", stdin=json.dumps({"nftables": [{"add": {"rule": rule}}]}))


@pytest.mark.parametrize("name", ["nft", "iptables-nft", "iptables-legacy"])
def test_no_comment_reaches_terminal_log_or_status_as_it_is(node: Node, name: str) -> None:
    backend = BackendName(name)
    node.configure("[reconcile]\nlegacy_poll_seconds = 0.1", backend=name)
    assert node.masq("apply").returncode == 0
    with node.entered():
        add_evil_rule(node, backend)
    plan = node.masq("plan")
    shown = [node.masq(*argv).stdout for argv in (("status",), ("doctor",), ("apply",))]
    assert r"a\x1b[2J\x1b]0;pwned\x07" in plan.stdout
    assert plan.returncode == 3
    with node.running() as daemon:
        daemon.reached("synced")
        with node.entered():
            add_evil_rule(node, backend)
        assert r"a\x1b[2J" in daemon.logged("drift repaired")
        logged, written = daemon.lines(), (node.state / "status.json").read_text()
    for text in (plan.stdout, *shown, *logged, json.loads(json.dumps(written))):
        assert [line for line in text.split("\n") if not line.isprintable() or line.startswith(FORGED)] == []
