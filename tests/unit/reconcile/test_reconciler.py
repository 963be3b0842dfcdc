"""One pass, over backends in memory: what it does, in which order, and what it does when somebody interferes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.errors import BackendUnavailable, KernelError, PluginError, RulesetError, StateError
from flanneld_masq.hookspecs import BackendType, Host, hookimpl
from flanneld_masq.model import (
    BackendName,
    Change,
    ChangeKind,
    Family,
    FamilyLease,
    ForwardSettings,
    Group,
    Lease,
    MasqueradeSettings,
    Observation,
    Position,
    Probe,
    Settings,
    Survey,
)
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import remove_flannel_rules, survey_backends
from flanneld_masq.reconcile.values import DesiredState, describe
from flanneld_masq.reconcile.writer import WRITE_TRIES, OwnCommits
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryBackend, MemoryKernel, memory_backend_type
from flanneld_masq.testing.fake_backend import FLANNEL_COMMENT

ONE, TWO, THREE = map(BackendName, ("one", "two", "three"))
V4 = Family.IPV4
LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease((ip_network("10.244.0.0/16"),), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")),
)
OTHER = replace(
    LEASE, ipv4=FamilyLease((ip_network("10.42.0.0/16"),), ip_network("10.42.1.0/24"), ip_address("10.42.1.1"))
)
DUAL = replace(
    LEASE, ipv6=FamilyLease((ip_network("fd00:244::/56"),), ip_network("fd00:244:0:1::/64"), ip_address("fd00:244::1"))
)
WISH = DesiredState(Settings(), (LEASE,))
OURS = "one masquerade"


def desired_state(backend: str = "auto", forward: str = "auto", *leases: Lease, **masquerade: object) -> DesiredState:
    settings = Settings(
        backend=BackendName(backend),
        forward=ForwardSettings(backend=BackendName(forward)),
        masquerade=MasqueradeSettings(**masquerade),  # type: ignore[arg-type]
    )
    return DesiredState(settings, leases or (LEASE,))


class Bench:
    """A reconciler of IPv4 over a kernel in memory with three backends, the first one preferred."""

    def __init__(self, directory: Path, *, counted: bool = True) -> None:
        self.kernel = MemoryKernel()
        self.directory = directory
        self.commits = OwnCommits()
        self._types = [memory_backend_type(name, kernel=self.kernel, counted=counted) for name in (ONE, TWO, THREE)]
        self.reconciler = self.restarted()
        self.missing = ""

    def restarted(self) -> Reconciler:
        """As a new process would see it."""
        return self.of(V4)

    def of(self, family: Family) -> Reconciler:
        backends = {found.name: found.create(family, Host(ProcessRunner())) for found in self._types}
        ticks = iter(range(10_000))
        return Reconciler(
            family,
            backends,
            StateDirectory(self.directory),
            missing=lambda: self.missing,
            commits=self.commits,
            clock=lambda: next(ticks) * 0.001,
        )

    def calls(self, method: str) -> list[BackendName]:
        return [backend for name, backend, _ in self.kernel.log if name == method]

    def reconcile(self, wished: DesiredState = WISH) -> list[BackendName]:
        """One pass; the backends that were written, in order."""
        self.kernel.log.clear()
        repaired = [repair.plan.backend for repair in self.reconciler.reconcile(wished).repairs]
        assert list(dict.fromkeys(self.calls("replace"))) == list(dict.fromkeys(repaired))
        return list(dict.fromkeys(repaired))

    def in_sync(self, wished: DesiredState = WISH) -> bool:
        return not any(found.changes for found in self.reconciler.plan(wished))


def after_the_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have this done once, when IPv4 has been observed and nothing is written yet."""
    observe = MemoryBackend.observe

    def observe_and_act(backend: MemoryBackend, groups: Collection[Group]) -> Observation:
        observed = observe(backend, groups)
        if backend.family is V4:
            monkeypatch.setattr(MemoryBackend, "observe", observe)
            act()
        return observed

    monkeypatch.setattr(MemoryBackend, "observe", observe_and_act)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state")


