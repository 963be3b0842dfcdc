"""A loop over a kernel in memory: its passes, what it reports of them, and which events begin one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.controller import attribution, backoff, departure, family_loop, flush_hold, schedule
from flanneld_masq.controller.family_loop import FamilyLoop
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.errors import KernelError, MasqError
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs.processes import Process
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import (
    BackendName,
    Family,
    FamilyLease,
    Group,
    Lease,
    Observation,
    Probe,
    ReconcileSettings,
    Settings,
)
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.change_detector import ChangeDetector
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState, Outcome
from flanneld_masq.service.daemon import Daemon
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryKernel, memory_backend_type

from ...common import until
from ...surroundings import Surroundings

DEADLINE = 10.0  # seconds
V4 = Family.IPV4
MEMORY, OTHER = BackendName("memory"), BackendName("other")
OURS = "memory masquerade"


def desired() -> DesiredState:
    subnet = FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1"))
    settings = Settings(reconcile=ReconcileSettings(resync_seconds=60.0))
    return DesiredState(settings, (Lease("/run/flannel/subnet.env", subnet),))


@dataclass
class Stage:
    kernel: MemoryKernel
    around: Surroundings
    loop: FamilyLoop

    @property
    def state(self) -> str:
        return self.loop.report.state.value

    @property
    def repairs(self) -> int:
        return self.loop.report.status().repairs or 0

    @property
    def dirty(self) -> bool:
        return self.loop._schedule.dirty

    def hear(self, *transactions: Transaction, lost: bool = False) -> None:
        """These transactions are reported, in the event loop's thread."""
        self.around.queue(*transactions, lost=lost)
        self.loop.receive()


Scene = Callable[[Stage], Awaitable[None]]
Play = Callable[[Scene], None]


@pytest.fixture
def kernel() -> MemoryKernel:
    return MemoryKernel()


