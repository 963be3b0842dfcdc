"""The daemon undoes every change to its rules at once and names the author. Against a persistent one it backs off."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import nftables
import pytest
from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.controller.attribution import Culprit, OwnPorts
from flanneld_masq.controller.backoff import BURST, QUIET_SECONDS, REFILL_PER_SECOND
from flanneld_masq.controller.family_loop import FamilyLoop
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.status import State
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.ruleset_events import RulesetEvents
from flanneld_masq.model import Family
from flanneld_masq.process import Completed, ProcessRunner
from flanneld_masq.selftest import fault_injection, netns
from flanneld_masq.selftest.commit_log import Commits
from flanneld_masq.selftest.fault_injection import Tools
from flanneld_masq.state_directory import StateDirectory

from ..common import eventually, lasting, patience, until
from ..surroundings import Surroundings
from .conftest import BACKENDS, KERNEL_SHARES_OUR_PIDS, Daemon, Node

BY_EVENTS = ("nft", "iptables-nft")
# Nothing is repaired by the clock.
BY_EVENTS_ALONE = "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 0.05"
LOCK = Path("/run/xtables.lock")
LOCK_HELD_SECONDS = lasting(0, 60)


class Recorder(ProcessRunner):
    """Runs programs and notes their pids."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int] = []

    def __call__(
        self, argv: tuple[str, ...], *, executable: Optional[str] = None, stdin: str = "", timeout: float = 20.0
    ) -> Completed:
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            self.pids.append(process.pid)
            stdout, stderr = process.communicate(stdin, timeout=patience(timeout))
        assert process.returncode == 0, f"{argv}: {stderr}"
        return Completed(argv, stdout, stderr)


def tools_of(node: Node, name: str, family: Family, run: Optional[ProcessRunner] = None) -> Tools:
    found = fault_injection.tools(name, family, run or node.run)
    assert found is not None
    return found


def damages(tools: Tools, name: str, family: Family, run: ProcessRunner) -> dict[str, Callable[[], object]]:
    """Those of the self-test, and some that it has no need of."""

    def nft(command: str) -> Callable[[], object]:
        return lambda: run(("nft", *command.split()))

    more = {
        "nft": {"forward chain flushed": nft(f"flush chain {family.data.nft} flanneld-masq forward")},
        "iptables-nft": {
            "forward chain flushed": nft(f"flush chain {family.data.nft} filter FLANNELD-MASQ-FWD"),
            "table deleted": nft(f"delete table {family.data.nft} nat"),
        },
    }
    return {**tools.damages, **more.get(name, {})}


def generation(node: Node) -> int:
    with node.entered():
        return Nfnetlink().generation()


def repairs(daemon: Daemon, family: Family) -> int:
    return int(daemon.status()["families"][str(family)]["repairs"])


def last_culprits(daemon: Daemon, family: Family) -> list[dict[str, Any]]:
    last = daemon.status()["families"][str(family)]["last_repair"]
    return list(last["culprits"]) if last else []


def in_order(node: Node, tools: Tools, verified_state: Sequence[str]) -> bool:
    with node.entered():
        return tools.ours() == verified_state


# ---- repair by events


@pytest.mark.parametrize("name", BY_EVENTS)
def test_each_damage_is_heard_and_undone_and_its_author_named(node: Node, name: str, family: Family) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    run = Recorder()
    tools = tools_of(node, name, family, run)
    with node.entered():
        tools.add_foreign()
    with node.running() as daemon:
        daemon.reached("synced")
        with node.entered():
            verified_state, foreign = tools.ours(), tools.foreign()
        for what, damage in damages(tools, name, family, run).items():
            # a repair of what the damage before did last may undo this one too, unseen
            eventually(lambda: node.masq("plan").returncode == 0)
            done, earlier = repairs(daemon, family), len(run.pids)
            with node.entered():
                damage()
            eventually(lambda: repairs(daemon, family) > done)
            eventually(lambda: in_order(node, tools, verified_state))
            new = set(run.pids[earlier:])
            eventually(
                lambda: not KERNEL_SHARES_OUR_PIDS or new & {one["pid"] for one in last_culprits(daemon, family)}
            )
            last = daemon.status()["families"][str(family)]["last_repair"]
            assert last["drift"], what
            assert last["culprits"], what
            for culprit in last["culprits"]:
                assert culprit["name"] in fault_injection.PROGRAMS, what
                known = Culprit(culprit["name"], culprit["pid"])
                assert daemon.lines("drift repaired", f" {known.name} ({known.pid_text}"), what
            if KERNEL_SHARES_OUR_PIDS:
                # the end of the damage before may be repaired by itself, or heard with this one
                assert {culprit["pid"] for culprit in last["culprits"]} <= set(run.pids), what
        with node.entered():
            if name == "nft":  # the last damage of iptables-nft takes a table of others with it
                assert tools.foreign() == foreign
        assert daemon.status()["state"] == "synced"


