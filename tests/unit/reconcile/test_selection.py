"""Selection of backends: which are asked, when, and what comes of the answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flanneld_masq.errors import BackendUnavailable, KernelError
from flanneld_masq.model import (
    DEFAULT_KUBE_PROXY_MARK,
    BackendName,
    Family,
    ForwardSettings,
    Group,
    Mark,
    MarkEvidence,
    MasqueradeSettings,
    Probe,
)
from flanneld_masq.reconcile.selection import assignment_of, missing_family
from flanneld_masq.ruleset.backend_choice import Choice
from flanneld_masq.ruleset.mark_choice import NO_EVIDENCE, MarkChoice

from .bench import DESIRED, LEASE, ONE, OURS, THREE, TWO, V4, Bench, desired_state


class TestProbes:
    def test_backends_are_probed_once_until_reprobe(self, bench: Bench) -> None:
        for _ in range(2):
            bench.reconciler.reconcile(DESIRED)
        assert bench.calls("probe") == [ONE, TWO, THREE]
        bench.kernel.probes[ONE] = Probe(False, "gone", "bring it back")
        bench.reconciler.selector.reprobe()
        outcome = bench.reconciler.reconcile(DESIRED)
        assert outcome.choices[Group.MASQUERADE][0].backend == TWO
        assert "one cannot be used (gone)" in outcome.choices[Group.MASQUERADE][0].why

    def test_no_usable_backend_is_an_error(self, bench: Bench) -> None:
        bench.kernel.probes.update(dict.fromkeys((ONE, TWO, THREE), Probe(False, "gone")))
        with pytest.raises(BackendUnavailable, match="one cannot be used"):
            bench.reconciler.reconcile(DESIRED)
        assert bench.kernel.generation == 0

    def test_kernel_without_the_family_asks_no_backend(self, bench: Bench) -> None:
        bench.missing = "no such family"
        with pytest.raises(BackendUnavailable, match="no such family"):
            bench.reconciler.reconcile(DESIRED)
        assert bench.kernel.log == []

    def test_choice_probes_only_what_it_reaches(self, bench: Bench) -> None:
        bench.kernel.probes[ONE] = Probe(False, "gone")
        selector = bench.reconciler.selector
        settings = replace(DESIRED.settings, forward=ForwardSettings(enabled=False))
        assert selector.candidates(settings, False)[Group.MASQUERADE][0].backend == TWO
        assert bench.calls("probe") == [ONE, TWO]

    def test_named_backends_alone_are_probed(self, bench: Bench) -> None:
        bench.reconciler.selector.choices(desired_state("three", "two"))
        assert bench.calls("probe") == [THREE, TWO]

    def test_unusable_backends_are_left_out(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        selector = bench.reconciler.selector
        assert [backend.name for backend in selector.usable()] == [ONE, THREE]
        assert list(selector.probes()) == [ONE, TWO, THREE]

    def test_probe_says_whether_ports_can_be_random(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(True, random_fully=False)
        assert bench.reconciler.selector.randomises(ONE)
        assert not bench.reconciler.selector.randomises(TWO)


class TestKubeProxyMark:
    EVIDENCE = MarkEvidence(Mark(1, 1), "chain KUBE-MARK-MASQ of table ip nat")

    def test_backends_are_asked_in_order_usable_or_not(self, bench: Bench) -> None:
        bench.kernel.probes[TWO] = Probe(False, "gone")
        bench.kernel.marks[TWO] = self.EVIDENCE
        bench.kernel.marks[THREE] = MarkEvidence(Mark(2, 2), "elsewhere")
        choice = bench.reconciler.selector.kube_proxy_mark(DESIRED.settings)
        assert choice == MarkChoice(Mark(1, 1), self.EVIDENCE.where, read=True)
        assert bench.calls("kube_proxy_mark") == [ONE, TWO, THREE]

    def test_unreadable_answer_is_the_last_one(self, bench: Bench) -> None:
        bench.kernel.marks[ONE] = self.EVIDENCE
        selector = bench.reconciler.selector
        selector.kube_proxy_mark(DESIRED.settings)
        del bench.kernel.marks[ONE]
        bench.kernel.fail("kube_proxy_mark", KernelError("reading", "no"))
        assert selector.kube_proxy_mark(DESIRED.settings).mark == Mark(1, 1)
        assert selector.kube_proxy_mark(DESIRED.settings) == MarkChoice(DEFAULT_KUBE_PROXY_MARK, NO_EVIDENCE)

    def test_answer_that_was_never_readable_is_named(self, bench: Bench) -> None:
        bench.kernel.fail("kube_proxy_mark", KernelError("reading", "no"))
        choice = bench.reconciler.selector.kube_proxy_mark(DESIRED.settings)
        assert (choice.mark, choice.unread) == (DEFAULT_KUBE_PROXY_MARK, True)
        assert "reading: no" in choice.why

    def test_nobody_is_asked_where_no_rule_tests_a_mark(self, bench: Bench) -> None:
        fixed = replace(DESIRED.settings, masquerade=MasqueradeSettings(kube_proxy_mark=None))
        assert bench.reconciler.selector.kube_proxy_mark(fixed).mark is None
        off = replace(DESIRED.settings, masquerade=MasqueradeSettings(enabled=False))
        bench.reconciler.selector.kube_proxy_mark(off)
        bench.missing = "no such family"
        bench.reconciler.selector.kube_proxy_mark(DESIRED.settings)
        assert bench.calls("kube_proxy_mark") == []


class TestAssignment:
    def test_groups_are_gathered_by_backend(self) -> None:
        one, two = (Choice(ONE, ""),), (Choice(TWO, ""),)
        assert assignment_of({Group.MASQUERADE: one, Group.FORWARD: one}) == {ONE: frozenset(Group)}
        assert assignment_of({Group.MASQUERADE: one, Group.FORWARD: two}) == {
            ONE: {Group.MASQUERADE},
            TWO: {Group.FORWARD},
        }
        assert assignment_of({Group.MASQUERADE: one, Group.FORWARD: (*one, *two)}) == {
            ONE: frozenset(Group),
            TWO: {Group.FORWARD},
        }
        assert assignment_of({}) == {}

    def test_assignment_is_settled_from_a_pass_to_reprobe(self, bench: Bench) -> None:
        selector = bench.reconciler.selector
        assert (selector.unsettled, selector.assignment) == (True, {})
        bench.reconcile()
        assert (selector.unsettled, selector.assignment) == (False, {ONE: frozenset(Group)})
        selector.reprobe()
        assert (selector.unsettled, selector.assignment) == (True, {ONE: frozenset(Group)})


class TestEvidence:
    def test_family_without_a_lease_needs_no_evidence(self, bench: Bench) -> None:
        bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * 3)
        with pytest.raises(KernelError):
            bench.reconciler.reconcile(DESIRED)
        assert bench.reconcile(desired_state("auto", "auto", replace(LEASE, ipv4=None))) == [ONE]

    def test_evidence_is_read_only_if_forward_is_auto(self, bench: Bench) -> None:
        bench.reconcile()
        assert bench.calls("drops_forwarding") == [ONE, TWO, THREE]
        bench.reconcile(desired_state("one", "two"))
        assert bench.calls("drops_forwarding") == []
        off = replace(DESIRED, settings=replace(DESIRED.settings, forward=ForwardSettings(enabled=False)))
        bench.reconcile(off)
        assert bench.calls("drops_forwarding") == []

    def test_a_drop_where_no_accept_can_be_put_is_told(self, bench: Bench) -> None:
        bench.kernel.drops[TWO] = "FORWARD drops"
        bench.kernel.probes[TWO] = Probe(False, "no program", "install it")
        outcome = bench.reconciler.reconcile(DESIRED)
        assert bench.kernel.chain(V4, OURS)
        assert outcome.choices[Group.FORWARD][0].backend == ONE
        (unhelped,) = outcome.unhelped
        assert all(words in unhelped for words in ("FORWARD drops", "two cannot be used (no program)", "install it"))
        off = replace(DESIRED, settings=replace(DESIRED.settings, forward=ForwardSettings(enabled=False)))
        assert bench.reconciler.reconcile(off).unhelped == ()

    def test_unreadable_evidence_is_taken_as_it_was(self, bench: Bench) -> None:
        bench.kernel.drops[TWO] = "docker drops"
        bench.reconcile()
        held = bench.kernel.chains(V4)
        for failing in range(3):
            bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * (failing + 1))
            assert bench.reconciler.reconcile(DESIRED).choices[Group.FORWARD][0].backend == TWO
            assert bench.kernel.chains(V4) == held

    def test_nothing_is_removed_for_evidence_never_read(self, bench: Bench) -> None:
        """The rules that are known to be wanted are written."""
        bench.kernel.drops[TWO] = "docker drops"
        bench.reconcile()
        bench.kernel.flush(V4, OURS)
        bench.reconciler = bench.restarted()
        for _ in range(2):
            bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * 3)
            with pytest.raises(KernelError):
                bench.reconciler.reconcile(DESIRED)
            assert bench.kernel.chain(V4, OURS) and bench.kernel.chain(V4, "two forward")
        bench.kernel.fail("drops_forwarding", *(KernelError("reading", "no"),) * 3)
        with pytest.raises(KernelError):
            bench.reconciler.plan(DESIRED)
        assert bench.reconcile() == [ONE]
        assert "one forward" not in bench.kernel.chains(V4)


def test_missing_family_is_seen_in_proc(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net/ipv4").mkdir(parents=True)
    assert missing_family(tmp_path, Family.IPV4) == ""
    assert "runs without ipv6 (/proc/sys/net/ipv6 is missing)" in missing_family(tmp_path, Family.IPV6)


class TestStay:
    """The forward group stays for a while where something dropped, if the caller says so."""

    def drop(self, bench: Bench, *names: BackendName) -> None:
        bench.kernel.drops = {name: f"{name} drops" for name in names}

    def forward(self, bench: Bench, *, stay: bool) -> list[tuple[BackendName, str]]:
        choices = bench.reconciler.reconcile(DESIRED, stay=stay).choices[Group.FORWARD]
        return [(choice.backend, choice.why) for choice in choices]

    def test_group_stays_with_the_same_reason(self, bench: Bench) -> None:
        self.drop(bench, TWO)
        before = self.forward(bench, stay=False)
        self.drop(bench)
        assert self.forward(bench, stay=True) == before == [(TWO, "two drops")]
        assert bench.reconciler.selector.leaving
        assert self.forward(bench, stay=False)[0][0] == ONE
        assert not bench.reconciler.selector.leaving

    def test_group_goes_where_a_drop_begins_all_the_same(self, bench: Bench) -> None:
        self.drop(bench, TWO)
        self.forward(bench, stay=True)
        self.drop(bench, THREE)
        assert self.forward(bench, stay=True) == [(TWO, "two drops"), (THREE, "three drops")]

    def test_group_never_goes_back_where_it_has_left(self, bench: Bench) -> None:
        self.drop(bench, TWO)
        self.forward(bench, stay=False)
        self.drop(bench)
        self.forward(bench, stay=False)
        assert self.forward(bench, stay=True)[0][0] == ONE
        assert not bench.reconciler.selector.leaving
