"""A kernel in memory, and a backend that keeps the daemon's rules in it, to test the code that uses backends.

The kernel holds chains of the daemon's rules and of foreign rules, and counts its transactions. A test can make it
fail, or let another program change it at the worst moment: after a write, before the read-back.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from flanneld_masq.hookspecs import BackendType, Host
from flanneld_masq.kernel.objects import following
from flanneld_masq.model import (
    SLOTS,
    BackendName,
    Blocker,
    Change,
    ChangeKind,
    Desired,
    Family,
    FamilyLease,
    Group,
    GroupRules,
    Item,
    ItemKind,
    MarkEvidence,
    Neighbours,
    Observation,
    Position,
    Probe,
    Rule,
    Stranger,
    Survey,
    tag_of,
)

BASE_CHAINS = {Group.MASQUERADE: "postrouting", Group.FORWARD: "forward"}

FLANNEL_COMMENT = "flannel"
DROPS_ALL = ("drop", "reject")  # the text of a foreign rule that drops every packet

Chains = Mapping[str, Optional[tuple["MemoryRule", ...]]]


@dataclass(frozen=True, **SLOTS)
class MemoryRule:
    """A rule, the daemon's or foreign. The kernel gives it its `handle` at the first commit."""

    text: str
    comment: str = ""
    handle: int = 0

    @property
    def raw(self) -> str:
        return f'{self.text} comment "{self.comment}"' if self.comment else self.text

    @property
    def tag(self) -> str:
        return tag_of(self.comment)


