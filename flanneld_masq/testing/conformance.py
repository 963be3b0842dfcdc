"""The contract of `hookspecs.Backend` as tests that the backend of any plugin must pass.

pytest runs them, but this module does not import it. Derive a class with a name that begins with Test, and give it a
fixture `bench` that returns a `Bench` over a kernel without any object of flanneld-masq.

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def bench(self): ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address, ip_network
from typing import Callable

from flanneld_masq.hookspecs import Backend
from flanneld_masq.model import (
    Desired,
    Family,
    FamilyLease,
    ForwardSettings,
    Group,
    Item,
    Lease,
    Mark,
    MasqueradeSettings,
    Observation,
    Position,
    Probe,
    Settings,
    Survey,
    VerifiedState,
)
from flanneld_masq.ruleset import diff, policy

BOTH = frozenset(Group)
_AUTO = ForwardSettings()

_LEASE = Lease(
    "/run/flannel/subnet.env",
    FamilyLease(
        (ip_network("10.244.0.0/16"), ip_network("10.96.0.0/12")), ip_network("10.244.1.0/24"), ip_address("10.244.1.1")
    ),
    FamilyLease(
        (ip_network("fd00:10:244::/56"), ip_network("fd00:10:96::/64")),
        ip_network("fd00:10:244:1::/64"),
        ip_address("fd00:10:244:1::1"),
    ),
)
_EVERY_ROW = MasqueradeSettings(
    non_masquerade_cidrs=(ip_network("172.16.0.0/12"), ip_network("192.168.7.9/32"), ip_network("2001:db8:7::/48")),
    masquerade_link_local=False,
    kube_proxy_mark=Mark(0x4000, 0xFF00),
)


@dataclass(frozen=True)
class Bench:
    """A backend over a kernel without any object of flanneld-masq, and functions that change that kernel as another
    program would.

    Once the rules of the masquerade group exist, `delete_rule` removes one of them, `duplicate_rule` adds a copy of
    one, and `flush` removes all; `other_damages` may name more of that kind. `add_foreign` adds foreign rules to the
    hooks of the backend and to the chains that jump to its own. `foreign` returns all foreign objects in the kernel, to
    be compared with `==`.
    """

    backend: Backend
    delete_rule: Callable[[], None]
    duplicate_rule: Callable[[], None]
    flush: Callable[[], None]
    add_foreign: Callable[[], None]
    foreign: Callable[[], object]
    other_damages: Mapping[str, Callable[[], None]] = field(default_factory=dict)


class BackendConformance:
    """Each method tests one promise of the contract; its assertion message says how the backend breaks it."""

    def test_says_that_it_can_be_used(self, bench: Bench) -> None:
        probe = bench.backend.probe()
        assert isinstance(probe, Probe), f"probe returned {probe!r}"
        assert probe.usable, f"the backend cannot be tested where it cannot be used: {probe.reason}; {probe.remedy}"

    def test_nothing_is_observed_where_nothing_of_ours_is(self, bench: Bench) -> None:
        bench.add_foreign()
        observed = _observe(bench)
        assert observed.items == (), f"found in a kernel without rules of flanneld-masq: {observed.items}"
        assert not observed.obstacle, f"an obstacle in a kernel without rules of flanneld-masq: {observed.obstacle}"

    def test_wanted_is_pure_and_whole(self, bench: Bench) -> None:
        backend, desired = bench.backend, every_row(bench)
        before = backend.generation()
        wanted = backend.wanted(desired)
        assert backend.wanted(every_row(bench)) == wanted, "two calls with the same rules differ"
        assert backend.generation() == before, "wanted() changed the kernel"
        assert backend.wanted(Desired(desired.family)) == (), "something is wanted where no group is"
        tags = [rule.tag for group in desired.groups for rule in group.rules]
        wanted_tags = [item.tag for item in wanted if item.tag in tags]
        assert wanted_tags == tags, "wanted() does not hold each rule once, with its tag, in order"
        assert len(set(wanted)) == len(wanted), "two items of wanted() are the same"
        for item in wanted:
            _check_item(item)

    def test_render_is_pure(self, bench: Bench) -> None:
        backend, desired = bench.backend, every_row(bench)
        before = backend.generation()
        text = backend.render(desired)
        assert isinstance(text, str) and text, f"render returned {text!r}"
        assert backend.render(every_row(bench)) == text, "two calls with the same rules differ"
        assert backend.render(plain(bench)) != text, "different rules are rendered to the same text"
        assert backend.render(Desired(desired.family)) == "", "something is rendered where nothing is wanted"
        assert backend.generation() == before, "render() changed the kernel"
        assert _observe(bench).items == (), "render() left something in the kernel"

    def test_what_is_written_is_observed(self, bench: Bench) -> None:
        for desired in (plain(bench), every_row(bench), first(bench), plain(bench)):
            observed = _write(bench, desired)
            problem = diff.unmet(bench.backend.wanted(desired), observed)
            assert not problem, f"after replace(): {problem}"
            for item in observed.items:
                _check_item(item)
                assert item.raw, f"the kernel's form of an item is missing, so its changes are not seen: {item}"

    def test_without_a_verified_state_nothing_counts_as_right(self, bench: Bench) -> None:
        desired = plain(bench)
        observed = _write(bench, desired)
        assert diff.differences(bench.backend.wanted(desired), desired, None, observed)

    def test_writing_again_changes_nothing(self, bench: Bench) -> None:
        bench.add_foreign()
        once = _write(bench, every_row(bench))
        twice = _write(bench, every_row(bench))
        assert _plain(twice) == _plain(once), "the same rules, written twice, are observed in two ways"

    def test_observing_changes_nothing_and_is_repeatable(self, bench: Bench) -> None:
        bench.add_foreign()
        _write(bench, every_row(bench))
        generation, foreign = bench.backend.generation(), bench.foreign()
        assert _observe(bench) == _observe(bench)
        assert bench.backend.probe() == bench.backend.probe()
        assert bench.backend.generation() == generation, "observe() or probe() changed the kernel"
        assert bench.foreign() == foreign, "observe() or probe() changed rules of others"

    def test_there_is_a_way_to_learn_of_changes(self, bench: Bench) -> None:
        bench.add_foreign()
        _write(bench, every_row(bench))
        events = bench.backend.generation() is not None
        assert (bench.backend.poll() is None) == events, "either a generation, and so events, or polling"
        assert not bench.backend.poll(), "poll() reports a change, and no rule changed since observe()"
        bench.flush()
        assert (bench.backend.poll() is None) == events, "poll() is sometimes None"

    def test_the_fingerprint_changes_with_every_damage_alone(self, bench: Bench) -> None:
        bench.add_foreign()
        desired = every_row(bench)
        damages = {"a rule deleted": bench.delete_rule, "a rule doubled": bench.duplicate_rule, "a flush": bench.flush}
        for name, damage in {**damages, **bench.other_damages}.items():
            _write(bench, desired)
            before = bench.backend.fingerprint(tuple(Group))
            _observe(bench)
            assert bench.backend.fingerprint(tuple(Group)) == before, "the fingerprint differs, and no rule was changed"
            assert (before is None) == (bench.backend.generation() is None), "fingerprint or generation is missing"
            damage()
            assert before is None or bench.backend.fingerprint(tuple(Group)) != before, f"{name}: nothing differs"

    def test_the_fingerprint_of_other_groups_shows_what_is_left_over(self, bench: Bench) -> None:
        bench.add_foreign()
        nothing = bench.backend.fingerprint(())
        if nothing is None:
            assert bench.backend.generation() is None, "a backend with generations must have a fingerprint"
            return
        for group in Group:
            _write(bench, _desired(bench, _EVERY_ROW, groups=frozenset((group,))))
            assert bench.backend.fingerprint(()) != nothing, f"the fingerprint ignores objects of the {group} group"
        alone = frozenset((Group.MASQUERADE,))
        _write(bench, _desired(bench, _EVERY_ROW, groups=alone))
        before = bench.backend.fingerprint(alone)
        _write(bench, every_row(bench))
        assert bench.backend.fingerprint(alone) != before, "the fingerprint ignores objects of another group"
        _write(bench, Desired(bench.backend.family))
        assert bench.backend.fingerprint(()) == nothing, "no rule of flanneld-masq is left, and the fingerprint differs"

    def test_nothing_is_said_to_drop_where_nothing_does(self, bench: Bench) -> None:
        bench.add_foreign()
        assert bench.backend.drops_forwarding() == ""
        _write(bench, every_row(bench))
        generation = bench.backend.generation()
        assert bench.backend.drops_forwarding() == "", "the rules of flanneld-masq do not drop"
        assert bench.backend.generation() == generation, "drops_forwarding() changed the kernel"

    def test_no_mark_is_read_where_kube_proxy_has_no_rules(self, bench: Bench) -> None:
        bench.add_foreign()
        _write(bench, every_row(bench))
        generation = bench.backend.generation()
        read = getattr(bench.backend, "kube_proxy_mark", None)  # a backend may lack it
        evidence = None if read is None else read()
        assert evidence is None, f"no rule of kube-proxy is there: {evidence}"
        assert bench.backend.generation() == generation, "kube_proxy_mark() changed the kernel"

    def test_no_rule_of_ours_is_taken_for_one_of_flannel(self, bench: Bench) -> None:
        bench.add_foreign()
        before = _write(bench, every_row(bench))
        foreign = bench.foreign()
        survey = bench.backend.survey(tuple(filter(None, [_LEASE.of(bench.backend.family)])))
        assert isinstance(survey, Survey), f"survey returned {survey!r}"
        assert survey.flannel == (), f"these are not flannel's: {survey.flannel}"
        assert survey.flannel_nat == (), f"these are not flannel's: {survey.flannel_nat}"
        bench.backend.remove(())
        assert (_observe(bench), bench.foreign()) == (before, foreign), "survey() or removing nothing changed rules"

    def test_each_group_can_be_observed_by_itself(self, bench: Bench) -> None:
        _write(bench, every_row(bench))
        everything = _observe(bench).items
        for group in Group:
            items = bench.backend.observe((group,)).items
            assert items and set(items) < set(everything), f"observed of the {group} group alone: {items}"
            assert list(items) == [item for item in everything if item in items], "in another order"

    def test_a_group_can_stand_alone(self, bench: Bench) -> None:
        _write(bench, every_row(bench))
        for group in Group:
            desired = _desired(bench, _EVERY_ROW, groups=frozenset((group,)))
            problem = diff.unmet(bench.backend.wanted(desired), _write(bench, desired))
            assert not problem, f"with the {group} group alone: {problem}"

    def test_nothing_is_left_after_removal(self, bench: Bench) -> None:
        bench.add_foreign()
        nothing = Desired(bench.backend.family)
        foreign = bench.foreign()
        for desired in (every_row(bench), first(bench)):
            _write(bench, desired)
            assert _write(bench, nothing).items == ()
            assert bench.foreign() == foreign, "removal changed rules of others"
        bench.backend.replace(nothing, _observe(bench), ())
        assert _observe(bench).items == (), "removing nothing made something"

    def test_rules_of_others_stay_as_they_are(self, bench: Bench) -> None:
        bench.add_foreign()
        foreign = bench.foreign()
        for desired in (plain(bench), every_row(bench), first(bench)):
            _write(bench, desired)
            assert bench.foreign() == foreign, "replace() changed rules of others"

    def test_first_means_before_all_others(self, bench: Bench) -> None:
        bench.add_foreign()
        for around in _write(bench, first(bench)).neighbours:
            assert not around.before, f"in {around.place}, foreign rules come before the jump"

    def test_rules_that_others_add_later_go_before_an_accept(self, bench: Bench) -> None:
        desired = plain(bench)
        verified_state = _verified_state(bench, desired, _write(bench, desired))
        bench.add_foreign()
        foreign, observed = bench.foreign(), _observe(bench)
        changes = diff.differences(bench.backend.wanted(desired), desired, verified_state, observed)
        bench.backend.replace(desired, observed, changes)
        left = diff.differences(bench.backend.wanted(desired), desired, verified_state, _observe(bench))
        assert not left, f"replace() left {left}"
        assert bench.foreign() == foreign, "moving the jump changed rules of others"

    def test_a_change_of_position_is_made(self, bench: Bench) -> None:
        bench.add_foreign()
        before = _write(bench, plain(bench))
        after = _write(bench, first(bench))
        jumps = [around.place for around in before.neighbours if around.before]
        assert all(not around.before for around in after.neighbours if around.place in jumps)

    def test_the_generation_grows_by_what_replace_returns(self, bench: Bench) -> None:
        bench.add_foreign()
        for desired in (plain(bench), every_row(bench), every_row(bench), Desired(bench.backend.family)):
            observed = _observe(bench)
            changes = diff.differences(bench.backend.wanted(desired), desired, None, observed)
            before = bench.backend.generation()
            transactions = bench.backend.replace(desired, observed, changes)
            after = bench.backend.generation()
            assert isinstance(transactions, int) and transactions >= 0, f"replace returned {transactions!r}"
            assert (before is None) == (after is None), "generation() is sometimes None"
            if before is not None and after is not None:
                assert after - before == transactions, f"{after - before} transactions, and it said {transactions}"

    def test_a_foreign_change_changes_the_generation(self, bench: Bench) -> None:
        before = bench.backend.generation()
        bench.add_foreign()
        assert before is None or bench.backend.generation() != before

    def test_a_deleted_rule_is_restored(self, bench: Bench) -> None:
        self._check_repair(bench, "a rule deleted", bench.delete_rule)

    def test_a_doubled_rule_is_removed(self, bench: Bench) -> None:
        self._check_repair(bench, "a rule doubled", bench.duplicate_rule)

    def test_a_flushed_chain_is_restored(self, bench: Bench) -> None:
        self._check_repair(bench, "the chain flushed", bench.flush)

    def test_other_damage_is_repaired(self, bench: Bench) -> None:
        for name, damage in bench.other_damages.items():
            self._check_repair(bench, name, damage)

    def _check_repair(self, bench: Bench, name: str, damage: Callable[[], None]) -> None:
        if not _observe(bench).items:
            bench.add_foreign()
        desired = every_row(bench)
        verified_state = _verified_state(bench, desired, _write(bench, desired))
        damage()
        damaged, foreign = _observe(bench), bench.foreign()
        changes = diff.differences(bench.backend.wanted(desired), desired, verified_state, damaged)
        assert changes, f"{name}: not found"
        bench.backend.replace(desired, damaged, changes)
        repaired = _observe(bench)
        left = diff.differences(bench.backend.wanted(desired), desired, verified_state, repaired)
        assert not left, f"{name}: replace() left {left}"
        assert bench.foreign() == foreign, f"{name}: the repair changed rules of others"


def plain(bench: Bench) -> Desired:
    """Return the rules of the default settings."""
    return _desired(bench, MasqueradeSettings())


def every_row(bench: Bench) -> Desired:
    """Return rules of every row of the design's table."""
    return _desired(bench, _EVERY_ROW)