@pytest.mark.parametrize("name", BY_EVENTS)
def test_only_root_sees_the_command_line_of_a_live_author(node: Node, name: str, family: Family) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    chain = "flanneld-masq postrouting" if name == "nft" else "nat FLANNELD-MASQ"
    program = "import nftables, signal, sys; nftables.Nftables().cmd(sys.argv[1]); signal.pause()"
    argv = (sys.executable, "-c", program, f"flush chain {family.data.nft} {chain}")
    with node.running() as daemon, contextlib.ExitStack() as stack:
        daemon.reached("synced")
        culprit = stack.enter_context(spawned(node, *argv))
        eventually(lambda: repairs(daemon, family) == 1)
        (found,) = daemon.status()["families"][str(family)]["last_repair"]["culprits"]
        assert found["name"] == Path(f"/proc/{culprit.pid}/comm").read_text().strip()
        assert "command" not in found
        assert program not in json.dumps(daemon.status())
        assert program not in (node.state / "status.json").read_text()
        assert program not in node.masq("status", "--json").stdout
        if KERNEL_SHARES_OUR_PIDS:
            assert f"(pid {culprit.pid})" in node.masq("status").stdout
            assert program in node.masq("status").stdout
            assert (node.state / "authors.json").stat().st_mode & 0o777 == 0o600
            assert found["pid"] == culprit.pid
            assert daemon.lines("drift repaired", f"{found['name']} (pid {culprit.pid}")


@pytest.mark.parametrize("name", BY_EVENTS)
def test_we_do_not_name_ourselves(node: Node, name: str) -> None:
    """Both families are hit at once, so each hears of the other one's repair while it repairs."""
    node.configure(BY_EVENTS_ALONE, backend=name)
    chain = "flanneld-masq postrouting" if name == "nft" else "nat FLANNELD-MASQ"
    run = Recorder()
    with node.running() as daemon:
        daemon.reached("synced")
        for number in range(1, 6):
            with node.entered():
                run(("nft", f"flush chain ip {chain}; flush chain ip6 {chain}"))
            for family in Family:
                eventually(lambda: repairs(daemon, family) == number)
                culprits = daemon.status()["families"][str(family)]["last_repair"]["culprits"]
                if KERNEL_SHARES_OUR_PIDS:
                    assert [(found["name"], found["pid"]) for found in culprits] == [("nft", run.pids[-1])]
                else:
                    assert "nft" in [found["name"] for found in culprits]
        assert not (KERNEL_SHARES_OUR_PIDS and daemon.lines("drift repaired", " or "))


@pytest.mark.parametrize("name", BY_EVENTS)
def test_in_a_pid_namespace_no_pid_and_no_own_commit_is_named(node: Node, name: str) -> None:
    """The tools of a first write, mixed writes and the repairs of the other family are all the daemon's own."""
    node.configure(BY_EVENTS_ALONE, backend=name)
    chain = "flanneld-masq postrouting" if name == "nft" else "nat FLANNELD-MASQ"
    log = node.directory / "pid-namespace.log"
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with node.entered(), log.open("wb") as output:
        process = netns.spawn((*unshare, *node.argv("run")), output=output)
    try:
        daemon = Daemon(process, log, StateDirectory(node.state))
        eventually(lambda: (daemon._store.status() or {}).get("state") == "synced")
        for number in range(1, 9):  # fewer than BURST, so that all are made at once
            with node.entered():
                for family in Family:
                    node.run(
                        ("nft", f"flush chain {family.data.nft} {chain}; add table {family.data.nft} busy{number}")
                    )
            for family in Family:
                eventually(lambda: len(daemon.lines(f"{family}: drift repaired")) >= number)
        lines = daemon.lines("drift repaired")
        assert all(line.endswith(", by nft (pid not known in a pid namespace)") for line in lines), lines
        assert not daemon.lines("drift repaired", "(pid 1")
        for family in Family:
            (culprit,) = (daemon._store.status() or {})["families"][str(family)]["last_repair"]["culprits"]
            assert (culprit["name"], culprit["pid"]) == ("nft", 0)
    finally:
        process.kill()
        process.wait()


