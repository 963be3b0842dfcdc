"""One pass, over backends in memory: what it does and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.errors import KernelError, PluginError, RulesetError, StateError
from flanneld_masq.hookspecs import BackendType, Host, hookimpl
from flanneld_masq.model import Family, Group, Mark, MarkEvidence, MasqueradeSettings, Observation, Position, Probe
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.ruleset.backend_choice import Choice
from flanneld_masq.ruleset.mark_choice import MarkChoice
from flanneld_masq.state_directory import StateDirectory
from flanneld_masq.testing import MemoryBackend, MemoryKernel
from flanneld_masq.testing.fake_backend import MemoryRule

from .bench import DESIRED, LEASE, ONE, OTHER, OURS, STALE, THREE, TWO, V4, Bench, desired_state


class TestPass:
    def test_second_pass_writes_nothing(self, bench: Bench) -> None:
        assert bench.reconcile() == [ONE]
        assert bench.in_sync()
        held = bench.kernel.chains(V4)
        assert bench.reconcile() == []
        assert bench.kernel.chains(V4) == held

    def test_quiet_pass_reads_only_backends_in_use(self, bench: Bench) -> None:
        bench.reconcile()
        bench.reconcile()
        assert bench.calls("observe") == [ONE]

    def test_outcome_has_choices_rules_and_repairs(self, bench: Bench) -> None:
        outcome = bench.outcome(DESIRED)
        assert {group: (chosen.backend, chosen.why) for group, (chosen,) in outcome.choices.items()} == {
            Group.MASQUERADE: (ONE, "the first choice of auto"),
            Group.FORWARD: (ONE, "goes with the masquerade group"),
        }
        assert outcome.rules == {Group.MASQUERADE: 5, Group.FORWARD: 2}
        (repair,) = outcome.repairs
        assert {change.kind for change in repair.plan.changes} == {"missing"}
        assert repair.duration_us > 0
        assert outcome.generation == bench.kernel.generation

    def test_family_without_a_lease_is_cleared(self, bench: Bench) -> None:
        bench.reconcile()
        empty = replace(LEASE, ipv4=None)
        outcome = bench.outcome(desired_state("auto", "auto", empty))
        assert outcome.choices == {}
        assert bench.kernel.chains(V4) == {"postrouting": (), "forward": ()}

    def test_new_process_finds_the_rules_in_order(self, bench: Bench) -> None:
        bench.reconcile()
        bench.reconciler = bench.restarted()
        assert bench.reconcile() == []

    def test_lost_state_file_makes_the_pass_write_again(self, bench: Bench) -> None:
        bench.reconcile()
        StateDirectory(bench.directory).forget(ONE, V4)
        bench.reconciler = bench.restarted()
        assert bench.reconcile() == [ONE]

    def test_mark_of_kube_proxy_is_followed(self, bench: Bench) -> None:
        outcome = bench.outcome(DESIRED)
        assert outcome.kube_proxy_mark is not None and not outcome.kube_proxy_mark.read
        assert "mark 0x4000/0x4000" in str(bench.kernel.chains(V4))
        bench.kernel.marks[TWO] = MarkEvidence(Mark(1, 1), "a chain")
        outcome = bench.outcome(DESIRED)
        assert outcome.kube_proxy_mark == MarkChoice(Mark(1, 1), "a chain", read=True)
        assert [repair.drift for repair in outcome.repairs] == [False]
        assert "mark 0x1/0x1" in str(bench.kernel.chains(V4)) and "0x4000" not in str(bench.kernel.chains(V4))
        assert bench.reconcile() == []
        bench.reconciler = bench.restarted()
        assert bench.reconcile() == [], "the mark is read before anything is written"
        assert [plan.changes for plan in bench.restarted().plan(DESIRED)] == [(), (), ()]

    def test_family_without_masquerade_has_no_mark(self, bench: Bench) -> None:
        masquerade = MasqueradeSettings(families=(Family.IPV6,))
        desired = replace(DESIRED, settings=replace(DESIRED.settings, masquerade=masquerade))
        outcome = bench.reconciler.reconcile(desired)
        assert (outcome.kube_proxy_mark, set(outcome.rules)) == (None, {Group.FORWARD})
        assert bench.calls("kube_proxy_mark") == []

    def test_new_lease_replaces_the_rules(self, bench: Bench) -> None:
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
    def test_damage_is_repaired(self, damage: Callable[[MemoryKernel], None], bench: Bench) -> None:
        bench.reconcile()
        held = bench.kernel.chains(V4)
        damage(bench.kernel)
        assert not bench.in_sync()
        assert bench.reconcile() == [ONE]
        assert bench.kernel.chains(V4) == held
        assert bench.in_sync()

    def test_plan_reads_every_backend_and_changes_nothing(self, bench: Bench) -> None:
        assert not bench.in_sync()
        assert bench.kernel.generation == 0
        assert set(bench.calls("observe")) == {ONE, TWO, THREE}
        assert not bench.directory.exists()

    def test_first_position_is_restored(self, bench: Bench) -> None:
        state = desired_state(position=Position.FIRST)
        bench.reconcile(state)
        bench.kernel.prepend(V4, "postrouting", "foreign")
        (plan, *_) = bench.reconciler.plan(state)
        assert [change.kind for change in plan.changes] == ["moved"]
        assert bench.reconcile(state) == [ONE]
        assert bench.kernel.chains(V4)["postrouting"][0].startswith("jump one")

    def test_rule_appended_behind_the_last_jump_is_accepted(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.append(V4, "postrouting", "foreign")
        assert bench.reconcile() == []

    def test_pass_after_a_failed_write_writes(self, bench: Bench) -> None:
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.outcome(DESIRED)
        assert bench.reconcile() == [ONE]

    def test_failed_read_writes_nothing(self, bench: Bench) -> None:
        bench.reconcile()
        generation = bench.kernel.generation
        bench.kernel.fail("observe", KernelError("reading", "cut short"))
        with pytest.raises(KernelError, match="cut short"):
            bench.outcome(DESIRED)
        assert bench.kernel.generation == generation

    def test_failing_backend_does_not_stop_the_other(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        for chain in (OURS, "two forward"):
            bench.kernel.flush(V4, chain)
        bench.reconciler.selector.reprobe()
        bench.kernel.fail("observe", KernelError("reading", "no"))
        with pytest.raises(KernelError):
            bench.outcome(desired_state("one", "two"))
        assert bench.kernel.chain(V4, "two forward")
        assert [(repair.plan.backend, repair.drift) for repair in bench.reconciler.repairs] == [(TWO, True)]

    def test_family_lock_is_held_while_writing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flanneld_masq.state_directory.PASS_LOCK_SECONDS", 0.0)
        refused = []

        def interfere() -> None:
            with pytest.raises(StateError), StateDirectory(bench.directory).exclusive(V4):
                pass
            refused.append(1)

        bench.kernel.interfere = interfere
        bench.reconcile()
        assert refused == [1]

    def test_unexpected_exception_of_a_backend_names_its_plugin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Broken(MemoryBackend):
            def observe(self, groups: object) -> Observation:
                raise ZeroDivisionError("oops")

        class Plugin:
            @hookimpl
            def flanneld_masq_backends(self) -> object:
                return [BackendType(ONE, "", lambda family, host: Broken(ONE, family, MemoryKernel()), 1)]

        monkeypatch.setattr(plugin_loader, "_entry_points", lambda: iter(()))
        backends = plugin_loader.load({"mine": Plugin()}).create(V4, Host(ProcessRunner()))
        with pytest.raises(PluginError, match=r"plugin mine failed in one\.observe: ZeroDivisionError\('oops'\)"):
            Reconciler(V4, backends, StateDirectory(tmp_path)).reconcile(DESIRED)


class TestSwitch:
    """Rules that move from one backend to another."""

    def test_new_rules_are_written_before_old_are_removed(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one"))
        seen = []
        bench.kernel.interfere = lambda: seen.append(set(bench.kernel.chains(V4)))
        assert bench.reconcile(desired_state("two")) == [TWO, ONE]
        assert {"one masquerade", "two masquerade"} <= seen[0], "for a moment both are there"
        assert "one masquerade" not in bench.kernel.chains(V4)
        assert bench.in_sync(desired_state("two"))

    def test_failed_write_leaves_the_old_rules_in_place(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one"))
        held = bench.kernel.chains(V4)
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.outcome(desired_state("two"))
        assert bench.kernel.chains(V4) == held

    def test_each_group_goes_where_the_settings_say(self, bench: Bench) -> None:
        assert bench.reconcile(desired_state("one", "two")) == [ONE, TWO]
        names = {"one masquerade", "two forward"}
        assert set(bench.kernel.chains(V4)) == names | {"postrouting", "forward"}
        assert bench.reconcile(desired_state("two", "one")) == [TWO, ONE]
        assert set(bench.kernel.chains(V4)) == {"two masquerade", "one forward", "postrouting", "forward"}

    def test_forward_group_goes_where_packets_are_dropped(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.drops[TWO] = "docker drops"
        outcome = bench.outcome(DESIRED)
        assert outcome.choices[Group.FORWARD] == (Choice(TWO, "docker drops"),)
        assert set(bench.kernel.chains(V4)) == {"one masquerade", "two forward", "postrouting", "forward"}

    def test_forward_group_goes_wherever_packets_are_dropped(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.drops.update({TWO: "docker drops", THREE: "legacy drops"})
        outcome = bench.outcome(DESIRED)
        assert outcome.choices[Group.FORWARD] == (Choice(TWO, "docker drops"), Choice(THREE, "legacy drops"))
        places = {"one masquerade", "two forward", "three forward", "postrouting", "forward"}
        assert set(bench.kernel.chains(V4)) == places
        assert bench.reconcile() == []
        assert outcome.rules == {Group.MASQUERADE: 5, Group.FORWARD: 2}
        bench.kernel.flush(V4, "three forward")
        assert bench.reconcile() == [THREE]
        del bench.kernel.drops[TWO]
        assert bench.reconcile() == [TWO]
        assert set(bench.kernel.chains(V4)) == places - {"two forward"}

    @pytest.mark.parametrize("then", [("two", "one"), ("one", "one"), ("two", "two"), ("three", "one")])
    def test_every_group_is_somewhere_at_all_times(self, then: tuple[str, str], bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        bench.kernel.interfere = lambda: seen.append(bench.kernel.chains(V4))
        seen: list[Mapping[str, tuple[str, ...]]] = []
        bench.reconcile(desired_state(*then))
        assert seen
        for chains in seen:
            for base, group in (("postrouting", "masquerade"), ("forward", "forward")):
                jumps = [rule.partition(" comment")[0] for rule in chains[base]]
                assert any(chains[name] for name in chains if f"jump {name}" in jumps), group

    def test_masquerade_repair_does_not_wait_for_evidence(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.flush(V4, OURS)
        bench.reconcile()
        asked = [name for name, _, _ in bench.kernel.log]
        assert asked.index("replace") < asked.index("drops_forwarding")

    def test_first_pass_clears_other_backends(self, bench: Bench) -> None:
        bench.reconcile(desired_state("three"))
        bench.reconciler = bench.restarted()
        assert bench.reconcile(desired_state("one")) == [ONE, THREE]

    def test_rules_of_a_backend_without_tools_are_removed(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.probes[ONE] = Probe(False, "the tool is gone", "install it")
        bench.reconciler.selector.reprobe()
        assert bench.reconcile() == [TWO, ONE]
        assert OURS not in bench.kernel.chains(V4)

    def test_unusable_backend_that_cannot_be_cleared_is_no_failure(self, bench: Bench) -> None:
        bench.kernel.probes[ONE] = Probe(False, "gone", "install it")
        bench.kernel.fail("replace", KernelError("writing", "no"))
        with pytest.raises(KernelError):
            bench.outcome(DESIRED)
        assert bench.reconcile() == [TWO]
        bench.kernel.append(V4, OURS, "stale")
        bench.reconciler.selector.reprobe()
        bench.kernel.fail("replace", KernelError("writing", "no"))
        assert bench.outcome(DESIRED).repairs == ()
        assert OURS in bench.kernel.chains(V4)

    def test_stale_rules_elsewhere_are_found_after_reprobe(self, bench: Bench) -> None:
        bench.reconcile()
        bench.kernel.append(V4, "two masquerade", "stale", STALE)
        bench.reconciler.selector.reprobe()
        assert bench.reconcile() == [TWO]

    def test_unusable_backend_without_rules_is_left_alone(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        assert bench.reconcile() == [ONE]
        assert bench.in_sync()
        assert bench.reconcile() == []


class TestLeftovers:
    """Rules of the daemon where none belongs: an old dump was restored, or a command used another backend."""

    @pytest.mark.parametrize("place", ["two masquerade", "two forward", "three masquerade", "three forward"])
    @pytest.mark.parametrize("counted", [True, False])
    def test_next_pass_removes_them_as_drift(self, place: str, counted: bool, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=counted)
        bench.reconcile()
        bench.reconcile()
        before = bench.kernel.chains(V4)
        bench.kernel.append(V4, place, "stale", STALE)
        assert any(plan.changes for plan in bench.restarted().plan(DESIRED))
        (repair,) = bench.outcome(DESIRED).repairs
        assert (repair.plan.backend, repair.drift) == (place.split()[0], True)
        assert bench.kernel.chains(V4) == before
        assert bench.in_sync()
        assert bench.reconcile() == []

    @pytest.mark.parametrize("counted", [True, False])
    def test_a_jump_alone_is_removed(self, counted: bool, tmp_path: Path) -> None:
        bench = Bench(tmp_path / "state", counted=counted)
        bench.reconcile()
        before = bench.kernel.chains(V4)
        bench.kernel.append(V4, "postrouting", "jump three masquerade", STALE)
        assert bench.reconcile() == [THREE]
        assert bench.kernel.chains(V4) == before

    @pytest.mark.parametrize("group", ["masquerade", "forward"])
    def test_other_group_of_a_backend_in_use_is_cleared(self, group: str, bench: Bench) -> None:
        state = desired_state("one", "two")
        bench.reconcile(state)
        before = bench.kernel.chains(V4)
        carrier = ONE if group == "forward" else TWO
        bench.kernel.append(V4, f"{carrier} {group}", "stale", STALE)
        assert not bench.in_sync(state)
        assert bench.reconcile(state) == [carrier]
        assert bench.kernel.chains(V4) == before

    def test_family_without_a_lease_has_none(self, bench: Bench) -> None:
        reconciler = bench.of(Family.IPV6)
        assert reconciler.reconcile(DESIRED, bench.kernel.generation).generation == bench.kernel.generation, (
            "its events count too"
        )
        for place in ("one masquerade", "two forward"):
            bench.kernel.append(Family.IPV6, place, "stale", STALE)
            (repair,) = reconciler.reconcile(DESIRED).repairs
            assert (repair.plan.backend, repair.drift) == (place.split()[0], True)

    def test_family_that_an_unread_file_may_name_keeps_its_rules(self, bench: Bench) -> None:
        bench.kernel.append(Family.IPV6, "one masquerade", "stale", STALE)
        reconciler, unsure = bench.of(Family.IPV6), replace(DESIRED, complete=False)
        assert not any(plan.changes for plan in reconciler.plan(unsure))
        assert reconciler.reconcile(unsure).repairs == ()
        assert any(plan.changes for plan in reconciler.plan(DESIRED))
        assert len(reconciler.reconcile(DESIRED).repairs) == 1

    def test_unusable_backend_is_cleared_and_planned(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        bench.reconcile()
        bench.kernel.append(V4, "two masquerade", "stale", STALE)
        assert not bench.in_sync()
        assert bench.reconcile() == [TWO]
        assert bench.in_sync()

    def test_unusable_backend_that_says_what_it_holds_is_an_error(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        bench.reconcile()
        observe = bench.reconciler._backends[TWO].observe

        def refuse(error: Exception) -> None:
            def fail(groups: object) -> NoReturn:
                raise error

            bench.reconciler._backends[TWO].observe = fail  # type: ignore[method-assign]
            bench.reconciler.selector.recheck()

        refuse(KernelError("reading", "no"))
        assert bench.in_sync()
        assert bench.reconcile() == []
        refuse(RulesetError("rules of ours are there, and no program for them"))
        with pytest.raises(RulesetError):
            bench.in_sync()
        with pytest.raises(RulesetError):
            bench.reconcile()
        bench.reconciler._backends[TWO].observe = observe  # type: ignore[method-assign]
        assert bench.reconcile() == []

    def test_recheck_reads_the_others_though_nothing_changed(self, bench: Bench) -> None:
        bench.reconcile()
        bench.reconciler.selector.recheck()
        bench.reconcile()
        assert set(bench.calls("observe")) == {ONE, TWO, THREE}


class TestOwnership:
    @pytest.mark.parametrize("place", ["two masquerade", "three forward", "postrouting"])
    @pytest.mark.parametrize("comment", ["", "flanneld-masq: do not NAT the office"])
    def test_what_has_no_tag_is_never_removed(self, place: str, comment: str, bench: Bench) -> None:
        bench.kernel.append(V4, place, "jump three masquerade" if place == "postrouting" else "theirs", comment)
        before = bench.kernel.chains(V4)
        bench.reconcile()
        bench.reconciler.selector.recheck()
        bench.reconcile()
        assert bench.in_sync()
        bench.reconciler.remove_everything()
        assert bench.kernel.chains(V4) == before

    def test_a_chain_of_ours_with_rules_of_others_is_an_error(self, bench: Bench) -> None:
        bench.kernel.append(V4, OURS, "theirs", "flanneld-masq: do not NAT the office")
        before = bench.kernel.chains(V4)
        for call in (bench.reconciler.plan, bench.reconciler.reconcile):
            with pytest.raises(RulesetError, match="another program made it"):
                call(DESIRED)
        assert bench.kernel.chains(V4) == before

    def test_what_we_wrote_stays_ours_without_any_tag(self, bench: Bench) -> None:
        bench.reconcile()
        held = bench.kernel.chains(V4)
        bench.kernel.commit(V4, {OURS: (MemoryRule("theirs"),), "postrouting": ()})
        assert bench.reconcile() == [ONE]
        assert bench.kernel.chains(V4) == held

    def test_what_we_emptied_is_not_ours_any_more(self, bench: Bench) -> None:
        """The state directory still knows a chain that another program flushed; `cleanup` removes it."""
        bench.reconcile()
        bench.kernel.commit(V4, {OURS: (), "one forward": (), "postrouting": (), "forward": ()})
        assert len(bench.reconciler.remove_everything()[0]) == 1
        bench.kernel.commit(V4, {OURS: ()})
        assert bench.reconciler.remove_everything() == ((), ())
        assert bench.kernel.chain(V4, OURS) == ()


class TestRemoval:
    def test_every_backend_is_cleared(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        bench.kernel.append(V4, "postrouting", "foreign")
        bench.kernel.append(V4, "three forward", "stale", STALE)
        repairs, errors = bench.reconciler.remove_everything()
        assert ([repair.plan.backend for repair in repairs], errors) == ([ONE, TWO, THREE], ())
        assert bench.kernel.chains(V4) == {"postrouting": ("foreign",), "forward": ()}
        assert StateDirectory(bench.directory).verified_state(ONE, V4) is None
        assert bench.reconciler.remove_everything() == ((), ())

    def test_failing_backend_does_not_stop_the_rest(self, bench: Bench) -> None:
        bench.reconcile(desired_state("one", "two"))
        error = KernelError("reading", "no")
        bench.kernel.fail("observe", error)
        repairs, errors = bench.reconciler.remove_everything()
        assert ([repair.plan.backend for repair in repairs], errors) == ([TWO], (error,))


class TestRender:
    def test_auto_is_the_most_preferred_and_is_not_probed(self, bench: Bench) -> None:
        bench.kernel.probes[ONE] = Probe(False, "gone")
        ((name, text),) = bench.reconciler.render(DESIRED)
        assert name == ONE
        assert "chain one masquerade" in text and "chain one forward" in text
        assert bench.kernel.log == []

    def test_each_group_is_rendered_where_the_settings_say(self, bench: Bench) -> None:
        rendered = dict(bench.reconciler.render(desired_state("two", "three")))
        assert list(rendered) == [TWO, THREE]
        assert "two masquerade" in rendered[TWO] and "forward" not in rendered[TWO]
        assert "three forward" in rendered[THREE] and "masquerade" not in rendered[THREE]