class MemoryKernel:
    """The ruleset that all backends of one machine write and read.

    `generation` counts transactions. `log` holds each call of a backend: method, backend and family. By
    default the backends report that all is well; a test sets `probes`, `obstacles`, `drops`, `marks` and
    `cni_masquerade` to change that. A rule with the comment FLANNEL_COMMENT is flannel's. `interfere`, if set, is
    called after each `replace`, before the read-back.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.log: list[tuple[str, BackendName, Family]] = []
        self.probes: dict[BackendName, Probe] = {}
        self.obstacles: dict[Family, str] = {}
        self.drops: dict[BackendName, str] = {}
        self.marks: dict[BackendName, MarkEvidence] = {}
        self.cni_masquerade: dict[Family, str] = {}
        self.interfere: Callable[[], None] | None = None
        self._chains: dict[Family, dict[str, tuple[MemoryRule, ...]]] = {
            family: dict.fromkeys(BASE_CHAINS.values(), ()) for family in Family
        }
        self._failures: dict[str, list[Exception]] = {}
        self._handles = itertools.count(1)

    def chain(self, family: Family, name: str) -> tuple[MemoryRule, ...] | None:
        """Return the rules of a chain, in order; None if it does not exist."""
        return self._chains[family].get(name)

    def chains(self, family: Family) -> Mapping[str, tuple[str, ...]]:
        """Return all chains as text, handles left out."""
        return {name: tuple(rule.raw for rule in rules) for name, rules in self._chains[family].items()}

    def commit(self, family: Family, chains: Chains) -> None:
        """Commit one transaction: set the rules of these chains; None deletes a chain."""
        self.change(family, chains)
        self.generation = following(self.generation)

    def change(self, family: Family, chains: Chains) -> None:
        """Set the rules of these chains and count nothing: for a kernel that counts a transaction at another time."""
        for name, rules in chains.items():
            if rules is None:
                self._chains[family].pop(name, None)
            else:
                self._chains[family][name] = tuple(rule if rule.handle else self._new(rule) for rule in rules)

    def append(self, family: Family, chain: str, text: str, comment: str = "") -> None:
        """Another program appends a rule to a chain."""
        rules = self._chains[family].get(chain, ())
        self.commit(family, {chain: (*rules, MemoryRule(text, comment))})

    def prepend(self, family: Family, chain: str, text: str, comment: str = "") -> None:
        """Another program inserts a rule at the start of a chain."""
        rules = self._chains[family].get(chain, ())
        self.commit(family, {chain: (MemoryRule(text, comment), *rules)})

    def delete(self, family: Family, chain: str, index: int = 0) -> None:
        """Another program deletes a rule. Raises IndexError if there is none at `index`."""
        rules = list(self._chains[family][chain])
        del rules[index]
        self.commit(family, {chain: tuple(rules)})

    def duplicate(self, family: Family, chain: str, index: int = 0) -> None:
        """Another program appends a copy of a rule."""
        rule = self._chains[family][chain][index]
        self.append(family, chain, rule.text, rule.comment)

    def flush(self, family: Family, chain: str) -> None:
        """Flush a chain, as another program would."""
        self.commit(family, {chain: ()})

    def fail(self, method: str, *errors: Exception) -> None:
        """Make the next calls of that method, of any backend, raise these errors, one each."""
        self._failures.setdefault(method, []).extend(errors)

    def called(self, method: str, backend: BackendName, family: Family) -> None:
        """Log the call of a backend, and raise the error that a test asked for."""
        self.log.append((method, backend, family))
        if self._failures.get(method):
            raise self._failures[method].pop(0)

    def _new(self, rule: MemoryRule) -> MemoryRule:
        return MemoryRule(rule.text, rule.comment, next(self._handles))


class MemoryBackend:
    """Keeps a chain of its own per group, with one jump to it from a base chain that all programs share.

    If `counted`, it has a generation, and so events; without, it is polled, as legacy iptables is.
    """

    def __init__(self, name: BackendName, family: Family, kernel: MemoryKernel, *, counted: bool = True) -> None:
        self.name = name
        self.family = family
        self._kernel = kernel
        self._counted = counted
        self._read_at = -1

    def own_chain(self, group: Group) -> str:
        return f"{self.name} {group}"

    def probe(self) -> Probe:
        self._kernel.called("probe", self.name, self.family)
        return self._kernel.probes.get(self.name, Probe(True, versions=(f"{self.name} in memory",)))

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return tuple(item for group in desired.groups for item in self._wanted(group))

    def render(self, desired: Desired) -> str:
        lines = []
        for group in desired.groups:
            lines.append(f"chain {self.own_chain(group.group)}")
            lines += [f"  {rule.raw}" for rule in map(_memory_rule, group.rules)]
            where = "before" if desired.position_of(group.group) is Position.FIRST else "behind"
            lines.append(f"{BASE_CHAINS[group.group]}: {self._jump(group).raw} {where} all others")
        return "".join(f"{line}\n" for line in lines)

    def observe(self, groups: Collection[Group]) -> Observation:
        self._kernel.called("observe", self.name, self.family)
        self._read_at = self._kernel.generation
        parts = [self._observe(group) for group in Group if group in groups]
        own, strange = _by_tag(items for items, _ in parts)
        return Observation(
            own, tuple(around for _, around in parts), self._kernel.obstacles.get(self.family, ""), strange
        )

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        self._kernel.called("replace", self.name, self.family)
        transactions = 0
        for group in Group:
            wanted = desired.rules_of(group)
            chains = self._removal(group, observed) if wanted is None else self._addition(wanted, desired, changes)
            if chains:
                self._kernel.commit(self.family, chains)
                transactions += 1
        if self._kernel.interfere is not None:
            self._kernel.interfere()
        return transactions

    def generation(self) -> int | None:
        return self._kernel.generation if self._counted else None

    def poll(self) -> bool | None:
        return None if self._counted else self._kernel.generation != self._read_at

    def fingerprint(self, groups: Collection[Group]) -> bytes | None:
        if not self._counted:
            return None
        own = [self._kernel.chain(self.family, self.own_chain(group)) for group in Group]
        evidence = (self._kernel.drops.get(self.name), self._kernel.marks.get(self.name))
        return repr((own, *map(self._base, Group), evidence)).encode()

    def drops_forwarding(self) -> str:
        self._kernel.called("drops_forwarding", self.name, self.family)
        return self._kernel.drops.get(self.name, "")

    def kube_proxy_mark(self) -> MarkEvidence | None:
        self._kernel.called("kube_proxy_mark", self.name, self.family)
        return self._kernel.marks.get(self.name)

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        self._kernel.called("survey", self.name, self.family)
        flannel = [
            _item(ItemKind.RULE, chain, rule)
            for chain in BASE_CHAINS.values()
            for rule in self._kernel.chain(self.family, chain) or ()
            if rule.comment == FLANNEL_COMMENT
        ]
        return Survey(tuple(flannel), self._kernel.cni_masquerade.get(self.family, ""))

    def remove(self, items: tuple[Item, ...]) -> None:
        self._kernel.called("remove", self.name, self.family)
        handles = {item.handle for item in items}
        chains = {item.place: self._kernel.chain(self.family, item.place) or () for item in items}
        kept = {name: tuple(rule for rule in rules if rule.handle not in handles) for name, rules in chains.items()}
        if kept:
            self._kernel.commit(self.family, kept)

    def _wanted(self, group: GroupRules) -> tuple[Item, ...]:
        own, base, jump = self.own_chain(group.group), BASE_CHAINS[group.group], self._jump(group)
        rules = map(_memory_rule, group.rules)
        return (
            Item(ItemKind.CHAIN, own, f"chain {own}", raw=f"chain {own}"),
            *(Item(ItemKind.RULE, own, rule.raw, tag=rule.tag) for rule in rules),
            Item(ItemKind.JUMP, base, jump.raw, tag=jump.tag),
        )

    def _observe(self, group: Group) -> tuple[tuple[Item, ...], Neighbours]:
        own, base = self.own_chain(group), BASE_CHAINS[group]
        rules = self._kernel.chain(self.family, own)
        items = [] if rules is None else [Item(ItemKind.CHAIN, own, f"chain {own}", raw=f"chain {own}")]
        items += [_item(ItemKind.RULE, own, rule) for rule in rules or ()]
        around = self._base(group)
        jumps = [index for index, rule in enumerate(around) if self._is_jump(rule, group)]
        items += [_item(ItemKind.JUMP, base, around[index]) for index in jumps]
        blocker = _blocker(tuple(filter(_is_foreign, around))) if group is Group.FORWARD else None
        first = jumps[0] if jumps else len(around)
        before = tuple(rule.raw for rule in around[:first] if _is_foreign(rule))
        after = tuple(rule.raw for rule in around[first:] if _is_foreign(rule))
        return tuple(items), Neighbours(base, before, after, blocker=blocker)

    def _addition(self, group: GroupRules, desired: Desired, changes: tuple[Change, ...]) -> Chains:
        own, base, jump = self.own_chain(group.group), BASE_CHAINS[group.group], self._jump(group)
        around = self._base(group.group)
        moved = any(change.kind is ChangeKind.MOVED and change.place == base for change in changes)
        kept = None if moved else next((rule for rule in around if rule.raw == jump.raw), None)
        others = tuple(rule for rule in around if rule is kept or not self._is_jump(rule, group.group))
        if kept is None:
            place = _place(others, desired.position_of(group.group))
            others = (*others[:place], jump, *others[place:])
        return {own: tuple(map(_memory_rule, group.rules)), base: others}

    def _removal(self, group: Group, observed: Observation) -> Chains:
        around = self._base(group)
        others = tuple(rule for rule in around if not self._is_jump(rule, group))
        own = {item.place: None for item in observed.items if item.place == self.own_chain(group)}
        return {**own, BASE_CHAINS[group]: others} if own or others != around else {}

    def _base(self, group: Group) -> tuple[MemoryRule, ...]:
        return self._kernel.chain(self.family, BASE_CHAINS[group]) or ()

    def _jump(self, group: GroupRules) -> MemoryRule:
        return MemoryRule(f"jump {self.own_chain(group.group)}", group.jump_comment)

    def _is_jump(self, rule: MemoryRule, group: Group) -> bool:
        return rule.text == f"jump {self.own_chain(group)}" and bool(rule.tag)


def memory_backend_type(
    name: str = "memory", preference: int | None = None, kernel: MemoryKernel | None = None, *, counted: bool = True
) -> BackendType:
    """Return a backend as a plugin offers it; both families share `kernel`, by default a new one."""
    kernel = MemoryKernel() if kernel is None else kernel
    backend_name = BackendName(name)

    def create(family: Family, host: Host) -> MemoryBackend:
        return MemoryBackend(backend_name, family, kernel, counted=counted)

    return BackendType(backend_name, "rules in memory, for tests", create, preference)


def _by_tag(parts: Iterable[tuple[Item, ...]]) -> tuple[tuple[Item, ...], tuple[Stranger, ...]]:
    """Return the items of the places in which something has a tag, and the chains of all others."""
    places = [(items, any(item.tag for item in items)) for items in parts]
    own = tuple(item for items, tagged in places if tagged for item in items)
    return own, tuple(Stranger(items, len(items) == 1) for items, tagged in places if items and not tagged)


def _memory_rule(rule: Rule) -> MemoryRule:
    tests = {
        "mark": rule.mark,
        "from": rule.src,
        "to": rule.dst,
        "not to": rule.dst_not,
    }
    words = ["invalid"] if rule.invalid else []
    words += [f"{name} {value}" for name, value in tests.items() if value is not None]
    random = " to random ports" if rule.fully_random else ""
    return MemoryRule(" ".join([*words, rule.verdict.value]) + random, rule.comment)


def _is_foreign(rule: MemoryRule) -> bool:
    """Return True unless the rule is a jump of any backend: backends of one kernel do not share a chain elsewhere."""
    return not (rule.text.startswith("jump ") and tag_of(rule.comment))


def _blocker(rules: Sequence[MemoryRule]) -> Blocker | None:
    """Return the first rule that drops every packet."""
    index = next((index for index, rule in enumerate(rules) if rule.text in DROPS_ALL), None)
    return None if index is None else Blocker(index, index + 1)


def _place(others: Sequence[MemoryRule], position: Position) -> int:
    """Return the number of foreign rules that a new jump goes behind."""
    blocker = _blocker(others) if position is Position.AUTO else None
    if blocker is not None:
        return blocker.index
    return 0 if position is Position.FIRST else len(others)


def _item(kind: ItemKind, place: str, rule: MemoryRule) -> Item:
    return Item(kind, place, rule.raw, raw=rule.raw, tag=rule.tag, handle=rule.handle)