class TestAPass:
    def test_writes_once_and_then_no_more(self, bench: Bench) -> None:
        assert bench.reconcile() == [ONE]
        assert bench.in_sync()
        held = bench.kernel.chains(V4)
        assert bench.reconcile() == []
        assert bench.kernel.chains(V4) == held

    def test_with_nothing_changed_looks_only_where_rules_are_wanted(self, bench: Bench) -> None:
        bench.reconcile()
        bench.reconcile()
        assert bench.calls("observe") == [ONE]

    def test_says_what_it_did(self, bench: Bench) -> None:
        outcome = bench.reconciler.reconcile(WISH)
        assert {group: (chosen.backend, chosen.why) for group, chosen in outcome.choices.items()} == {
            Group.MASQUERADE: (ONE, "the first choice of auto"),
            Group.FORWARD: (ONE, "goes with the masquerade group"),
        }
        assert outcome.rules == {Group.MASQUERADE: 5, Group.FORWARD: 2}
        (repair,) = outcome.repairs
        assert {change.kind for change in repair.plan.changes} == {"missing"}
        assert repair.duration_us > 0
        assert outcome.generation == bench.kernel.generation

    def test_a_family_without_a_lease_holds_nothing(self, bench: Bench) -> None:
        bench.reconcile()
        empty = replace(LEASE, ipv4=None)
        outcome = bench.reconciler.reconcile(desired_state("auto", "auto", empty))
        assert outcome.choices == {}
        assert bench.kernel.chains(V4) == {"postrouting": (), "forward": ()}

    def test_a_new_process_finds_it_in_order(self, bench: Bench) -> None:
        bench.reconcile()
        bench.reconciler = bench.restarted()
        assert bench.reconcile() == []

    def test_without_its_record_it_writes_anew(self, bench: Bench) -> None:
        bench.reconcile()
        StateDirectory(bench.directory).forget(ONE, V4)
        bench.reconciler = bench.restarted()
        assert bench.reconcile() == [ONE]

    def test_another_lease_is_written(self, bench: Bench) -> None:
        bench.reconcile()
        assert bench.reconcile(desired_state("auto", "auto", OTHER)) == [ONE]
        assert "10.42" in str(bench.kernel.chains(V4)) and "10.244" not in str(bench.kernel.chains(V4))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda kernel: kernel.delete(V4, OURS),
            lambda kernel: kernel.duplicate(V4, OURS, 2),
            lambda kernel: kernel.flush(V4, OURS),
            lambda kernel: kernel.prepend(V4, OURS, "drop"),
            lambda kernel: kernel.flush(V4, "postrouting"),
            lambda kernel: kernel.duplicate(V4, "postrouting"),
            lambda kernel: kernel.commit(V4, {OURS: None}),
            lambda kernel: kernel.flush(V4, "forward"),
        ],
        ids=["delete", "duplicate", "flush", "insert", "jump", "jumps", "chain", "forward jump"],
    )
    def test_repairs(self, damage: Callable[[MemoryKernel], None], bench: Bench) -> None:
        bench.reconcile()
        held = bench.kernel.chains(V4)
        damage(bench.kernel)
        assert not bench.in_sync()
        assert bench.reconcile() == [ONE]
        assert bench.kernel.chains(V4) == held
        assert bench.in_sync()

    def test_planning_changes_nothing(self, bench: Bench) -> None:
        assert not bench.in_sync()
        assert bench.kernel.generation == 0
        assert set(bench.calls("observe")) == {ONE, TWO, THREE}
        assert not bench.directory.exists()

    def test_a_first_position_is_kept(self, bench: Bench) -> None:
        wished = desired_state(position=Position.FIRST)
        bench.reconcile(wished)
        bench.kernel.prepend(V4, "postrouting", "somebody")
        (found, *_) = bench.reconciler.plan(wished)
        assert [change.kind for change in found.changes] == ["moved"]
        assert bench.reconcile(wished) == [ONE]
        assert bench.kernel.chains(V4)["postrouting"][0].startswith("jump one")

    def test_a_last_position_is_not_fought_for(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.append(V4, "postrouting", "somebody")
        assert bench.reconcile() == []


class TestInterference:
    def sometimes(self, bench: Bench, times: int, change: Callable[[], None]) -> list[int]:
        """Somebody does this after each of the first writes; how often they did."""
        done: list[int] = []

        def interfere() -> None:
            if len(done) < times:
                done.append(1)
                change()

        bench.kernel.interfere = interfere
        return done

    @pytest.mark.parametrize("times", range(1, WRITE_TRIES))
    def test_is_written_against(self, times: int, bench: Bench) -> None:
        done = self.sometimes(bench, times, lambda: bench.kernel.flush(V4, OURS))
        assert bench.reconcile() == [ONE]
        assert len(done) == times
        assert bench.calls("replace") == [ONE] * (times + 1)
        assert bench.in_sync()

    def test_without_end_is_given_up_with_the_reason(self, bench: Bench) -> None:
        self.sometimes(bench, 1000, lambda: bench.kernel.flush(V4, OURS))
        with pytest.raises(RulesetError) as caught:
            bench.reconciler.reconcile(WISH)
        assert bench.calls("replace") == [ONE] * WRITE_TRIES
        assert f"one wrote the rules {WRITE_TRIES} times" in str(caught.value)
        assert "object 2 should be rule " in str(caught.value)
        assert StateDirectory(bench.directory).verified_state(ONE, V4) is None, (
            "what was read then is not taken for ours"
        )

    def test_a_body_changed_under_its_comment_is_not_remembered_as_ours(self, bench: Bench) -> None:
        def forge() -> None:
            rules = bench.kernel.chain(V4, OURS) or ()
            bench.kernel.commit(V4, {OURS: (replace(rules[0], text="accept"), *rules[1:])})

        self.sometimes(bench, 1, forge)
        assert bench.reconcile() == [ONE]
        assert bench.in_sync()
        assert "accept" not in str(bench.kernel.chains(V4)[OURS])

    def test_a_busy_neighbour_is_no_reason_to_give_up(self, bench: Bench) -> None:
        self.sometimes(bench, 1000, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        outcome = bench.reconciler.reconcile(WISH)
        assert [repair.plan.backend for repair in outcome.repairs] == [ONE]
        assert bench.calls("replace") == [ONE] * WRITE_TRIES
        assert outcome.generation is not None and outcome.generation < bench.kernel.generation, "so it is looked again"
        bench.kernel.interfere = None
        assert bench.reconcile() == []

    def test_who_comes_ahead_of_our_jump_meanwhile_is_answered(self, bench: Bench) -> None:
        first = desired_state(position=Position.FIRST)
        self.sometimes(bench, 1, lambda: bench.kernel.prepend(V4, "postrouting", "docker's"))
        assert bench.reconcile(first) == [ONE]
        assert [rule.text for rule in bench.kernel.chain(V4, "postrouting") or ()] == [f"jump {OURS}", "docker's"]
        assert bench.in_sync(first)

    def test_an_obstacle_that_comes_meanwhile_is_no_success(self, bench: Bench) -> None:
        self.sometimes(bench, 1, lambda: bench.kernel.obstacles.update({V4: "the table is dormant"}))
        with pytest.raises(RulesetError, match="dormant"):
            bench.reconciler.reconcile(WISH)

    @pytest.mark.parametrize("known", [False, True])
    def test_what_others_commit_after_the_look_costs_a_second_write_only_where_nothing_is_known(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, known: bool
    ) -> None:
        if known:
            bench.reconcile()
            bench.kernel.flush(V4, OURS)
        after_the_look(monkeypatch, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        bench.kernel.log.clear()
        outcome = bench.reconciler.reconcile(WISH)
        assert bench.calls("replace") == [ONE] * (1 if known else 2)
        assert bench.in_sync()
        if known:
            assert outcome.generation == bench.kernel.generation
            assert outcome.fingerprint, "so the next commit of others costs a glance and not a pass"

    @pytest.mark.parametrize("generation", [0, 0xFFFFFFFF - 2])
    def test_what_our_other_family_commits_after_the_look_costs_no_second_write(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, generation: int
    ) -> None:
        bench.kernel.generation = generation
        other = bench.of(Family.IPV6)
        after_the_look(monkeypatch, lambda: other.reconcile(desired_state("auto", "auto", DUAL)))
        bench.reconciler.reconcile(WISH)
        written = [family for name, _, family in bench.kernel.log if name == "replace"]
        assert written == [Family.IPV6, V4]

    def test_a_backend_that_counts_nothing_believes_the_tags(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=False)
        self.sometimes(bench, 1000, lambda: bench.kernel.append(V4, "elsewhere", "rule"))
        outcome = bench.reconciler.reconcile(WISH)
        assert bench.calls("replace") == [ONE]
        assert outcome.generation is None

    def test_an_error_of_a_write_leaves_the_next_pass_a_whole_one(self, bench: Bench) -> None:
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.reconciler.reconcile(WISH)
        assert bench.reconcile() == [ONE]

    def test_an_error_of_reading_writes_nothing(self, bench: Bench) -> None:
        bench.reconcile()
        generation = bench.kernel.generation
        bench.kernel.fail("observe", KernelError("reading", "cut short"))
        with pytest.raises(KernelError, match="cut short"):
            bench.reconciler.reconcile(WISH)
        assert bench.kernel.generation == generation

    def test_of_two_backends_one_that_fails_does_not_stop_the_other(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        for chain in (OURS, "two forward"):
            bench.kernel.flush(V4, chain)
        bench.reconciler.selector.reprobe()
        bench.kernel.fail("observe", KernelError("reading", "no"))
        with pytest.raises(KernelError):
            bench.reconciler.reconcile(desired_state("one", "two"))
        assert bench.kernel.chain(V4, "two forward")
        assert [(repair.plan.backend, repair.drift) for repair in bench.reconciler.repairs] == [(TWO, True)]

    def test_what_is_not_in_its_new_place_stays_in_the_old_one(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one"))
        held = bench.kernel.chains(V4)
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.reconciler.reconcile(desired_state("two"))
        assert bench.kernel.chains(V4) == held

    def test_the_pass_lock_is_held_while_writing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flanneld_masq.state_directory.PASS_LOCK_SECONDS", 0.0)
        refused = []

        def interfere() -> None:
            with pytest.raises(StateError), StateDirectory(bench.directory).exclusive(V4):
                pass
            refused.append(1)

        bench.kernel.interfere = interfere
        bench.reconcile()
        assert refused == [1]


class TestChoice:
    def test_a_switch_writes_the_new_before_it_removes_the_old(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one"))
        seen = []
        bench.kernel.interfere = lambda: seen.append(set(bench.kernel.chains(V4)))
        assert bench.reconcile(desired_state("two")) == [TWO, ONE]
        assert {"one masquerade", "two masquerade"} <= seen[0], "for a moment both are there"
        assert "one masquerade" not in bench.kernel.chains(V4)
        assert bench.in_sync(desired_state("two"))

    def test_each_group_where_it_was_asked_for(self, bench: Bench) -> None:
        assert bench.reconcile(desired_state("one", "two")) == [ONE, TWO]
        names = {"one masquerade", "two forward"}
        assert set(bench.kernel.chains(V4)) == names | {"postrouting", "forward"}
        assert bench.reconcile(desired_state("two", "one")) == [TWO, ONE]
        assert set(bench.kernel.chains(V4)) == {"two masquerade", "one forward", "postrouting", "forward"}

    def test_the_forward_group_goes_where_packets_are_dropped(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.drops[TWO] = "docker drops"
        outcome = bench.reconciler.reconcile(WISH)
        assert (outcome.choices[Group.FORWARD].backend, outcome.choices[Group.FORWARD].why) == (TWO, "docker drops")
        assert set(bench.kernel.chains(V4)) == {"one masquerade", "two forward", "postrouting", "forward"}

    @pytest.mark.parametrize("then", [("two", "one"), ("one", "one"), ("two", "two"), ("three", "one")])
    def test_at_no_time_a_group_is_nowhere(self, then: tuple[str, str], bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        bench.kernel.interfere = lambda: seen.append(bench.kernel.chains(V4))
        seen: list[Mapping[str, tuple[str, ...]]] = []
        bench.reconcile(desired_state(*then))
        assert seen
        for chains in seen:
            for base, group in (("postrouting", "masquerade"), ("forward", "forward")):
                jumps = [rule.partition(" comment")[0] for rule in chains[base]]
                assert any(chains[name] for name in chains if f"jump {name}" in jumps), group

    def test_the_rules_come_before_the_evidence_for_where_others_belong(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.flush(V4, OURS)
        bench.reconcile()
        asked = [name for name, _, _ in bench.kernel.log]
        assert asked.index("replace") < asked.index("drops_forwarding")

    def test_evidence_that_cannot_be_read_is_as_it_was(self, bench: Bench) -> None:
        bench.kernel.drops[TWO] = "docker drops"
        bench.reconcile()
        held = bench.kernel.chains(V4)
        for failing in range(3):
            bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * (failing + 1))
            assert bench.reconciler.reconcile(WISH).choices[Group.FORWARD].backend == TWO
            assert bench.kernel.chains(V4) == held

    def test_nothing_is_removed_for_evidence_that_never_could_be_read(self, bench: Bench) -> None:
        """But what is known to be wanted is written."""
        bench.kernel.drops[TWO] = "docker drops"
        bench.reconcile()
        bench.kernel.flush(V4, OURS)
        bench.reconciler = bench.restarted()
        for _ in range(2):
            bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * 3)
            with pytest.raises(KernelError):
                bench.reconciler.reconcile(WISH)
            assert bench.kernel.chain(V4, OURS) and bench.kernel.chain(V4, "two forward")
        bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * 3)
        with pytest.raises(KernelError):
            bench.reconciler.plan(WISH)
        assert bench.reconcile() == [ONE]
        assert "one forward" not in bench.kernel.chains(V4)

    def test_what_was_taken_is_drift_also_while_passes_fail(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(groups: object) -> NoReturn:
            raise KernelError("reading", "no")

        monkeypatch.setattr(bench.reconciler._backends[TWO], "observe", refuse)
        for drift in (False, True, True):
            bench.kernel.flush(V4, OURS)
            with pytest.raises(KernelError):
                bench.reconciler.reconcile(desired_state("one", "two"))
            assert [(repair.plan.backend, repair.drift) for repair in bench.reconciler.repairs] == [(ONE, drift)]

    def test_what_moves_is_no_drift_and_what_was_taken_is(self, bench: Bench) -> None:
        assert [repair.drift for repair in bench.reconciler.reconcile(WISH).repairs] == [False]
        bench.kernel.flush(V4, OURS)
        assert [repair.drift for repair in bench.reconciler.reconcile(WISH).repairs] == [True]
        bench.kernel.drops[TWO] = "docker drops"
        moved = bench.reconciler.reconcile(WISH).repairs
        assert {(repair.plan.backend, repair.drift) for repair in moved} == {(ONE, False), (TWO, False)}
        bench.kernel.drops.clear()
        bench.kernel.flush(V4, OURS)
        repairs = bench.reconciler.reconcile(WISH).repairs
        assert [repair.drift for repair in repairs if repair.plan.backend == ONE] == [True, False]

    def test_the_first_pass_clears_what_another_backend_still_holds(self, bench: Bench) -> None:
        bench.reconcile(desired_state("three"))
        bench.reconciler = bench.restarted()
        assert bench.reconcile(desired_state("one")) == [ONE, THREE]

    def test_rules_of_a_backend_that_lost_its_tools_are_removed_if_the_kernel_does_it(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.probes[ONE] = Probe(False, "python3-nftables is gone", "install it")
        bench.reconciler.selector.reprobe()
        assert bench.reconcile() == [TWO, ONE]
        assert OURS not in bench.kernel.chains(V4)

    def test_what_cannot_be_read_of_a_backend_that_cannot_be_used_is_no_failure(self, bench: Bench) -> None:
        bench.kernel.probes[ONE] = Probe(False, "gone", "install it")
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.reconciler.reconcile(WISH)
        assert bench.reconcile() == [TWO]
        bench.kernel.append(V4, OURS, "stale")
        bench.reconciler.selector.reprobe()
        bench.kernel.fail("replace", KernelError("writing", "no"))
        assert bench.reconciler.reconcile(WISH).repairs == ()
        assert OURS in bench.kernel.chains(V4)

    def test_what_was_brought_to_an_unused_backend_is_found_after_reprobe(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.append(V4, "two masquerade", "stale")
        assert bench.reconcile() == []
        bench.reconciler.selector.reprobe()
        assert bench.reconcile() == [TWO]

    def test_backends_are_asked_once_until_reprobe(self, bench: Bench) -> None:
        for _ in range(2):
            bench.reconciler.reconcile(WISH)
        assert bench.calls("probe") == [ONE, TWO, THREE]
        bench.kernel.probes[ONE] = Probe(False, "gone", "bring it back")
        bench.reconciler.selector.reprobe()
        outcome = bench.reconciler.reconcile(WISH)
        assert outcome.choices[Group.MASQUERADE].backend == TWO
        assert "one cannot be used (gone)" in outcome.choices[Group.MASQUERADE].why

    def test_an_unusable_one_with_nothing_of_ours_is_left_alone(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        assert bench.reconcile() == [ONE]
        bench.kernel.log.clear()
        assert bench.in_sync()
        assert TWO not in bench.calls("observe")

    def test_none_can_be_used(self, bench: Bench) -> None:
        bench.kernel.probes.update(dict.fromkeys((ONE, TWO, THREE), Probe(False, "gone")))
        with pytest.raises(BackendUnavailable, match="one cannot be used"):
            bench.reconciler.reconcile(WISH)
        assert bench.kernel.generation == 0

    def test_a_kernel_without_the_family_asks_no_backend(self, bench: Bench) -> None:
        bench.missing = "no such family"
        with pytest.raises(BackendUnavailable, match="no such family"):
            bench.reconciler.reconcile(WISH)
        assert bench.kernel.log == []


class TestObstacles:
    def test_raise_and_write_nothing(self, bench: Bench) -> None:
        bench.kernel.obstacles[V4] = "table is dormant; wake it"
        for attempt in (bench.reconciler.reconcile, bench.reconciler.plan):
            with pytest.raises(RulesetError, match="table is dormant; wake it"):
                attempt(WISH)
        assert bench.kernel.generation == 0

    def test_do_not_keep_rules_from_being_removed(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.obstacles[V4] = "table is dormant; wake it"
        repairs, errors = bench.reconciler.remove_everything()
        assert [repair.plan.backend for repair in repairs] == [ONE]
        assert errors == ()
        assert bench.kernel.chains(V4) == {"postrouting": (), "forward": ()}


class TestRemoval:
    def test_of_everything_in_every_backend(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        bench.kernel.append(V4, "postrouting", "somebody")
        bench.kernel.append(V4, "three forward", "stale")
        repairs, errors = bench.reconciler.remove_everything()
        assert ([repair.plan.backend for repair in repairs], errors) == ([ONE, TWO, THREE], ())
        assert bench.kernel.chains(V4) == {"postrouting": ("somebody",), "forward": ()}
        assert StateDirectory(bench.directory).verified_state(ONE, V4) is None
        assert bench.reconciler.remove_everything() == ((), ())

    def test_one_that_fails_does_not_stop_the_rest(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        error = KernelError("reading", "no")
        bench.kernel.fail("observe", error)
        repairs, errors = bench.reconciler.remove_everything()
        assert ([repair.plan.backend for repair in repairs], errors) == ([TWO], (error,))


def test_an_unexpected_exception_of_a_backend_names_its_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MemoryBackend):
        def observe(self, groups: object) -> object:  # type: ignore[override]
            raise ZeroDivisionError("oops")

    class Plugin:
        @hookimpl
        def flanneld_masq_backends(self) -> object:
            return [BackendType(ONE, "", lambda family, host: Broken(ONE, family, MemoryKernel()), 1)]

    monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter(()))
    backends = plugin_loader.load({"mine": Plugin()}).create(V4, Host(ProcessRunner()))
    with pytest.raises(PluginError, match=r"plugin mine failed in one\.observe: ZeroDivisionError\('oops'\)"):
        Reconciler(V4, backends, StateDirectory(tmp_path)).reconcile(WISH)


class TestLookingLess:
    """What lets the daemon know that a pass would find nothing."""

    def test_a_quiet_pass_knows_its_generation_and_what_it_looked_like(self, bench: Bench) -> None:
        for _ in range(2):
            outcome = bench.reconciler.reconcile(WISH)
            assert outcome.generation == bench.kernel.generation
            assert len(outcome.fingerprint) == 3
            assert outcome.fingerprint == bench.reconciler.detector.fingerprint()

    @pytest.mark.parametrize("chain", [OURS, "one forward", "postrouting", "forward"])
    def test_a_glance_changes_with_whatever_is_ours(self, chain: str, bench: Bench) -> None:
        seen = bench.reconciler.reconcile(WISH).fingerprint
        bench.kernel.append(V4, "elsewhere", "rule")
        assert bench.reconciler.detector.fingerprint() == seen
        bench.kernel.flush(V4, chain)
        assert bench.reconciler.detector.fingerprint() != seen

    def test_a_pass_that_was_disturbed_knows_no_glance(self, bench: Bench) -> None:
        bench.kernel.interfere = lambda: bench.kernel.append(V4, "elsewhere", "rule")
        assert bench.reconciler.reconcile(WISH).fingerprint == ()

    def test_of_two_backends_the_earlier_generation_counts(self, bench: Bench) -> None:
        outcome = bench.reconciler.reconcile(desired_state("one", "two"))
        assert outcome.generation == bench.kernel.generation, "nobody but us has committed"
        assert outcome.fingerprint

        def once() -> None:
            bench.kernel.interfere = None
            bench.kernel.append(V4, "elsewhere", "rule")

        bench.kernel.flush(V4, OURS)
        bench.kernel.interfere = once
        outcome = bench.reconciler.reconcile(desired_state("one", "two"))
        assert outcome.generation is not None and outcome.generation < bench.kernel.generation
        assert outcome.fingerprint == (), "what somebody else did may have been seen by nobody"
        again = bench.reconciler.reconcile(desired_state("one", "two"))
        assert again.generation == bench.kernel.generation
        assert again.fingerprint

    def test_without_a_generation_there_is_no_glance_but_a_poll(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=False)
        assert not bench.reconciler.detector.polls(), "no backend is in use yet"
        outcome = bench.reconciler.reconcile(WISH)
        assert (outcome.generation, outcome.fingerprint) == (None, ())
        assert bench.reconciler.detector.polls()
        assert not bench.reconciler.detector.poll()
        bench.kernel.flush(V4, OURS)
        assert bench.reconciler.detector.poll()

    def test_with_a_generation_there_is_no_poll(self, bench: Bench) -> None:
        bench.reconcile()
        assert not bench.reconciler.detector.polls()
        bench.kernel.flush(V4, OURS)
        assert not bench.reconciler.detector.poll()

    def test_what_drops_is_asked_only_where_it_matters(self, bench: Bench) -> None:
        bench.reconcile()
        assert bench.calls("drops_forwarding") == [ONE, TWO, THREE]
        bench.reconcile(desired_state("one", "two"))
        assert bench.calls("drops_forwarding") == []
        off = replace(WISH, settings=replace(WISH.settings, forward=ForwardSettings(enabled=False)))
        bench.reconcile(off)
        assert bench.calls("drops_forwarding") == []

    def test_another_family_s_write_is_waited_for_and_then_not(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flanneld_masq.reconcile.writer.COMMIT_WAIT_SECONDS", 0.01)
        with bench.commits.turn:
            assert bench.reconcile() == [ONE]
            assert bench.commits.turn.locked(), "what was not acquired is not released"
        bench.kernel.flush(V4, OURS)
        assert bench.reconcile() == [ONE]
        assert not bench.commits.turn.locked()


class TestFlannelsRules:
    def test_are_told_and_removed_by_backend(self, bench: Bench) -> None:
        bench.kernel.append(V4, "postrouting", "masquerade", FLANNEL_COMMENT)
        bench.kernel.append(V4, "postrouting", "somebody")
        bench.kernel.cni_masquerade[V4] = "rule CNI"
        bench.kernel.probes[THREE] = Probe(False, "gone")
        bench.reconcile()
        found = {
            backend.name: survey for backend, survey in survey_backends(bench.reconciler.selector.usable(), (LEASE,))
        }
        assert list(found) == [ONE, TWO]
        assert [item.text for item in found[ONE].flannel] == ['masquerade comment "flannel"']
        assert found[ONE].cni_masquerade == "rule CNI"
        ((backend, items),) = remove_flannel_rules(bench.reconciler.selector.usable(), (LEASE,))[:1]
        assert (backend, items) == (ONE, found[ONE].flannel)
        assert bench.kernel.chains(V4)["postrouting"][0] == "somebody"
        assert remove_flannel_rules(bench.reconciler.selector.usable(), (LEASE,)) == ()
        assert bench.in_sync()

    def test_the_family_s_lease_says_what_they_look_like(self) -> None:
        asked = []

        class Asked(MemoryBackend):
            def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
                asked.append(leases)
                return super().survey(leases)

        backends = [Asked(ONE, V4, MemoryKernel())]
        for leases in ((), (replace(LEASE, ipv4=None),), (LEASE, replace(LEASE, ipv4=None), LEASE)):
            survey_backends(backends, leases)
        assert asked == [(), (), (LEASE.ipv4, LEASE.ipv4)]


class TestRender:
    def test_takes_the_most_preferred_without_asking_anybody(self, bench: Bench) -> None:
        bench.kernel.probes[ONE] = Probe(False, "gone")
        ((name, text),) = bench.reconciler.render(WISH)
        assert name == ONE
        assert "chain one masquerade" in text and "chain one forward" in text
        assert bench.kernel.log == []

    def test_each_group_where_it_was_asked_for(self, bench: Bench) -> None:
        rendered = dict(bench.reconciler.render(desired_state("two", "three")))
        assert list(rendered) == [TWO, THREE]
        assert "two masquerade" in rendered[TWO] and "forward" not in rendered[TWO]
        assert "three forward" in rendered[THREE] and "masquerade" not in rendered[THREE]


class TestDescription:
    def test_few_changes_are_told_each(self) -> None:
        changes = (Change(ChangeKind.MISSING, "nat A", "rule a"), Change(ChangeKind.EXTRA, "nat A", found="drop"))
        assert describe(changes) == "missing in nat A: rule a; extra in nat A: drop"

    def test_many_are_counted(self) -> None:
        changes = (*(Change(ChangeKind.MISSING, "nat A", "rule a"),) * 3, Change(ChangeKind.MOVED, "nat B", "x", "y"))
        assert describe(changes) == "3 missing in nat A; 1 moved in nat B"