@pytest.fixture(autouse=True)
def pids_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the events have pids of this pid namespace, as outside a container."""
    monkeypatch.setattr(attribution, "in_initial_pid_namespace", lambda: True)


@pytest.fixture
def play(tmp_path: Path, kernel: MemoryKernel) -> Play:
    """Runs a scene beside a loop of IPv4 over a kernel in memory."""
    return player(tmp_path, kernel, MEMORY)


@pytest.fixture
def play_two(tmp_path: Path, kernel: MemoryKernel) -> Play:
    """The same, with a second backend, to which the forward group goes where that drops."""
    return player(tmp_path, kernel, MEMORY, OTHER)


def player(tmp_path: Path, kernel: MemoryKernel, *names: BackendName) -> Play:
    async def run(scene: Scene) -> None:
        backends = {name: memory_backend_type(name, kernel=kernel).create(V4, Host(ProcessRunner())) for name in names}
        around = Surroundings(FamilyReport(V4), desired())
        reconciler = Reconciler(V4, backends, StateDirectory(tmp_path / "state"))
        loop = FamilyLoop(around.report, reconciler, around, around, around)
        task = asyncio.create_task(loop.run())
        try:
            await scene(Stage(kernel, around, loop))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            loop.close()

    return lambda scene: asyncio.run(run(scene))


async def at_rest(stage: Stage) -> None:
    await until(lambda: stage.state == "synced")
    await asyncio.wait_for(stage.loop.look("test"), DEADLINE)


def test_what_was_written_first_has_a_diff_and_no_culprit(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        event = stage.around.last("rules-applied")
        assert event.diff.startswith("@@ ipv4 memory: ")
        assert "\n+ " in event.diff
        assert (event.reason, event.backend, event.culprit) == ("resync", "memory", "")
        assert event.duration_us > 0

    play(scene)


def test_drift_has_the_diff_and_all_that_is_known_of_the_culprit(play: Play) -> None:
    """The parent of this very process plays the culprit."""

    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.kernel.append(V4, OURS, "accept everything")
        parent = Path(f"/proc/{os.getppid()}")
        name = (parent / "comm").read_text().strip()
        stage.hear(Transaction(stage.kernel.generation, os.getppid(), name))
        await until(lambda: stage.repairs)
        event, level = stage.around.events[-1]
        assert (event.kind, level, event.reason) == ("drift-repaired", logging.WARNING, "ruleset changed")
        assert event.diff == f"@@ ipv4 memory: {OURS} @@\n# extra\n- accept everything"
        assert (event.culprit, event.culprit_pid) == (name, os.getppid())
        command = printable((parent / "cmdline").read_text().replace("\0", " ").strip())
        assert event.culprit_command[:200] == command[:200] != ""
        assert f"by {name} (pid {os.getppid()}" in event.message

    play(scene)


def test_a_pass_after_a_failure_is_a_retry(play: Play, kernel: MemoryKernel) -> None:
    kernel.fail("observe", KernelError("reading", "no"))

    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        assert stage.around.kinds() == ["degraded", "backend-chosen", "backend-chosen", "rules-applied", "recovered"]
        assert {event.reason for event, _ in stage.around.events[3:]} == {"retry"}

    play(scene)


def test_a_failure_that_lasts_is_told_once(play: Play, kernel: MemoryKernel) -> None:
    kernel.fail("observe", *(KernelError("reading", f"no, at {number}") for number in range(3)))

    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        assert stage.around.kinds().count("degraded") == stage.around.kinds().count("recovered") == 1
        assert stage.loop.report.status().last_error == ""

    play(scene)


def test_a_state_is_logged_when_the_status_shows_it(
    play: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "QUIET_SECONDS", 0.0)
    kernel.fail("observe", KernelError("reading", "no"))

    async def scene(stage: Stage) -> None:
        await until(lambda: ("recovered", "synced") in stage.around.said)
        while "contended" not in stage.around.kinds():
            stage.kernel.append(V4, OURS, "accept everything")
            await stage.loop.look("test")
        await until(lambda: stage.around.kinds().count("recovered") == 2)
        told = [said for said in stage.around.said if said[0] in ("recovered", "contended")]
        assert told == [("recovered", "synced"), ("contended", "contended"), ("recovered", "synced")]

    play(scene)


# ---- what others commit


def commits(stage: Stage, name: str) -> None:
    """The event of what was committed last, by a process that is gone."""
    stage.hear(Transaction(stage.kernel.generation, 4_000_000, name))


@pytest.mark.parametrize("failures", [0, 1])
def test_commit_during_a_first_or_recovering_pass_is_repaired(
    play: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    kernel.fail("observe", *(KernelError("reading", "no"),) * failures)
    last_look = ChangeDetector.fingerprint_at

    async def scene(stage: Stage) -> None:
        here = asyncio.get_running_loop()

        async def hear() -> None:
            commits(stage, "nft")

        def look(detector: ChangeDetector, generation: int | None) -> tuple[bytes | None, ...]:
            """All has been looked at, and the event comes before the pass is over."""
            monkeypatch.setattr(ChangeDetector, "fingerprint_at", last_look)
            kernel.flush(V4, OURS)
            asyncio.run_coroutine_threadsafe(hear(), here).result(DEADLINE)
            return last_look(detector, generation)

        monkeypatch.setattr(ChangeDetector, "fingerprint_at", look)
        await until(lambda: "drift-repaired" in stage.around.kinds())
        assert kernel.chain(V4, OURS)
        assert stage.around.last("drift-repaired").culprit == "nft"

    play(scene)


def test_without_a_subnet_file_no_foreign_commit_is_kept(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.around.desired = None
        for _ in range(3):
            stage.kernel.append(V4, "elsewhere", "rule")
            commits(stage, "nft")
        assert not stage.loop._filter.suspects.undecided
        assert not stage.dirty

    play(scene)


def test_who_commits_after_the_rules_were_broken_is_not_blamed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.flush(V4, OURS)
        commits(stage, "evil")
        for name in ("dockerd", "felix", "kube-proxy", "nft"):
            stage.kernel.append(V4, "elsewhere", "rule")
            commits(stage, name)
        await until(lambda: stage.repairs)
        event = stage.around.last("drift-repaired")
        assert (event.culprit, " or " in event.message) == ("evil", False)

    play(scene)


def test_author_after_a_harmless_change_beside_our_jump_is_named(play: Play) -> None:
    """A rule behind the daemon's jump: only a check tells that it does no harm, and that check may have to wait."""

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.append(V4, "postrouting", "rule")
        commits(stage, "kube-proxy")
        stage.kernel.append(V4, "elsewhere", "rule")
        commits(stage, "felix")
        stage.kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: stage.repairs)
        assert "by evil (pid 4000000) or kube-proxy (pid 4000000)" in stage.around.last("drift-repaired").message

    play(scene)