def test_own_commits_come_from_own_ports(node: Node) -> None:
    with node.entered():
        events, netlink = RulesetEvents(), Nfnetlink()
        netlink.generation()
        library = nftables.Nftables()
        assert library.cmd("add table ip own")[0] == 0
        node.run(("nft", "add table ip foreign"))
        node.run(("xtables-nft-multi", "iptables-restore", "--noflush"), stdin="*nat\n:OWN - [0:0]\nCOMMIT\n")
        heard, _ = events.read()
        ports = OwnPorts([node.run])
        assert [transaction.port in ports for transaction in heard] == [True, True, True]
        assert [transaction.port in OwnPorts([]) for transaction in heard] == [True, False, False]
        assert len({transaction.port for transaction in heard}) == 3
        events.close()


def test_legacy_tables_are_polled_and_nobody_can_be_named(node: Node, family: Family) -> None:
    node.configure(BY_EVENTS_ALONE, backend="iptables-legacy")
    tools = tools_of(node, "iptables-legacy", family)
    with node.entered():
        tools.add_foreign()
    with node.running() as daemon:
        daemon.reached("synced")
        with node.entered():
            verified_state, foreign = tools.ours(), tools.foreign()
        for damage in tools.damages.values():
            done = repairs(daemon, family)
            with node.entered():
                damage()
            eventually(lambda: repairs(daemon, family) > done)
            eventually(lambda: in_order(node, tools, verified_state))
        with node.entered():
            assert tools.foreign() == foreign
        lines = daemon.lines("drift repaired with iptables-legacy", str(family))
        assert len(lines) == repairs(daemon, family)
        assert all("legacy tables changed" in line for line in lines)


BY_LOCK_ALONE = "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 60\n"


def legacy(family: Family, *arguments: str) -> tuple[str, ...]:
    return (f"{family.data.tools}-legacy", "-w", "-t", "nat", *arguments)


def test_the_lock_file_reports_a_legacy_change_and_its_author(node: Node, family: Family) -> None:
    node.configure(BY_LOCK_ALONE, backend="iptables-legacy")
    run = Recorder()
    with node.running() as daemon:
        daemon.reached("synced")

        def named() -> bool:
            """A busy machine may run a program to its end before the daemon, but not all of them."""
            before = repairs(daemon, family)
            with node.entered():
                run(legacy(family, "-F", "FLANNELD-MASQ"))
            eventually(lambda: repairs(daemon, family) > before)
            return run.pids[-1] in {one["pid"] for one in last_culprits(daemon, family)}

        eventually(named)


def test_legacy_programs_that_change_nothing_cause_no_pass(node: Node, family: Family) -> None:
    node.configure(BY_LOCK_ALONE, backend="iptables-legacy")
    with node.running() as daemon:
        daemon.reached("synced")
        before = daemon.status()["families"][str(family)]["verified"]
        with node.entered():
            for _ in range(10):
                subprocess.run(legacy(family, "-C", "POSTROUTING", "-j", "ACCEPT"), capture_output=True, check=False)
                subprocess.run(legacy(family, "-L", "-n"), capture_output=True, check=True)
        assert daemon.status()["families"][str(family)]["verified"] == before
        assert repairs(daemon, family) == 0


def test_lock_file_made_again_is_followed(node: Node, family: Family) -> None:
    node.configure(BY_LOCK_ALONE, backend="iptables-legacy")
    with node.running() as daemon:
        daemon.reached("synced")
        for count in (1, 2):
            LOCK.unlink()
            node.tool(*legacy(family, "-F", "FLANNELD-MASQ"))
            eventually(lambda: repairs(daemon, family) == count)


