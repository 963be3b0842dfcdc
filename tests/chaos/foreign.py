"""Actions of other programs. Each is done twice: beside the daemon, and in a namespace without one."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flanneld_masq.errors import CommandError
from flanneld_masq.model import Family

from ..kernel.conftest import Node
from .cluster import JUMPS
from .plan import FLAVOURS, Action, Kind

OUR_PREFIX = "FLANNELD-MASQ"
SNAPSHOTS = 3  # kept at once
_TABLES = ("filter", "nat")
_HOST = {Family.IPV4: "203.0.113.9", Family.IPV6: "2001:db8:ffff::9"}
_NETWORK = {Family.IPV4: "192.0.2.0/24", Family.IPV6: "2001:db8::/48"}
# Table, the command that adds it, and the rule.
_RULES = (
    ("filter", "-A", "FORWARD -d {host} -j DROP"),
    ("filter", "-I", "FORWARD -i eth9 -j ACCEPT"),
    ("filter", "-A", "FORWARD -j REJECT"),
    ("filter", "-I", "FORWARD -d {network} -m comment --comment policy -j DROP"),
    ("filter", "-A", "FORWARD -m conntrack --ctstate INVALID -j DROP"),
    ("nat", "-A", "POSTROUTING -s {network} -j MASQUERADE"),
    ("nat", "-I", "POSTROUTING -d {host} -j RETURN"),
    ("nat", "-A", 'POSTROUTING -d {host} -m comment --comment "flanneld-masq: the office" -j ACCEPT'),
)
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
_FILTERS = (
    (":FORWARD ACCEPT [0:0]",),
    (":FORWARD DROP [0:0]", f"-A FORWARD {_ESTABLISHED}"),
    (":FORWARD ACCEPT [0:0]", f"-A FORWARD {_ESTABLISHED}", "-A FORWARD -d {host} -j DROP", "-A FORWARD -j REJECT"),
    (":FORWARD DROP [0:0]", ":SITE - [0:0]", "-A FORWARD -j SITE", "-A SITE -d {network} -j DROP"),
)
_UFW_ON = (
    ":FORWARD DROP [0:0]",
    *(f":ufw-{name} - [0:0]" for name in ("before-forward", "user-forward", "after-forward")),
    f"-A ufw-before-forward {_ESTABLISHED}",
    "-A ufw-before-forward -j ufw-user-forward",
    "-A ufw-user-forward -d {host} -j DROP",
    "-A ufw-after-forward -s {network} -j RETURN",
)
_UFW_OFF = (
    *(f":ufw-{name} - [0:0]" for name in ("before-forward", "user-forward", "after-forward")),
    *(f"-X ufw-{name}" for name in ("before-forward", "user-forward", "after-forward")),
)
_UFW_JUMPS = ("ufw-before-forward", "ufw-after-forward")
_FIREWALLD = """\
add table inet firewalld
delete table inet firewalld
table inet firewalld {{
  chain filter_FORWARD {{
    type filter hook forward priority 10; policy accept;
    ct state {{ established, related }} accept
    {nft} daddr {network} {verdict}
    {last}
  }}
  chain nat_POSTROUTING {{
    type nat hook postrouting priority 110; policy accept;
    {nft} saddr {network} oifname "eth9" masquerade
  }}
}}
"""
_NFT_FLUSHES = (
    "flush ruleset",
    "flush ruleset {nft}",
    "add table {nft} nat\ndelete table {nft} nat",
    "add table {nft} filter\ndelete table {nft} filter",
    "add table {nft} nat\nflush table {nft} nat",
    "add table {nft} filter\nflush table {nft} filter",
)


@dataclass
class Shell:
    """Runs commands in one namespace. `outcomes` are the commands, and whether each succeeded; `kept` are
    snapshots, each with what every tool printed."""

    node: Node
    outcomes: list[tuple[str, bool]] = field(default_factory=list)
    kept: dict[int, dict[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def __call__(self, *argv: str, stdin: str = "", told: bool = True) -> bool:
        """Run a command; return True if it succeeded. Without `told` it may end as it likes."""
        try:
            self.node.tool(*argv, stdin=stdin)
        except CommandError as error:
            succeeded = False
            self.errors.append(str(error))
        else:
            succeeded = True
        if told:
            self.outcomes.append((" ".join(argv), succeeded))
        return succeeded

    def iptables(self, action: Action, table: str, *words: str, told: bool = True) -> bool:
        return self(_tools(action), "-w", "-t", table, *words, told=told)

    def restore(self, action: Action, table: str, lines: Sequence[str], *options: str) -> bool:
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""]).format(**_words(action))
        return self(f"{_tools(action)}-restore", "-w", *options, stdin=text)


def kube_proxy(shell: Shell, action: Action) -> None:
    """A partial sync; a full one where that fails; then the jumps, each asked for before it is inserted."""
    assert action.sync is not None
    restore = (f"{_tools(action)}-restore", "--noflush", "-w")
    if not shell(*restore, stdin=action.sync.partial):
        shell(*restore, stdin=action.sync.full)
    for table, chain, rule in JUMPS:
        words = shlex.split(rule)
        if not shell.iptables(action, table, "-C", chain, *words):
            shell.iptables(action, table, "-I", chain, *words)


def rule(shell: Shell, action: Action) -> None:
    """A rule that is there is deleted; one that is not is added."""
    table, add, text = _RULES[action.choice % len(_RULES)]
    words = shlex.split(text.format(**_words(action)))
    if not shell.iptables(action, table, "-D", *words):
        shell.iptables(action, table, add, *words)


def policy(shell: Shell, action: Action) -> None:
    shell.iptables(action, "filter", "-P", "FORWARD", ("ACCEPT", "DROP")[action.choice % 2])


def ufw(shell: Shell, action: Action) -> None:
    if action.choice % 2:
        shell.restore(action, "filter", _UFW_ON, "--noflush")
        for chain in _UFW_JUMPS:
            if not shell.iptables(action, "filter", "-C", "FORWARD", "-j", chain):
                shell.iptables(action, "filter", "-A", "FORWARD", "-j", chain)
    else:
        for chain in _UFW_JUMPS:
            shell.iptables(action, "filter", "-D", "FORWARD", "-j", chain)
        shell.restore(action, "filter", _UFW_OFF, "--noflush")
        shell.iptables(action, "filter", "-P", "FORWARD", "ACCEPT")


def filter_restore(shell: Shell, action: Action) -> None:
    shell.restore(action, "filter", _FILTERS[action.choice % len(_FILTERS)])


def firewalld(shell: Shell, action: Action) -> None:
    if action.choice % 4 == 0:
        text = "add table inet firewalld\ndelete table inet firewalld\n"
    else:
        verdict, last = ("accept", "drop")[action.choice % 2], ("", "reject")[action.choice // 2 % 2]
        text = _FIREWALLD.format(verdict=verdict, last=last, **_words(action))
    shell("nft", "-f", "-", stdin=text)


def flush_by_commands(shell: Shell, action: Action) -> None:
    """Flush each table and delete its chains, one command after the other, as scripts do."""
    for table in _TABLES:
        shell.iptables(action, table, "-F")
        # A repair waits 200 ms for the next command of a flush. On a machine that is busy enough this one comes later,
        # and fails because the daemon's jump is back. tests/kernel/test_flush.py demands that it does not on any other.
        if not shell.iptables(action, table, "-X", told=False):
            listed = shell.node.tool(_tools(action), "-w", "-t", table, "-S").splitlines()
            for chain in (line.split()[1] for line in listed if line.startswith("-N ")):
                if not chain.startswith(OUR_PREFIX):
                    shell.iptables(action, table, "-X", chain, told=False)
        if table == "filter":
            shell.iptables(action, table, "-P", "FORWARD", "ACCEPT")


def netfilter_persistent(shell: Shell, action: Action) -> None:
    """Save, flush, and restore what was saved."""
    saved = _saved(shell, _tools(action))
    flush_by_commands(shell, action)
    shell(f"{_tools(action)}-restore", "-w", stdin=saved)


def flush(shell: Shell, action: Action) -> None:
    if action.flavour == "nft":
        text = _NFT_FLUSHES[action.choice % len(_NFT_FLUSHES)].format(**_words(action))
        shell("nft", "-f", "-", stdin=text + "\n")
        return
    table = _TABLES[action.choice % 2]
    if action.choice // 2 % 2:
        shell.restore(action, table, ())
    else:
        shell.iptables(action, table, "-F")


def snapshot(shell: Shell, action: Action) -> None:
    """Keep all the rules of this moment, those of the daemon too.

    A listing by nft leaves out the tables that iptables-nft manages: nft 1.0.6 prints their rules without the comments.
    """
    tables = [line.split()[1:] for line in shell.node.tool("nft", "list", "tables").splitlines()]
    listed = ["flush ruleset"]
    for table in tables:
        if table[1] not in _TABLES:
            with contextlib.suppress(CommandError):  # the daemon has removed its own meanwhile
                listed.append(shell.node.tool("nft", "list", "table", *table))
    moment = {"nft": "\n".join(listed)}
    for tools in (f"{family.data.tools}-{flavour}" for family in Family for flavour in FLAVOURS):
        moment[tools] = _saved(shell, tools)
    shell.kept[action.choice % SNAPSHOTS] = moment


def nft_ruleset(node: Node, *options: str) -> str:
    """Return the ruleset as nft prints it, each family by a process of its own: one process translates the targets of
    xtables for the first family alone (nft 1.0.6), and prints rules of others without their verdict."""
    return "".join(node.tool("nft", *options, "list", "ruleset", family) for family in ("ip", "ip6", "inet"))


def restore(shell: Shell, action: Action) -> None:
    """Restore what one of the tools printed at an earlier moment, however long that is ago."""
    if not shell.kept:
        snapshot(shell, action)
    moment = shell.kept[sorted(shell.kept)[action.choice // 2 % len(shell.kept)]]
    if action.flavour == "nft" and action.choice % 2 == 0:
        shell("nft", "-f", "-", stdin=moment["nft"])
    else:
        shell(f"{_tools(action)}-restore", "-w", stdin=moment[_tools(action)])


def foreign_chains(shell: Shell, action: Action) -> None:
    """Make the chain that some of the damages lead to."""
    for flavour in FLAVOURS:
        for table in _TABLES:
            tools = f"{action.family.data.tools}-{flavour}"
            shell(f"{tools}-restore", "-w", "--noflush", stdin=f"*{table}\n:FOREIGN - [0:0]\nCOMMIT\n")


FOREIGN: dict[Kind, Callable[[Shell, Action], None]] = {
    Kind.KUBE_PROXY: kube_proxy,
    Kind.RULE: rule,
    Kind.POLICY: policy,
    Kind.UFW: ufw,
    Kind.FILTER_RESTORE: filter_restore,
    Kind.FIREWALLD: firewalld,
    Kind.PERSISTENT: netfilter_persistent,
    Kind.FLUSH_COMMANDS: flush_by_commands,
    Kind.FLUSH: flush,
    Kind.SNAPSHOT: snapshot,
    Kind.RESTORE: restore,
}


def _tools(action: Action) -> str:
    return f"{action.family.data.tools}-{action.flavour}"


def _saved(shell: Shell, tools: str) -> str:
    """Return what iptables-save prints, with a section for each table.

    A table may be there only because of rules of the daemon, and a restore flushes the tables that its input names.
    """
    saved = shell.node.tool(f"{tools}-save")
    missing = [table for table in _TABLES if f"*{table}\n" not in saved]
    empty = {"filter": ":FORWARD ACCEPT [0:0]\n", "nat": ""}  # only FORWARD ever has another policy
    return saved + "".join(f"*{table}\n{empty[table]}COMMIT\n" for table in missing)


def _words(action: Action) -> dict[str, str]:
    return {"host": _HOST[action.family], "network": _NETWORK[action.family], "nft": action.family.data.nft}