def test_author_between_another_event_and_the_check_is_named(
    play: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event comes during the pass that finds what it did."""

    async def scene(stage: Stage) -> None:
        await at_rest(stage)

        def drain() -> None:
            monkeypatch.setattr(stage.around, "drain", lambda: None)
            stage.around.queue(Transaction(broken_at, 4_000_001, "evil"))

        monkeypatch.setattr(stage.around, "drain", drain)
        stage.kernel.append(V4, "postrouting", "rule")
        commits(stage, "kube-proxy")
        stage.kernel.flush(V4, OURS)
        broken_at = stage.kernel.generation
        await until(lambda: stage.repairs)
        assert "by evil (pid 4000001) or kube-proxy (pid 4000000)" in stage.around.last("drift-repaired").message

    play(scene)


def test_author_before_another_event_is_checked_is_named(play: Play) -> None:
    """Two events, and what the later one tells of is seen after the earlier one."""

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.append(V4, "elsewhere", "rule")
        harmless = Transaction(stage.kernel.generation, 4_000_000, "kube-proxy")
        stage.kernel.flush(V4, OURS)
        stage.hear(harmless)
        commits(stage, "evil")
        await until(lambda: stage.repairs)
        assert "by evil (pid 4000000) or kube-proxy (pid 4000000)" in stage.around.last("drift-repaired").message

    play(scene)


def test_the_first_program_that_breaks_the_rules_is_blamed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.flush(V4, OURS)
        commits(stage, "evil")
        for name in ("iptables", "nft", "kube-proxy"):
            stage.kernel.append(V4, "postrouting", "rule")
            commits(stage, name)
        await until(lambda: stage.repairs)
        assert stage.around.last("drift-repaired").culprit == "evil"

    play(scene)


def test_author_who_repeats_the_damage_is_not_taken_for_harmless(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        for _ in range(2):
            stage.kernel.flush(V4, OURS)
            commits(stage, "evil")
        await until(lambda: stage.repairs)
        stage.kernel.append(V4, "elsewhere", "rule")
        newcomer = Transaction(stage.kernel.generation, 4_000_001, "newcomer")
        stage.kernel.flush(V4, OURS)
        stage.hear(newcomer, Transaction(stage.kernel.generation, 4_000_000, "evil"))
        await until(lambda: stage.repairs == 2)
        assert stage.around.last("drift-repaired").culprit == "evil"

    play(scene)


@pytest.mark.parametrize("generation", [(1 << 31) + 100, 0])
def test_a_break_of_long_ago_does_not_hide_another(play: Play, generation: int) -> None:
    """The kernel counts in 32 bits, and from the beginning if nf_tables is loaded again."""

    async def scene(stage: Stage) -> None:
        stage.kernel.generation = 50
        await at_rest(stage)
        stage.kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: stage.repairs)
        stage.kernel.generation = generation
        await at_rest(stage)
        stage.kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: stage.repairs == 2)

    play(scene)


def test_rules_broken_again_during_a_pass_are_repaired_again(
    play_two: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.drops[OTHER] = "docker drops"

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        here = asyncio.get_running_loop()
        other = stage.loop._reconciler._backends[OTHER]
        observe = other.observe

        async def hear() -> None:
            commits(stage, "evil")

        def late(groups: Collection[Group]) -> Observation:
            """Ours in the one backend is back, that in the other is not yet."""
            monkeypatch.setattr(other, "observe", observe)
            kernel.flush(V4, OURS)
            asyncio.run_coroutine_threadsafe(hear(), here).result(DEADLINE)
            return observe(groups)

        monkeypatch.setattr(other, "observe", late)
        kernel.flush(V4, OURS)
        kernel.flush(V4, "other forward")
        commits(stage, "evil")
        await until(lambda: stage.repairs >= 2 and kernel.chain(V4, OURS))

    play_two(scene)


def test_among_suspects_the_one_that_was_harmless_is_not_blamed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.append(V4, "elsewhere", "rule")
        commits(stage, "kube-proxy")
        assert not stage.dirty
        stage.kernel.flush(V4, OURS)
        generation = stage.kernel.generation
        stage.kernel.append(V4, "elsewhere", "rule")
        heard = [Transaction(generation, 4_000_000, "evil"), Transaction(generation + 1, 4_000_001, "kube-proxy")]
        stage.hear(*heard)
        await until(lambda: stage.repairs)
        event = stage.around.last("drift-repaired")
        assert event.culprit == "evil"
        assert "by kube-proxy (pid 4000001) or evil (pid 4000000)" in event.message

    play(scene)


def wait_for_flushes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(flush_hold, "BY_COMMANDS", flush_hold.Patience(seconds, seconds, seconds))


def flush(stage: Stage, name: str) -> None:
    stage.kernel.commit(V4, {OURS: (), "postrouting": ()})
    commits(stage, name)


def test_flush_by_a_command_is_repaired_once_the_commands_end(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_flushes(monkeypatch, 2.0)

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        flush(stage, "iptables")
        looks = stage.kernel.log.count(("observe", MEMORY, V4))
        await until(lambda: stage.kernel.log.count(("observe", MEMORY, V4)) > looks + 2)
        assert stage.kernel.chains(V4)[OURS] == stage.kernel.chains(V4)["postrouting"] == ()
        stage.kernel.commit(V4, {OURS: None})
        commits(stage, "iptables")
        wait_for_flushes(monkeypatch, 0.0)
        await until(lambda: stage.repairs)
        event = stage.around.last("drift-repaired")
        assert "chain" in event.message
        assert event.culprit == "iptables"
        assert stage.around.kinds().count("drift-repaired") == 1

    play(scene)


@pytest.mark.parametrize("name", ["nft", "kube-proxy"])
def test_flush_by_another_program_is_repaired_at_once(play: Play, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wait_for_flushes(monkeypatch, 10 * DEADLINE)

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        flush(stage, name)
        await until(lambda: stage.repairs)

    play(scene)


def test_single_object_deleted_by_a_command_is_repaired_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_flushes(monkeypatch, 10 * DEADLINE)

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.flush(V4, "postrouting")
        commits(stage, "iptables")
        await until(lambda: stage.repairs == 1)
        stage.kernel.flush(V4, OURS)
        commits(stage, "iptables")
        await until(lambda: stage.repairs == 2)

    play(scene)


def test_flush_that_goes_on_is_repaired_all_the_same(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        while not stage.repairs:
            flush(stage, "iptables")
            await asyncio.sleep(0.01)

    play(scene)


def test_a_group_that_moves_on_new_evidence_is_nobody_s_drift(play_two: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.kernel.drops[OTHER] = "docker drops"
        stage.kernel.append(V4, "elsewhere", "docker's rule")
        commits(stage, "dockerd")
        await until(lambda: stage.kernel.chain(V4, "other forward") and not stage.kernel.chain(V4, "memory forward"))
        await until(lambda: stage.around.last("backend-chosen").backend == OTHER)
        assert "drift-repaired" not in stage.around.kinds()
        assert not stage.repairs
        assert all(not event.culprit for event, _ in stage.around.events)

    play_two(scene)


async def with_forward_moved(stage: Stage) -> None:
    """The forward group has moved to the other backend, in which a drop began."""
    await at_rest(stage)
    drop(stage, "policy drop")
    await until(lambda: stage.kernel.chain(V4, "other forward") and not stage.kernel.chain(V4, "memory forward"))
    await at_rest(stage)
    stage.around.events.clear()


def drop(stage: Stage, evidence: str, backend: BackendName = OTHER) -> None:
    """Another program has a backend begin to drop, or end that."""
    stage.kernel.drops[backend] = evidence
    stage.kernel.append(V4, "elsewhere", "rule")
    commits(stage, "ufw")


def test_a_drop_that_is_back_within_a_moment_moves_nothing(play_two: Play) -> None:
    async def scene(stage: Stage) -> None:
        await with_forward_moved(stage)
        for _ in range(3):
            drop(stage, "")
            await stage.loop.look("test")
            assert stage.kernel.chain(V4, "other forward")
            drop(stage, "policy drop")
            await stage.loop.look("test")
        assert {event.kind for event, _ in stage.around.events} <= {"verified"}
        assert not stage.loop._departure.due

    play_two(scene)


def test_a_drop_that_stays_away_lets_the_group_leave(play_two: Play) -> None:
    async def scene(stage: Stage) -> None:
        await with_forward_moved(stage)
        drop(stage, "")
        await until(lambda: stage.kernel.chain(V4, "memory forward") and not stage.kernel.chain(V4, "other forward"))
        await at_rest(stage)
        assert stage.around.kinds() == ["backend-chosen", "rules-applied", "rules-applied"]
        assert not stage.loop._departure.due

    play_two(scene)


def test_endless_commits_delay_the_departure_for_a_bounded_time(
    play_two: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "MAX_STAY_SECONDS", 0.3)

    async def scene(stage: Stage) -> None:
        await with_forward_moved(stage)
        drop(stage, "")
        while stage.kernel.chain(V4, "other forward"):
            drop(stage, "")
            await asyncio.sleep(0.01)

    play_two(scene)


def test_a_drop_elsewhere_gets_an_accept_while_the_group_stays(play_two: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "LEAVE_SECONDS", 10 * DEADLINE)
    monkeypatch.setattr(departure, "MAX_STAY_SECONDS", 10 * DEADLINE)

    async def scene(stage: Stage) -> None:
        await with_forward_moved(stage)
        drop(stage, "")
        drop(stage, "policy drop", MEMORY)
        await until(lambda: stage.kernel.chain(V4, "memory forward"))
        assert stage.kernel.chain(V4, "other forward")

    play_two(scene)


def test_a_reload_does_not_wait_for_a_drop_to_come_back(play_two: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "LEAVE_SECONDS", 10 * DEADLINE)
    monkeypatch.setattr(departure, "MAX_STAY_SECONDS", 10 * DEADLINE)

    async def scene(stage: Stage) -> None:
        await with_forward_moved(stage)
        drop(stage, "")
        stage.loop.mark("reload", reprobe=True)
        await until(lambda: not stage.kernel.chain(V4, "other forward"))

    play_two(scene)


def test_a_program_that_was_installed_is_noticed_at_the_resync(play_two: Play, kernel: MemoryKernel) -> None:
    kernel.drops[OTHER] = "FORWARD drops"
    kernel.probes[OTHER] = Probe(False, "no program", "install it")

    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "degraded")
        assert kernel.chain(V4, "memory masquerade"), "pods are masqueraded all the same"
        assert "install it" in stage.loop.report.status().last_error
        assert stage.around.kinds().count("forward-dropped") == 1
        stage.loop.mark(schedule.RESYNC)
        await until(lambda: not stage.dirty and not stage.loop._schedule.passing)
        assert stage.around.kinds().count("forward-dropped") == 1
        del kernel.probes[OTHER]
        stage.loop.mark(schedule.RESYNC)
        await until(lambda: stage.state == "synced")
        assert kernel.chain(V4, "other forward")
        assert "recovered" in stage.around.kinds()

    play_two(scene)


def test_a_tool_that_made_a_table_is_followed_by_a_pass(play_two: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        stage.kernel.drops[OTHER] = "legacy drops"  # there is no event
        monkeypatch.setattr(stage.loop._poller, "_poll", lambda: True)
        stage.loop.lock_released(())
        await until(lambda: stage.kernel.chain(V4, "other forward") and not stage.kernel.chain(V4, "memory forward"))
        assert not stage.repairs

    play_two(scene)


def test_a_tool_that_changed_nothing_causes_no_pass(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """flannel asks 240 times a minute whether its rules are there."""

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        await until(lambda: not stage.loop._schedule.passing)
        stage.loop.lock_released((Process(42, b"iptables\n"),))
        assert not stage.dirty

    play(scene)


def test_a_tool_beside_a_failing_pass_shortens_no_retry(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        kernel.fail("observe", *(KernelError("reading", "no") for _ in range(3)))
        stage.loop.mark("test")
        await until(lambda: stage.state == "degraded")
        stage.loop.lock_released(())
        assert not stage.dirty

    play(scene)


def test_the_lock_user_is_named_if_a_repair_has_no_generation(
    play: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        await until(lambda: not stage.loop._schedule.passing)
        monkeypatch.setattr(stage.loop._reconciler._backends[MEMORY], "generation", lambda: None)
        monkeypatch.setattr(stage.loop._poller, "_poll", lambda: not kernel.chain(V4, OURS))
        kernel.flush(V4, OURS)
        stage.loop.lock_released((Process(42, b"evil\n", b"evil\0-F\0", b"0::/system.slice/evil.service\n"),))
        await until(lambda: stage.repairs)
        event = stage.around.last("drift-repaired")
        assert (event.reason, event.culprit, event.culprit_pid) == ("legacy tables changed", "evil", 42)
        assert (event.culprit_command, event.culprit_unit) == ("evil -F", "evil.service")

    play(scene)


def test_a_drop_behind_the_evidence_of_a_pass_is_not_missed(
    play_two: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend without events: its poll knows only what came after the pass has read it, and the drop came before."""

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        other = stage.loop._reconciler._backends[OTHER]
        for method, answer in (("poll", False), ("generation", None)):
            monkeypatch.setattr(other, method, lambda answer=answer: answer)
        monkeypatch.setattr(other, "fingerprint", lambda groups: None)
        evidence = other.drops_forwarding

        def late() -> str:
            monkeypatch.setattr(other, "drops_forwarding", evidence)
            seen = evidence()
            kernel.drops[OTHER] = "docker drops"
            return seen

        monkeypatch.setattr(other, "drops_forwarding", late)
        await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        await until(lambda: kernel.chain(V4, "other forward"))

    play_two(scene)


def test_repair_in_a_pass_that_fails_later_is_logged_and_counted(play_two: Play, kernel: MemoryKernel) -> None:
    kernel.drops[OTHER] = "docker drops"

    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        kernel.fail("drops_forwarding", ZeroDivisionError("oh"))
        kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: "degraded" in stage.around.kinds())
        assert stage.repairs == 1
        assert stage.around.last("drift-repaired").culprit == "evil"
        await until(lambda: stage.state == "synced")
        assert stage.repairs == 1

    play_two(scene)