def first(bench: Bench) -> Desired:
    """Return rules of every row, ahead of all foreign rules."""
    forward = ForwardSettings(position=Position.FIRST)
    return _desired(bench, replace(_EVERY_ROW, position=Position.FIRST), forward=forward)


def _desired(
    bench: Bench,
    masquerade: MasqueradeSettings,
    groups: frozenset[Group] = BOTH,
    forward: ForwardSettings = _AUTO,
) -> Desired:
    family: Family = bench.backend.family
    random_fully = bench.backend.probe().random_fully
    settings = Settings(masquerade=masquerade, forward=forward)
    return policy.desired(settings, (_LEASE,), family, groups, random_fully=random_fully)


def _observe(bench: Bench) -> Observation:
    return bench.backend.observe(tuple(Group))


def _write(bench: Bench, desired: Desired) -> Observation:
    """Write as the reconciler does; return the read-back."""
    observed = _observe(bench)
    changes = diff.differences(bench.backend.wanted(desired), desired, None, observed)
    bench.backend.replace(desired, observed, changes)
    return _observe(bench)


def _verified_state(bench: Bench, desired: Desired, observed: Observation) -> VerifiedState:
    return diff.verified_state_of(bench.backend.wanted(desired), desired, observed)


def _plain(observed: Observation) -> Observation:
    return replace(observed, items=tuple(replace(item, handle=0) for item in observed.items))


def _check_item(item: Item) -> None:
    """Check the types: an item is stored as JSON and printed as a line of a diff."""
    assert isinstance(item, Item), f"{item!r} is no Item"
    for attribute in (entry.name for entry in fields(item)):
        value = getattr(item, attribute)
        assert isinstance(value, int if attribute == "handle" else str), f"{attribute} of {item} is {value!r}"
    assert item.kind and item.place and item.text, f"kind, place or text is missing: {item}"
    assert "\n" not in item.text + item.place, f"an item's text is one line: {item}"
