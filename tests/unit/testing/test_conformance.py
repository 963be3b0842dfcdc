"""The backend in memory passes the conformance suite; backends that break a promise fail it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Callable

import pytest

from flanneld_masq.hookspecs import Host
from flanneld_masq.model import BackendName, Change, Desired, Family, Group, Item, ItemKind, Observation, Position
from flanneld_masq.process import ProcessRunner
from flanneld_masq.testing import BackendConformance, Bench, MemoryBackend, MemoryKernel, memory_backend_type

CHECKS = sorted(name for name in dir(BackendConformance) if name.startswith("test_"))


def bench_over(backend: MemoryBackend, kernel: MemoryKernel) -> Bench:
    family = backend.family
    own = f"{backend.name} {Group.MASQUERADE}"

    def add_foreign() -> None:
        for chain in ("postrouting", "forward"):
            kernel.append(family, chain, "to 203.0.113.9 accept", "not ours")
            kernel.append(family, chain, "jump elsewhere")

    def foreign() -> object:
        chains = kernel.chains(family).items()
        rest = {name: rules for name, rules in chains if not name.startswith(f"{backend.name} ")}
        return {
            name: [rule for rule in rules if not rule.startswith(f"jump {backend.name} ")]
            for name, rules in rest.items()
        }

    def jump() -> int:
        chain = kernel.chain(family, "postrouting") or ()
        return next(index for index, rule in enumerate(chain) if rule.text == f"jump {own}")

    return Bench(
        backend,
        delete_rule=lambda: kernel.delete(family, own),
        duplicate_rule=lambda: kernel.duplicate(family, own),
        flush=lambda: kernel.flush(family, own),
        add_foreign=add_foreign,
        foreign=foreign,
        other_damages={
            "the jump removed": lambda: kernel.delete(family, "postrouting", jump()),
            "the jump doubled": lambda: kernel.duplicate(family, "postrouting", jump()),
            "the jump moved": lambda: move_first(kernel, family, "postrouting", jump()),
            "a rule of others in our chain": lambda: kernel.prepend(family, own, "drop"),
            "the chain removed": lambda: kernel.commit(family, {own: None}),
            "two rules swapped": lambda: kernel.commit(family, {own: tuple(reversed(kernel.chain(family, own) or ()))}),
            "a body changed under its comment": lambda: kernel.commit(
                family,
                {
                    own: tuple(
                        dataclasses.replace(rule, text="drop") if index == 2 else rule
                        for index, rule in enumerate(kernel.chain(family, own) or ())
                    )
                },
            ),
        },
    )


def move_first(kernel: MemoryKernel, family: Family, chain: str, index: int) -> None:
    rules = list(kernel.chain(family, chain) or ())
    rules.insert(0, rules.pop(index))
    kernel.commit(family, {chain: tuple(rules)})


class TestMemoryBackend(BackendConformance):
    @pytest.fixture(params=[True, False], ids=["counted", "polled"])
    def counted(self, request: pytest.FixtureRequest) -> bool:
        counted: bool = request.param
        return counted

    @pytest.fixture(params=list(Family), ids=str)
    def bench(self, request: pytest.FixtureRequest, counted: bool) -> Bench:
        kernel = MemoryKernel()
        backend = memory_backend_type(kernel=kernel, counted=counted).create(request.param, Host(ProcessRunner()))
        assert isinstance(backend, MemoryBackend)
        return bench_over(backend, kernel)


class ForgetsTheJump(MemoryBackend):
    def observe(self, groups: Collection[Group]) -> Observation:
        observed = super().observe(groups)
        items = tuple(item for item in observed.items if item.kind is not ItemKind.JUMP)
        return dataclasses.replace(observed, items=items)


class SeesNothing(MemoryBackend):
    def observe(self, groups: Collection[Group]) -> Observation:
        return Observation()


class SeesWhatItWants(MemoryBackend):
    """Returns what it wrote instead of reading the kernel."""

    held: tuple[Item, ...] = ()

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        self.held = tuple(dataclasses.replace(item, raw=item.text) for item in self.wanted(desired))
        return super().replace(desired, observed, changes)

    def observe(self, groups: Collection[Group]) -> Observation:
        super().observe(groups)
        return Observation(self.held)


class Miscounts(MemoryBackend):
    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        return super().replace(desired, observed, changes) + 1


class AddsOnly(MemoryBackend):
    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        return super().replace(desired, observed, changes) if desired.groups else 0


class WritesDuringObserve(MemoryBackend):
    def observe(self, groups: Collection[Group]) -> Observation:
        self._kernel.commit(self.family, {})
        return super().observe(groups)


class FlushesOthers(MemoryBackend):
    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        self._kernel.commit(self.family, {"postrouting": ()})
        return super().replace(desired, observed, changes) + 1


class HasTwoMinds(MemoryBackend):
    calls = 0

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        self.calls += 1
        return tuple(dataclasses.replace(item, text=f"{item.text} #{self.calls}") for item in super().wanted(desired))


class RendersSomethingElse(MemoryBackend):
    def render(self, desired: Desired) -> str:
        return "rules\n"


class KeepsItsPlace(MemoryBackend):
    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        last = dataclasses.replace(desired, position=Position.LAST)
        return super().replace(last, observed, tuple(change for change in changes if change.kind != "moved"))


class IgnoresGroups(MemoryBackend):
    def observe(self, groups: Collection[Group]) -> Observation:
        return super().observe(tuple(Group))


class HidesBodies(MemoryBackend):
    def observe(self, groups: Collection[Group]) -> Observation:
        observed = super().observe(groups)
        return dataclasses.replace(observed, items=tuple(dataclasses.replace(item, raw="") for item in observed.items))


BROKEN: list[tuple[Callable[..., MemoryBackend], str]] = [
    (ForgetsTheJump, "test_what_is_written_is_observed"),
    (SeesNothing, "test_what_is_written_is_observed"),
    (SeesWhatItWants, "test_a_deleted_rule_is_restored"),
    (SeesWhatItWants, "test_each_group_can_be_observed_by_itself"),
    (Miscounts, "test_the_generation_grows_by_what_replace_returns"),
    (AddsOnly, "test_nothing_is_left_after_removal"),
    (WritesDuringObserve, "test_observing_changes_nothing_and_is_repeatable"),
    (FlushesOthers, "test_rules_of_others_stay_as_they_are"),
    (HasTwoMinds, "test_wanted_is_pure_and_whole"),
    (RendersSomethingElse, "test_render_is_pure"),
    (KeepsItsPlace, "test_first_means_before_all_others"),
    (IgnoresGroups, "test_each_group_can_be_observed_by_itself"),
    (HidesBodies, "test_what_is_written_is_observed"),
    (HidesBodies, "test_other_damage_is_repaired"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN)
def test_a_broken_promise_is_noticed(broken: Callable[..., MemoryBackend], check: str) -> None:
    kernel = MemoryKernel()
    bench = bench_over(broken(BackendName("broken"), Family.IPV4, kernel), kernel)
    with pytest.raises(AssertionError):
        getattr(BackendConformance(), check)(bench)


def test_a_poll_that_cries_wolf_is_noticed() -> None:
    class CriesWolf(MemoryBackend):
        def poll(self) -> bool:
            return True

    kernel = MemoryKernel()
    bench = bench_over(CriesWolf(BackendName("broken"), Family.IPV4, kernel, counted=False), kernel)
    with pytest.raises(AssertionError, match="no rule changed"):
        BackendConformance().test_there_is_a_way_to_learn_of_changes(bench)


def test_an_unusable_backend_does_not_pass_by_being_skipped() -> None:
    kernel = MemoryKernel()
    backend = MemoryBackend(BackendName("broken"), Family.IPV4, kernel)
    kernel.probes[backend.name] = type(backend.probe())(False, "no kernel", "get one")
    with pytest.raises(AssertionError, match="no kernel; get one"):
        BackendConformance().test_says_that_it_can_be_used(bench_over(backend, kernel))


def test_the_suite_holds_nothing_that_pytest_would_not_collect() -> None:
    public: list[Any] = [name for name in vars(BackendConformance) if not name.startswith("_")]
    assert sorted(public) == CHECKS
    assert len(CHECKS) >= 20