def test_who_undoes_each_write_at_once_is_named(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        here = asyncio.get_running_loop()

        async def hear() -> None:
            commits(stage, "evil")

        def undo() -> None:
            kernel.flush(V4, OURS)
            asyncio.run_coroutine_threadsafe(hear(), here).result(DEADLINE)

        kernel.interfere = undo
        kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: "degraded" in stage.around.kinds())
        event = stage.around.last("degraded")
        assert event.culprit == "evil"
        assert "wrote the rules 4 times" in event.message and "meanwhile changed by evil (pid 4000000)" in event.message
        kernel.interfere = None
        await until(lambda: stage.state == "synced")

    play(scene)


def test_while_passes_fail_each_damage_has_a_culprit_of_its_own(
    play_two: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.drops[OTHER] = "docker drops"

    def refuse(groups: object) -> NoReturn:
        raise KernelError("reading", "no")

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        monkeypatch.setattr(stage.loop._reconciler._backends[OTHER], "observe", refuse)
        for name in ("first", "second"):
            kernel.flush(V4, OURS)
            commits(stage, name)
            with pytest.raises(MasqError):
                await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
            assert stage.around.last("drift-repaired").culprit == name

    play_two(scene)


def test_what_was_of_no_concern_is_held_against_nobody_later(
    play: Play, kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was heard while a pass ran."""
    monkeypatch.setitem(schedule.SETTLE_SECONDS, "iptables-restor", 60.0)
    monkeypatch.setattr(family_loop, "MAX_SETTLE_SECONDS", 60.0)

    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        here = asyncio.get_running_loop()
        last_look = ChangeDetector.fingerprint_at

        async def hear() -> None:
            stage.hear(Transaction(kernel.generation + 1, 4_000_000, "kube-proxy"))

        def look(detector: ChangeDetector, generation: int | None) -> tuple[bytes | None, ...]:
            monkeypatch.setattr(ChangeDetector, "fingerprint_at", last_look)
            seen = last_look(detector, generation)
            asyncio.run_coroutine_threadsafe(hear(), here).result(DEADLINE)
            return seen

        monkeypatch.setattr(ChangeDetector, "fingerprint_at", look)
        await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        await until(lambda: not stage.dirty and not stage.loop._filter.suspects.undecided)
        kernel.append(V4, "elsewhere", "rule")
        kernel.flush(V4, OURS)
        commits(stage, "evil")
        await until(lambda: stage.repairs)
        assert "by evil (pid 4000000)" in stage.around.last("drift-repaired").message

    play(scene)


def test_events_lost_during_a_back_off_lead_to_a_check(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        kernel.append(V4, "elsewhere", "rule")
        stage.loop.mark(schedule.RULESET_CHANGED)
        kernel.flush(V4, OURS)
        stage.hear(lost=True)
        await until(lambda: stage.repairs)

    play(scene)


def test_what_cannot_be_seen_of_others_is_told_once(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await at_rest(stage)
        for _ in range(3):
            kernel.fail("survey", KernelError("reading", "no"))
            await asyncio.wait_for(stage.loop.look(schedule.RESYNC), DEADLINE)
        assert [event.message for event, _ in stage.around.events if event.kind == "notice"] == [
            "ipv4: cannot list foreign rules: reading: no; trying again at the next resync"
        ]
        await asyncio.wait_for(stage.loop.look(schedule.RESYNC), DEADLINE)
        kernel.fail("survey", KernelError("reading", "no"))
        await asyncio.wait_for(stage.loop.look(schedule.RESYNC), DEADLINE)
        assert stage.around.kinds().count("notice") == 2

    play(scene)


def test_a_contention_is_told_once_whatever_fails_meanwhile(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        while stage.state != "contended":
            kernel.flush(V4, OURS)
            await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        kernel.fail("observe", KernelError("reading", "no"))
        with pytest.raises(KernelError):
            await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        assert stage.state == "contended"
        assert stage.around.kinds().count("contended") == 1

    play(scene)


def test_a_kernel_that_cannot_be_polled_is_an_ordinary_failure(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        failing = [KernelError("polling", "no")]

        def polls(detector: ChangeDetector) -> bool:
            if failing:
                raise failing.pop()
            return False

        monkeypatch.setattr(ChangeDetector, "polls", polls)
        with pytest.raises(KernelError, match="polling"):
            await asyncio.wait_for(stage.loop.look("test"), DEADLINE)
        assert (await asyncio.wait_for(stage.loop.look("test"), DEADLINE)).choices

    play(scene)


# ---- whether it has settled


def test_it_has_settled_after_the_first_pass_whatever_came_of_it(play: Play, kernel: MemoryKernel) -> None:
    kernel.fail("observe", KernelError("reading", "no"))

    async def scene(stage: Stage) -> None:
        assert not stage.loop.report.settled
        await until(lambda: stage.state == "degraded")
        assert stage.loop.report.settled

    play(scene)


def test_a_reload_unsettles_it_until_a_pass_has_followed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        looked = len(stage.kernel.log)
        stage.loop.mark("something else")
        assert stage.loop.report.settled
        stage.loop.mark("reload", reprobe=True)
        assert not stage.loop.report.settled
        await until(lambda: stage.loop.report.settled)
        assert ("probe", MEMORY, V4) in stage.kernel.log[looked:]

    play(scene)


def test_a_reload_during_a_pass_is_not_settled_by_that_pass(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        here = asyncio.get_running_loop()
        seen = []

        def meanwhile() -> None:
            kernel.interfere = None
            asyncio.run_coroutine_threadsafe(reload(), here).result(DEADLINE)

        async def reload() -> None:
            stage.loop.mark("reload", reprobe=True)
            stage.around.publish = lambda: seen.append(stage.loop.report.settled)  # type: ignore[method-assign]

        kernel.interfere = meanwhile
        kernel.flush(V4, OURS)
        stage.loop.mark("look")
        await until(lambda: stage.loop.report.settled and len(seen) > 1)
        assert seen[0] is False

    play(scene)


# ---- who asks for a pass, and waits for it


def test_who_asks_gets_what_came_of_the_next_pass(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.kernel.flush(V4, OURS)
        asked = [stage.loop.look("Reconcile called") for _ in range(2)]
        first, second = await asyncio.wait_for(asyncio.gather(*asked), DEADLINE)
        (repair,) = first.repairs
        assert (repair.plan.backend, second) == (MEMORY, first)
        assert stage.around.last("drift-repaired").reason == "Reconcile called"
        assert (await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)).repairs == ()

    play(scene)


def test_who_asks_during_a_pass_waits_for_the_one_after_it(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        here = asyncio.get_running_loop()
        asked: list[asyncio.Future[Outcome]] = []

        def meanwhile() -> None:
            """It has looked by now, and is about to write."""
            kernel.interfere = None
            asyncio.run_coroutine_threadsafe(ask(), here).result(DEADLINE)

        async def ask() -> None:
            asked.append(stage.loop.look("Reconcile called"))

        kernel.interfere = meanwhile
        kernel.flush(V4, OURS)
        stage.loop.mark("look")
        await until(lambda: asked)
        assert (await asyncio.wait_for(asked[0], DEADLINE)).repairs == ()
        assert stage.repairs == 1

    play(scene)


def test_who_asks_gets_the_error_of_the_pass(play: Play, kernel: MemoryKernel) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        for error in (KernelError("reading", "no"), ZeroDivisionError("oh")):
            kernel.fail("observe", error)
            with pytest.raises(MasqError) as raised:
                await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)
            assert str(error) in str(raised.value)
        assert (await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)).choices

    play(scene)


def test_who_asks_before_there_is_a_subnet_file_is_told_so(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.around.desired = None
        with pytest.raises(MasqError, match="no subnet file"):
            await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)

    play(scene)


def test_who_asked_and_went_away_harms_nobody(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await until(lambda: stage.state == "synced")
        stage.loop.look("Reconcile called").cancel()
        assert (await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)).repairs == ()

    play(scene)


async def contended(stage: Stage) -> float:
    """Spend the back-off until a repair has to wait for longer than any test; return until when."""
    await until(lambda: stage.state == "synced")
    while (held := stage.loop._schedule.held_until()) < asyncio.get_running_loop().time() + 2 * DEADLINE:
        stage.kernel.flush(V4, OURS)
        await asyncio.wait_for(stage.loop.look("Reconcile called"), DEADLINE)
    return held


def test_an_urgent_reason_does_not_wait_in_a_contention(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        held, repairs = await contended(stage), stage.repairs
        stage.kernel.flush(V4, OURS)
        stage.loop.mark("a new lease")
        await until(lambda: stage.repairs > repairs)
        assert asyncio.get_running_loop().time() < held

    play(scene)


def test_a_hint_waits_for_the_end_of_a_contention(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await contended(stage)
        repairs = stage.repairs
        stage.kernel.flush(V4, OURS)
        stage.loop.mark("firewalld reloaded", urgent=False)
        for _ in range(50):
            await asyncio.sleep(0)
        assert stage.dirty and stage.repairs == repairs
        stage.loop.mark("a new lease")
        await until(lambda: stage.repairs > repairs)
        assert stage.around.last("drift-repaired").reason == "firewalld reloaded, a new lease"

    play(scene)


def test_the_daemon_tells_of_all_families_that_failed(tmp_path: Path) -> None:
    """The daemon raises a single error as it is, and joins several into one."""

    async def answers(*errors: MasqError) -> MasqError:
        daemon = Daemon(lambda: Settings(state_directory=str(tmp_path)), plugin_loader.load())
        asking = asyncio.ensure_future(daemon.reconcile())
        await asyncio.sleep(0)
        for each, error in zip(daemon._loops, errors):
            each.report.error = error
            each._answer(each._asked)
            each.close()
        with pytest.raises(MasqError) as raised:
            await asyncio.wait_for(asking, DEADLINE)
        return raised.value

    one, other = KernelError("reading", "no"), MasqError("a lock")
    assert asyncio.run(answers(one, one)) is one
    assert str(asyncio.run(answers(one, other))) == "reading: no; a lock"