def test_legacy_change_by_a_killed_program_is_noticed(node: Node) -> None:
    """The kernel reports the close whatever ends the program."""
    node.configure(BY_LOCK_ALONE, backend="iptables-legacy")
    changes = "*nat\n-F FLANNELD-MASQ\nCOMMIT\n"
    with node.running() as daemon, node.entered():
        daemon.reached("synced")
        info = TableInfo(Family.IPV4)
        whole = info.read("nat")
        with subprocess.Popen(("iptables-legacy-restore", "-w", "--noflush"), stdin=subprocess.PIPE) as program:
            assert program.stdin is not None
            program.stdin.write(changes.encode())
            program.stdin.flush()  # and no end of file
            eventually(lambda: info.read("nat") != whole or repairs(daemon, Family.IPV4))
            program.kill()
        eventually(lambda: repairs(daemon, Family.IPV4) == 1)


def test_the_lock_file_reports_a_legacy_forward_that_now_drops(node: Node, family: Family) -> None:
    node.configure(BY_LOCK_ALONE, backend="nft")
    with node.running() as daemon:
        daemon.reached("synced")
        node.tool(f"{family.data.tools}-legacy", "-w", "-P", "FORWARD", "DROP")
        save = f"{family.data.tools}-legacy-save"
        eventually(lambda: "-j FLANNELD-MASQ-FWD" in node.tool(save, "-t", "filter"))


def test_program_with_another_lock_file_is_found_by_the_poll(node: Node, family: Family) -> None:
    node.configure(BY_EVENTS_ALONE, backend="iptables-legacy")
    with node.running() as daemon, node.entered():
        daemon.reached("synced")
        environ = {**os.environ, "XTABLES_LOCKFILE": str(node.directory / "another.lock")}
        subprocess.run(legacy(family, "-F", "FLANNELD-MASQ"), env=environ, check=True)
        eventually(lambda: repairs(daemon, family) == 1)


def test_swapped_legacy_rules_are_found_without_a_resync(node: Node, family: Family) -> None:
    """Which leaves the number and the size of the entries as they are."""
    node.configure(BY_EVENTS_ALONE, backend="iptables-legacy")
    tools = family.data.tools
    with node.running() as daemon:
        daemon.reached("synced")
        lines = node.tool(f"{tools}-legacy", "-t", "nat", "-S", "FLANNELD-MASQ").splitlines()
        before = node.ruleset()
        swapped = [":FLANNELD-MASQ - [0:0]", *lines[:0:-1]]
        node.tool(f"{tools}-legacy-restore", "-n", "-w", stdin="\n".join(["*nat", *swapped, "COMMIT", ""]))
        eventually(lambda: repairs(daemon, family) == 1)
        assert node.ruleset() == before
        assert daemon.lines(str(family), "drift repaired", "legacy tables changed")


def test_no_legacy_table_comes_into_being_where_there_is_none(node: Node) -> None:
    node.configure(BY_EVENTS_ALONE, backend="nft")

    def legacy_tables() -> str:
        with node.entered():
            names = [Path("/proc/thread-self/net", found) for found in ("ip_tables_names", "ip6_tables_names")]
            return "".join(path.read_text() for path in names if path.exists())

    assert legacy_tables() == ""
    with node.running() as daemon:
        daemon.reached("synced")
        node.tool("nft", "flush ruleset")
        for family in Family:
            eventually(lambda: repairs(daemon, family) == 1)
        daemon.signal(signal.SIGHUP)
        daemon.logged("configuration reloaded")
        daemon.reached("synced")
        assert daemon.stop() == 0
    assert legacy_tables() == ""


@pytest.mark.parametrize("name", BY_EVENTS)
def test_our_own_commits_lead_to_no_further_ones(node: Node, name: str) -> None:
    node.configure(BY_EVENTS_ALONE + '\n[log]\nlevel = "debug"', backend=name)
    tools = {family: tools_of(node, name, family) for family in Family}
    chain = "flanneld-masq postrouting" if name == "nft" else "nat FLANNELD-MASQ"
    with node.entered():
        commits = Commits()
    with contextlib.closing(commits), node.running() as daemon:
        daemon.reached("synced")
        with node.entered():
            verified_state = {family: each.ours() for family, each in tools.items()}
        started = generation(node)
        for _ in range(3):
            for family in Family:
                done = repairs(daemon, family)
                node.tool("nft", f"flush chain {family.data.nft} {chain}")
                eventually(lambda: repairs(daemon, family) > done)
        # A pass for something else comes after all that those writes could have led to.
        node.tool("nft", "add table inet other")
        node.write_subnet(node.subnet_file.read_text().replace("10.244.1.1/24", "10.244.9.1/24"))
        daemon.logged("ipv4: rules applied", "subnet file changed")
        assert in_order(node, tools[Family.IPV6], verified_state[Family.IPV6])
        assert repairs(daemon, Family.IPV4) == repairs(daemon, Family.IPV6) == 3
        assert daemon.stop() == 0
        hits = replays = 6  # each in one transaction, for the kernel's form of the rules is known by then
        assert generation(node) == started + hits + replays + 2, "the other subnet changes one chain"
        assert len(daemon.lines("drift repaired")) == hits
        assert len(daemon.lines("rules applied")) == 2 + 1


