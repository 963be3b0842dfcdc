"""iptables-nft: written by iptables-nft-restore, read and cleaned over netlink.

Reading over netlink sees what the tool cannot parse, starts no process, and costs the same however many
rules others keep in the table.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from flanneld_masq.errors import BackendUnavailable, KernelError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import comment, describe, drops, jump_target
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Chain, KernelRule, following
from flanneld_masq.kernel.rule_cache import RuleCache, holds
from flanneld_masq.model import (
    BackendName,
    Change,
    Desired,
    Family,
    FamilyLease,
    Group,
    GroupRules,
    Item,
    ItemKind,
    Neighbours,
    Observation,
    Position,
    Probe,
    Survey,
)
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq_iptables import binaries, rules
from flanneld_masq_iptables.rules import PLACES, Place

NAME = BackendName("iptables-nft")
_SOURCE = re.compile(r"\bsaddr ([\da-f.:/]+)")
_JUMP_EXPRESSIONS = frozenset({"match", "counter", "immediate"})


class IptablesNft:
    name = NAME

    def __init__(self, family: Family, host: Host) -> None:
        self.family = family
        self._host = host
        self._found: binaries.Program | None = None
        self._cache = RuleCache(family)

    @cached_property
    def _netlink(self) -> Nfnetlink:
        return Nfnetlink()

    @property
    def _program(self) -> binaries.Program:
        if self._found is None:
            self._found = binaries.find("nf_tables", NAME, self._host.run)
        return self._found

    def probe(self) -> Probe:
        self._found = None
        self._cache.forget()  # another release of the tools may write rules otherwise
        try:
            program = self._program
            self._netlink.generation()
            compatible = self._netlink.has_extension(self.family, "MASQUERADE", 0, target=True)
        except BackendUnavailable as error:
            return Probe(False, error.reason, error.remedy)
        except KernelError as error:
            return Probe(False, str(error), "run as root (CAP_NET_ADMIN), on a kernel with nf_tables")
        if not compatible:
            remedy = "the kernel needs nft_compat and xt_MASQUERADE (modprobe nft_compat)"
            return Probe(False, "the kernel's nft_compat does not offer MASQUERADE", remedy, (str(program),))
        return Probe(True, versions=(str(program),), random_fully=program.random_fully)

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return rules.items(desired)

    def render(self, desired: Desired) -> str:
        return rules.restore_input(desired, lambda place, group: [rules.new_jump(place, group, desired.position)])

    def observe(self, groups: Collection[Group]) -> Observation:
        places = [PLACES[group] for group in Group if group in groups]
        obstacles = filter(None, map(self._obstacle, places))
        found = [self._observe(place) for place in places]
        items = tuple(item for observed, _ in found for item in observed)
        return Observation(items, tuple(around for _, around in found), "; ".join(obstacles))

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        """New jumps are in place before old ones go: at no time is there none."""
        transactions = 0
        if desired.groups:
            new, stale = self._jumps(desired, observed, changes)
            replayed = self._replay_rules(desired, observed, new)
            transactions += self._restore(desired, new) if replayed is None else replayed
            for place, items in stale.items():
                transactions += self._delete(place, items, None)
        wanted = {group.group for group in desired.groups}
        stuck: list[str] = []
        for group, place in PLACES.items():
            if group not in wanted:
                transactions += self._remove(place, observed, stuck)
        if stuck:
            raise RulesetError("; ".join(stuck))
        return transactions

    def drops_forwarding(self) -> str:
        place = PLACES[Group.FORWARD]
        chain = self._netlink.chain(self.family, place.table, place.base)
        where = f"chain {place.base} of table {self.family.data.nft} {place.table}"
        if chain is None or chain.hook is None:
            return ""
        if chain.policy == uapi.NF_DROP:
            return f"{where} has policy drop"
        rules_there = self._netlink.rules(self.family, place.table, place.base)
        return f"{where} has a dropping rule" if any(map(drops, rules_there)) else ""

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        found = [item for group in Group for item in self._flannel(group, leases)]
        place = PLACES[Group.MASQUERADE]
        base = self._netlink.rules(self.family, place.table, place.base)
        jumps = [rule for rule in base if rules.is_cni_masquerade(jump_target(rule))]
        chains = [jump_target(rule) for rule in jumps if rules.is_about_pods(self._source(rule), leases)]
        where = f"chain {chains[0]} of table {self.family.data.nft} {place.table}" if chains else ""
        return Survey(tuple(found), where)

    def _source(self, rule: KernelRule) -> str:
        found = _SOURCE.search(describe(rule, self.family))
        return found[1] if found else ""

    def remove(self, items: tuple[Item, ...]) -> None:
        for place in PLACES.values():
            there = [item for item in items if item.place.startswith(f"{place.table} ")]
            chains = [item.place.split(" ", 1)[1] for item in there if item.kind is ItemKind.CHAIN]
            self._delete(place, tuple(item for item in there if item.kind is ItemKind.RULE), next(iter(chains), None))

    def _flannel(self, group: Group, leases: tuple[FamilyLease, ...]) -> Iterator[Item]:
        place, chain = PLACES[group], flannel_rules.CHAINS[group]
        flat = {
            rule.nft(self.family) for lease in leases for rule in flannel_rules.flat_rules(group, self.family, lease)
        }
        for rule in self._netlink.rules(self.family, place.table, place.base):
            theirs = comment(rule) == flannel_rules.COMMENTS[group] or jump_target(rule) == chain
            if theirs or describe(rule, self.family) in flat:
                yield self._item(ItemKind.RULE, place, rule)
        if self._netlink.chain(self.family, place.table, chain) is not None:
            for rule in self._netlink.rules(self.family, place.table, chain):
                yield self._item(ItemKind.RULE, place, rule)
            yield Item(ItemKind.CHAIN, f"{place.table} {chain}", f"chain {chain}")

    def fingerprint(self, groups: Collection[Group]) -> bytes:
        forward = PLACES[Group.FORWARD]
        base = self._netlink.chain(self.family, forward.table, forward.base)
        looks = (self._look(PLACES[group]) for group in Group if group in groups)
        dumped = () if Group.FORWARD in groups else (forward.base,)
        look = sum(looks, FingerprintRequest.of_table(self.family, forward.table, (), dumped))
        return self._netlink.fingerprint(look) + repr(base and base.policy).encode()

    def _look(self, place: Place) -> FingerprintRequest:
        return FingerprintRequest.of_table(self.family, place.table, (place.chain,), (place.chain, place.base))

    def generation(self) -> int:
        return self._netlink.generation()

    def poll(self) -> None:
        return None

    def _jumps(
        self, desired: Desired, observed: Observation, changes: tuple[Change, ...]
    ) -> tuple[dict[Place, list[str]], dict[Place, tuple[Item, ...]]]:
        new: dict[Place, list[str]] = {}
        stale: dict[Place, tuple[Item, ...]] = {}
        for group in desired.groups:
            place = PLACES[group.group]
            needed, stale[place] = rules.jumps_to_replace(place, group, observed, changes)
            new[place] = [rules.new_jump(place, group, desired.position)] if needed else []
        return new, stale

    def _restore(self, desired: Desired, new: Mapping[Place, list[str]]) -> int:
        text = rules.restore_input(desired, lambda place, _: new.get(place, []))
        before = self._netlink.generation()
        self._program.restore(self._host.run, self.family.data.tools, text)
        places = [PLACES[group.group] for group in desired.groups]
        chains = [(place.table, chain) for place in places for chain in (place.chain, place.base)]
        self._cache.learn(self._netlink, chains, following(before, len(places)))
        return len(places)

    def _replay_rules(self, desired: Desired, observed: Observation, new: Mapping[Place, list[str]]) -> int | None:
        """Write without iptables-nft-restore, if the kernel's form of each rule is known: in how many transactions.

        The tool takes 5 ms to start, and lists all chains of its tables: 40 ms where others have 50,000 rules. Nor
        does it commit at once: among other writers each of its turns at the kernel's lock may take 30 ms.
        A table that is in order is left alone.
        """
        try:
            chains, jumps, made = {}, [], []
            for group in desired.groups:
                place = PLACES[group.group]
                found = self._cache.rules(place.chain, [rule.comment for rule in group.rules])
                if not new[place] and holds(observed, place.own, found):
                    continue
                chains[place.table, place.chain] = found
                wanted = [group.jump_comment] if new[place] else []
                jumps += [(place.table, jump) for jump in self._cache.rules(place.base, wanted)]
                made += [(place.table, self._cache.chain(place.table, name)) for name in (place.base, place.chain)]
            if chains:
                self._netlink.refill(self.family, chains, jumps, ahead=desired.position is Position.FIRST, made=made)
        except (LookupError, KernelError):  # of the kernel, because a base chain has another priority, for one
            return None
        return 1 if chains else 0

    def _remove(self, place: Place, observed: Observation, stuck: list[str]) -> int:
        items = tuple(item for item in observed.items if item.place.split(" ", 1)[0] == place.table)
        if not items:
            return 0
        chain = place.chain if any(item.kind is ItemKind.CHAIN for item in items) else None
        removable = tuple(item for item in items if item.kind is not ItemKind.CHAIN)
        try:
            return self._delete(place, removable, chain)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
        table = f"{self.family.data.nft} {place.table}"
        stuck.append(rules.still_referenced(place, table, f"nft -a list table {table}"))
        return self._delete(place, removable, None)

    def _delete(self, place: Place, items: tuple[Item, ...], chain: str | None) -> int:
        if not items and chain is None:
            return 0
        handles = tuple((item.place.split(" ", 1)[1], item.handle) for item in items)
        self._netlink.delete(self.family, place.table, handles, chain)
        return 1

    def _obstacle(self, place: Place) -> str:
        table = self._netlink.table(self.family, place.table)
        if table is None:
            return ""
        name = f"{self.family.data.nft} {place.table}"
        if table.flags & uapi.NFT_TABLE_F_DORMANT:
            return f"table {name} is dormant, so none of its rules runs; wake it with `nft add table {name}`"
        if table.owner:
            return f"table {name} is owned by another program (netlink port {table.owner}); end that program"
        chain = self._netlink.chain(self.family, place.table, place.chain)
        if chain is not None and chain.hook is not None:
            return (
                f"chain {place.chain} in table {name} is a base chain (type {chain.type}, hook {chain.hook}, priority "
                f"{chain.priority}) that another program made, and no rule can jump to it; remove it with "
                f"`nft delete chain {name} {place.chain}`"
            )
        return ""

    def _observe(self, place: Place) -> tuple[tuple[Item, ...], Neighbours]:
        base = self._netlink.rules(self.family, place.table, place.base)
        positions = [index for index, rule in enumerate(base) if _is_in_base(rule, place)]
        jumps = [base[index] for index in positions]
        own: tuple[KernelRule, ...] = ()
        items: list[Item] = []
        chain = self._netlink.chain(self.family, place.table, place.chain)
        if chain is not None and chain.hook is None:
            own = self._netlink.rules(self.family, place.table, place.chain)
            items.append(Item(ItemKind.CHAIN, place.own, rules.chain_text(place), raw=_chain_raw(place, chain)))
            items.extend(self._item(ItemKind.RULE, place, rule) for rule in own)
            if chain.use != len(own) + sum(jump_target(rule) == place.chain for rule in jumps):
                jumps.extend(self._strays(place))
        items.extend(self._item(ItemKind.JUMP, place, rule) for rule in jumps)
        return tuple(items), _neighbours(place, base, positions)

    def _strays(self, place: Place) -> Iterator[KernelRule]:
        """Jumps with our comment in chains where none belongs. Reads the whole table, so only when the
        kernel counts more references to our chain than we know of."""
        for rule in self._netlink.rules(self.family, place.table):
            if rule.chain != place.base and jump_target(rule) == place.chain and rules.is_ours(comment(rule)):
                yield rule

    def _item(self, kind: ItemKind, place: Place, rule: KernelRule) -> Item:
        tag = rules.tag_of(comment(rule))
        text = describe(rule, self.family)
        if kind == "jump" and jump_target(rule) == place.chain and _is_plain_jump(rule):
            text = rules.jump_line(place, GroupRules(Group.MASQUERADE, (), tag))
        return Item(kind, f"{place.table} {rule.chain}", text, raw=rule.raw, tag=tag, handle=rule.handle)


def _chain_raw(place: Place, chain: Chain) -> str:
    return rules.chain_text(place) + (f", flags {chain.flags:#x}" if chain.flags else "")


def _is_in_base(rule: KernelRule, place: Place) -> bool:
    """Whether a rule of the built-in chain is ours: it goes to our chain, or did, as its comment says."""
    return jump_target(rule) == place.chain or rules.is_ours(comment(rule))


def _is_plain_jump(rule: KernelRule) -> bool:
    """A jump as we write it: our comment, a counter, and nothing that could keep a packet from it."""
    names = [found.name for found in rule.expressions]
    return (
        len(set(names)) == len(names)
        and set(names) <= _JUMP_EXPRESSIONS
        and rules.is_ours(comment(rule))
        and " goto " not in f" {describe(rule, Family.IPV4)} "
    )


def _neighbours(place: Place, base: tuple[KernelRule, ...], jumps: list[int]) -> Neighbours:
    if not jumps:
        return Neighbours(place.jump)
    digests = [hashlib.sha256(rule.raw.encode()).hexdigest()[:16] for rule in base]
    return Neighbours(
        place.jump,
        tuple(digest for index, digest in enumerate(digests) if index < jumps[0]),
        tuple(digest for index, digest in enumerate(digests) if index > jumps[0] and index not in jumps),
        base[jumps[0]].handle,
    )
