"""Every single-step mutation of what we own is found, named, and undone, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from flanneld_masq.errors import MasqError
from flanneld_masq.model import BackendName, Change, Family, Group
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.ruleset import policy
from flanneld_masq.state_directory import StateDirectory

from .conftest import Node, at_once
from .mutations import (
    IptablesSubject,
    Mutation,
    NftSubject,
    Snapshot,
    Subject,
    add_foreign,
    remove_all,
)


class Bench:
    """One backend in sync, with the rules of others around it."""

    def __init__(self, node: Node, family: Family, name: BackendName) -> None:
        self._node = node
        self._family = family
        self._desired_state = node.desired_state()
        backend = node.backends(family)[name]
        self._reconciler = Reconciler(family, {name: backend}, StateDirectory(node.state))
        self.subject: Subject = (NftSubject if name == "nft" else IptablesSubject)(family, backend, node.run)
        self.desired = policy.desired(node.settings, (node.lease(),), family, frozenset(Group))
        self._before = Snapshot()
        self._jump_changed = False
        self._reset()

    def plan(self) -> tuple[Change, ...]:
        return self._reconciler.plan(self._desired_state)[0].changes

    def survey(self, mutations: Iterable[Mutation]) -> list[str]:
        """Undergo them all; what went otherwise than it should."""
        failures = []
        self._before = self._settled()
        for mutation in mutations:
            try:
                found = list(self._undergo(mutation))
            except MasqError as error:
                found = [str(error)]
            failures += [f"{mutation.name}: {failure}" for failure in found]
            if found or not mutation.foreign_stays:
                self._reset()
                self._before = self._settled()
            elif self._jump_changed and self.subject.settle():
                self._before = self._settled()
        return failures

    def _undergo(self, mutation: Mutation) -> Iterator[str]:
        before, seen = self._before, self._reconciler.detector.fingerprint()
        mutation.do()
        if any(seen) and self._reconciler.detector.fingerprint() == seen:
            yield "a fingerprint does not show it"
        changes = self.plan()
        self._jump_changed = any(change.place in self.subject.bases for change in changes)
        if not any(_names(change, mutation) for change in changes):
            yield f"the plan does not name it: {changes}"
        damaged = before if mutation.foreign_stays else self.subject.snapshot()
        self._reconciler.reconcile(self._desired_state)
        left = self.plan()
        if left:
            yield f"the next plan is not empty: {left}"
        mutation.undo()
        after = self.subject.snapshot()
        if sorted(after.ours) != sorted(before.ours):
            yield f"ours is not as before: {_difference(before.ours, after.ours)}"
        if mutation.foreign_stays and after.foreign != before.foreign:
            yield f"foreign is not as before: {_difference(before.foreign, after.foreign)}"
        if after.foreign_rules != damaged.foreign_rules:
            yield f"foreign is not as it was left: {_difference(damaged.foreign_rules, after.foreign_rules)}"

    def _reset(self) -> None:
        remove_all(self._family, self._node.run)
        add_foreign(self._family, self._node.run)
        self._reconciler.reconcile(self._desired_state)
        self.subject.settle()

    def _settled(self) -> Snapshot:
        changes = self.plan()
        assert not changes, f"rules that others append behind ours are no drift: {changes}"
        return self.subject.snapshot()


def _names(change: Change, mutation: Mutation) -> bool:
    said = f"{change.wanted}\n{change.found}"
    return change.place == mutation.place and any(text in said for text in mutation.texts)


def _difference(before: tuple[str, ...], after: tuple[str, ...]) -> str:
    gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
    return f"- {gone} + {new}" if gone or new else "the order differs"


def _survey(make_node: Callable[[], Node], name: BackendName, position: str = "last") -> list[str]:
    """Return the failures. Both families run at once, because the tools mostly wait for the kernel."""

    def survey(family: Family, node: Node) -> list[str]:
        node.configure(f'[masquerade]\nposition = "{position}"', backend=name)
        with node.entered():
            bench = Bench(node, family, name)
            mutations = bench.subject.mutations(bench.desired)
            found = bench.survey(each for each in mutations if position == "last" or " jump: " in each.name)
            return [f"{family}: {failure}" for failure in found]

    families = [family for family in Family if not missing_family(Path("/"), family)]
    results = at_once(*(partial(survey, family, make_node()) for family in families))
    return [failure for found in results for failure in found]


def test_every_mutation_is_planned_and_undone_foreign_rules_stay(
    make_node: Callable[[], Node], backend_name: BackendName
) -> None:
    failures = _survey(make_node, backend_name)
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures)


@pytest.mark.parametrize("backend_name", ["iptables-nft", "iptables-legacy"], indirect=True)
def test_every_mutation_of_a_first_jump_is_named_and_undone(
    make_node: Callable[[], Node], backend_name: BackendName
) -> None:
    failures = _survey(make_node, backend_name, position="first")
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures)


@pytest.mark.parametrize("backend_name", ["iptables-nft", "iptables-legacy"], indirect=True)
def test_the_policy_of_a_built_in_chain_is_no_drift_and_stays(
    node: Node, family: Family, backend_name: BackendName
) -> None:
    node.configure("", backend=backend_name)
    flavour = backend_name.partition("-")[2]
    with node.entered():
        bench = Bench(node, family, backend_name)
        node.tool(f"{family.data.tools}-{flavour}", "-P", "FORWARD", "DROP")
        deleted = next(each for each in bench.subject.mutations(bench.desired) if each.name.endswith("jump: deleted"))
        assert not bench.survey([deleted])
        assert "-P FORWARD DROP" in node.tool(f"{family.data.tools}-{flavour}", "-S", "FORWARD")


def test_the_commands_name_it_with_status_3_and_undo_it(node: Node, backend_name: BackendName) -> None:
    """One of each family through the real program, which looks at both families and all backends."""
    node.configure("", backend=backend_name)
    with node.entered():
        benches = [Bench(node, family, backend_name) for family in Family]
        chosen = [next(iter(bench.subject.mutations(bench.desired))) for bench in benches]
        for mutation in chosen:
            mutation.do()
        plan = node.masq("plan")
        assert plan.returncode == 3, plan.stderr
        for family, mutation in zip(Family, chosen):
            assert f"@@ {family} {backend_name}: {mutation.place} @@" in plan.stdout
            assert any(text in plan.stdout for text in mutation.texts)
        assert node.masq("apply").returncode == 0
        assert not any(bench.plan() for bench in benches)
        assert node.masq("plan").returncode == 0