# ---- lost events


def test_events_that_were_lost_are_told_and_the_next_ones_heard(node: Node) -> None:
    with node.entered():
        events = RulesetEvents()
        narrow = socket.socket(fileno=events.fileno())
        try:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        finally:
            narrow.detach()
        for number in range(50):
            node.tool("nft", f"add table inet flood{number}")
        found, lost = events.read()
        assert lost
        assert len(found) < 50
        node.tool("nft", "add table inet afterwards")
        (last,), lost = events.read()
        assert not lost
        assert (last.generation, last.name) == (generation(node), "nft")
        events.close()


FLOOD = """
import nftables
library = nftables.Nftables()
for _ in range(2500):  # more than the daemon's socket holds
    assert library.cmd("add table inet flood")[0] == library.cmd("delete table inet flood")[0] == 0
"""


@pytest.mark.parametrize("name", BY_EVENTS)
def test_a_daemon_that_lost_events_looks_at_the_kernel(node: Node, name: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    chain = "flanneld-masq postrouting" if name == "nft" else "nat FLANNELD-MASQ"
    with node.running() as daemon:
        daemon.reached("synced")
        daemon.signal(signal.SIGSTOP)
        node.tool(sys.executable, "-c", FLOOD)
        node.tool("nft", f"flush chain ip {chain}")
        daemon.signal(signal.SIGCONT)
        daemon.logged("ipv4", "drift repaired", "ruleset events lost")
        daemon.reached("synced")


def test_a_restore_that_flushes_each_table_can_finish(node: Node, family: Family) -> None:
    """firewalld does that. iptables-nft-restore has a transaction for each, and fails if another comes in between."""
    reading = "-A INPUT -j RETURN\n" * 800  # is what takes it some time before its second transaction
    text = f"*nat\n-F\n-X\nCOMMIT\n*filter\n{reading}-F\n-X\nCOMMIT\n"
    node.configure(BY_EVENTS_ALONE, backend="iptables-nft")
    tools = tools_of(node, "iptables-nft", family)
    with node.running() as daemon:
        daemon.reached("synced")
        with node.entered():
            verified_state = tools.ours()
        for turn in range(4):
            node.tool(f"{family.data.tools}-nft-restore", "-w", "-n", stdin=text)
            eventually(lambda: repairs(daemon, family) > turn)
            eventually(lambda: in_order(node, tools, verified_state))


@pytest.mark.parametrize("name", BY_EVENTS)
def test_a_loop_that_is_told_of_lost_events_verifies(node: Node, name: str, family: Family) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    tools = tools_of(node, name, family)

    async def scenario() -> None:
        around = Surroundings(FamilyReport(family), node.desired_state())
        loop = FamilyLoop(around.report, node.reconciler(family), around, around, around)
        task = asyncio.create_task(loop.run())
        await until(lambda: around.report.state is State.SYNCED)
        verified_state = tools.ours()
        tools.damages["chain flushed"]()
        around.queue(lost=True)
        loop.receive()
        await until(lambda: around.report.status().repairs == 1)
        assert tools.ours() == verified_state
        assert around.last("drift-repaired").reason == "ruleset events lost"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        loop.close()

    with node.entered():
        asyncio.run(scenario())


# ---- restart


@pytest.mark.parametrize("name", BACKENDS)
def test_a_restart_writes_nothing(node: Node, name: str) -> None:
    node.configure(BY_EVENTS_ALONE, backend=name)
    with node.running() as daemon:
        daemon.reached("synced")
        assert daemon.stop() == 0
    before, rules = generation(node), node.ruleset()
    with node.entered():
        commits = Commits()
    with contextlib.closing(commits):
        for _ in range(3):
            with node.running() as daemon:
                for family in Family:
                    daemon.logged(f"{family}: the kernel already holds the right rules; nothing written")
                daemon.reached("synced")
                assert not daemon.lines("rules applied")
                assert not daemon.lines("drift repaired")
                assert daemon.stop() == 0
        assert commits.since(0.0) == ()
    assert (generation(node), node.ruleset()) == (before, rules)


# ---- nobody is fought

MEDDLING = {
    "nft": "nft flush chain ip flanneld-masq postrouting",
    "iptables-nft": "iptables-nft -w -t nat -D POSTROUTING 1",
    "iptables-legacy": "iptables-legacy -w -t nat -D POSTROUTING 1",
}
MEDDLING_SECONDS = lasting(6, 60)


def test_contention_names_the_author_and_bounds_the_repairs(make_node: Callable[[], Node]) -> None:
    """All backends at once, for it takes the time that it takes."""
    with contextlib.ExitStack() as stack:
        daemons: dict[str, Daemon] = {}
        nodes: dict[str, Node] = {}
        for name in BACKENDS:
            nodes[name] = make_node()
            nodes[name].configure(BY_EVENTS_ALONE, backend=name)
            daemons[name] = stack.enter_context(nodes[name].running())
        for daemon in daemons.values():
            daemon.reached("synced")
        with contextlib.ExitStack() as meddling:
            started = time.monotonic()
            for name, node in nodes.items():
                script = f"while :; do {MEDDLING[name]}; sleep 0.05; done"
                meddling.enter_context(spawned(node, "sh", "-c", script))
            for daemon in daemons.values():
                daemon.reached("contended", Family.IPV4)
                assert daemon.status()["state"] == "contended"
            threading.Event().wait(max(0.0, started + MEDDLING_SECONDS - time.monotonic()))
        lasted = time.monotonic() - started
        for name, daemon in daemons.items():
            eventually(lambda: daemon.lines("in sync again"), 60)
            assert daemon.status()["state"] == "synced"
            assert repairs(daemon, Family.IPV4) <= BURST + (lasted + QUIET_SECONDS) * REFILL_PER_SECOND
            assert repairs(daemon, Family.IPV6) == 0
            (line,) = daemon.lines("keeps undoing the daemon's rules")
            named = f" ipv4: {MEDDLING[name].split()[0]} (pid " in line
            # All nodes here share one lock file, so another daemon may be the last that used it, or a tool of one, such
            # as ip6tables-legacy-save, of whose name the kernel keeps 15 letters.
            pids = (f" (pid {other.process.pid}" for other in daemons.values())
            others = "a program that the kernel does not name", "tables-legac", *pids
            assert named or (name == "iptables-legacy" and any(other in line for other in others)), line
            assert nodes[name].masq("--backend", name, "plan").returncode == 0


TRAFFIC = """
import sys, time, nftables
chain, hits, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
library = nftables.Nftables()

def commit(text):
    status, _, error = library.cmd(text)
    assert status == 0, error

def whole():
    return "masquerade" in library.cmd(f"list chain ip {chain}")[1].lower()

commit("add table ip busy; add chain ip busy traffic")
start = time.monotonic()
for number in range(100 * hits):
    time.sleep(max(0, start + number / 100 - time.monotonic()))
    if number % 100 != 50:
        commit(f"add rule ip busy traffic ip daddr 192.0.2.1 counter accept comment \\"{number}\\"")
        continue
    deadline = time.monotonic() + limit
    while not whole():
        assert time.monotonic() < deadline, "the last hit is not repaired"
        time.sleep(0.01)
    commit(f"flush chain ip {chain}")
"""


def test_every_hit_among_many_foreign_transactions_is_repaired(make_node: Callable[[], Node]) -> None:
    """A hundred transactions a second on each of two nodes, and one in a hundred hits us."""
    hits = int(lasting(5, 60))
    chains = {"nft": "flanneld-masq postrouting", "iptables-nft": "nat FLANNELD-MASQ"}
    nodes = {name: make_node() for name in chains}
    with contextlib.ExitStack() as stack:
        daemons = {}
        for name, node in nodes.items():
            node.configure(BY_EVENTS_ALONE, backend=name)
            daemons[name] = stack.enter_context(node.running())
            daemons[name].reached("synced")
        before = {name: node.ruleset() for name, node in nodes.items()}
        flows = [
            stack.enter_context(
                spawned(nodes[name], sys.executable, "-c", TRAFFIC, chain, str(hits), str(patience(10)))
            )
            for name, chain in chains.items()
        ]
        for flow in flows:
            assert flow.wait(patience(60 + 2 * hits)) == 0
        for name, node in nodes.items():
            daemon = daemons[name]
            eventually(lambda: repairs(daemon, Family.IPV4) == hits)
            rules = [line for line in node.ruleset().splitlines() if "ip daddr 192.0.2.1 counter accept" in line]
            assert [line.split('"')[1] for line in rules] == [str(n) for n in range(100 * hits) if n % 100 != 50]
            node.tool("nft", "delete table ip busy")
            assert node.ruleset() == before[name]
            assert not daemon.lines("events lost")
            assert repairs(daemon, Family.IPV4) == hits
            assert daemon.status()["state"] == "synced"


@contextlib.contextmanager
def spawned(node: Node, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the node's namespace, until the end of the block."""
    with node.entered(), Path("/dev/null").open("wb") as nowhere:
        process = netns.spawn(argv, output=nowhere)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_held_xtables_lock_delays_nothing_else(make_node: Callable[[], Node]) -> None:
    """All namespaces of the test have one lock file, in the /run that is theirs alone."""
    waiting, stopping, other = make_node(), make_node(), make_node()
    for node, name in ((waiting, "iptables-legacy"), (stopping, "iptables-legacy"), (other, "nft")):
        node.configure(BY_EVENTS_ALONE, backend=name)
    with contextlib.ExitStack() as stack:
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held = time.monotonic()
            daemon, stopped, unconcerned = (stack.enter_context(node.running()) for node in (waiting, stopping, other))
            unconcerned.reached("synced")
            for each in (daemon, stopped):
                each.logged("started, pid")
                eventually(lambda: children(each))
            assert stopped.stop() == 0
            assert len(stopped.lines("ERROR")) == 0
            for family in Family:
                daemon.reached("waiting", family)
                daemon.logged("WARNING", f" {family}: ", "holds /run/xtables.lock")
            threading.Event().wait(max(0.0, held + LOCK_HELD_SECONDS - time.monotonic()))
        daemon.reached("synced")
        assert not daemon.lines("ERROR")
        for family in Family:
            (line,) = daemon.lines("WARNING", f" {family}: ", "; the daemon waits")
            assert f"(pid {os.getpid()}) holds /run/xtables.lock" in line
            assert daemon.logged("INFO", f"{family}: in sync again")  # which comes behind the status
        assert waiting.masq("--backend", "iptables-legacy", "plan").returncode == 0


def test_a_held_lock_delays_reading_but_not_for_ever(node: Node) -> None:
    node.configure(BY_EVENTS_ALONE, backend="iptables-legacy")
    with node.running() as daemon:
        daemon.reached("synced")
        with LOCK.open("w") as lock, node.entered():
            # the table changes while the lock is held, as in the middle of a restore
            fcntl.flock(lock, fcntl.LOCK_EX)
            no_lock = node.directory / "another.lock"
            environ = {**os.environ, "XTABLES_LOCKFILE": str(no_lock)}
            argv = ("iptables-legacy", "-w", "-t", "nat", "-F", "FLANNELD-MASQ")
            subprocess.run(argv, env=environ, check=True)
            threading.Event().wait(1.0)
            assert repairs(daemon, Family.IPV4) == 0
            assert daemon.status()["state"] == "synced", "nothing is read, so nothing is known to be missing"
        eventually(lambda: repairs(daemon, Family.IPV4) == 1)
        assert not daemon.lines("ERROR")


def children(daemon: Daemon) -> list[str]:
    """The programs that it waits for."""
    names = []
    for thread in Path("/proc", str(daemon.process.pid), "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # what ends meanwhile is not waited for
            pids = (thread / "children").read_text().split()
            names += [Path("/proc", pid, "cmdline").read_text() for pid in pids]
    return [name for name in names if "-restore" in name]
