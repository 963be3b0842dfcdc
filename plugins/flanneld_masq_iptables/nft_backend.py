"""iptables-nft: written by iptables-nft-restore, read and cleaned over netlink.

Netlink also shows what the program cannot parse. Reading it starts no process, and costs the same however many foreign
rules are in the table.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from flanneld_masq.errors import CommandError, KernelError, MasqError, RulesetError
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import comment, decision, describe, jump_target
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.kube_proxy import IPTABLES_CHAIN, MarkReader
from flanneld_masq.kernel.nfnetlink import AddedRule, Nfnetlink
from flanneld_masq.kernel.objects import Chain, KernelRule, following
from flanneld_masq.kernel.rule_cache import RuleCache, holds
from flanneld_masq.model import (
    BackendName,
    Blocker,
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
    Survey,
    Traffic,
    tag_of,
)
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq_iptables import binaries, rules
from flanneld_masq_iptables.base import IptablesBackend, PlaceItems, Removal
from flanneld_masq_iptables.forward_chain import OURS, Action, Analysis, Drop, Step
from flanneld_masq_iptables.rules import PLACES, Jumps, Place

NAME = BackendName("iptables-nft")
_SOURCE = re.compile(r"\bsaddr ([\da-f.:/]+)")
_JUMP_EXPRESSIONS = frozenset({"match", "counter", "immediate"})
_ACTIONS = {
    **dict.fromkeys(("", "continue", "break"), Action.NOTHING),
    "accept": Action.ACCEPT,
    "drop": Action.DROP,
    "return": Action.RETURN,
    "jump": Action.JUMP,
    "goto": Action.GOTO,
}

# nft_chain_builtin in iptables/nft.c: type, hook and priority that iptables-nft gives its built-in chains
_BUILT_IN = {
    PLACES[Group.MASQUERADE]: ("nat", uapi.NF_INET_POST_ROUTING, 100),
    PLACES[Group.FORWARD]: ("filter", uapi.NF_INET_FORWARD, 0),
}


class IptablesNft(IptablesBackend):
    """Chains and jumps of iptables-nft, which are chains and rules of nf_tables."""

    name = NAME
    flavour = binaries.NF_TABLES
    privilege = "run as root (CAP_NET_ADMIN), on a kernel with nf_tables"

    def __init__(self, family: Family, host: Host) -> None:
        super().__init__(family, host)
        self._cache = RuleCache(family)
        self._followed: tuple[str, ...] = ()  # chains that say whether FORWARD drops, when it was last looked at
        self._mark = MarkReader(family, PLACES[Group.MASQUERADE].table, (IPTABLES_CHAIN,))

    @cached_property
    def _netlink(self) -> Nfnetlink:
        return Nfnetlink()

    def observe(self, groups: Collection[Group]) -> Observation:
        return self._observation([PLACES[group] for group in Group if group in groups])

    def drops_forwarding(self) -> str:
        place = PLACES[Group.FORWARD]
        table = self._netlink.table(self.family, place.table)
        if table is None or table.flags & uapi.NFT_TABLE_F_DORMANT:
            return ""
        chain = self._netlink.chain(self.family, place.table, place.base)
        if chain is None or chain.hook != place.hook:
            return ""
        base = self._netlink.rules(self.family, place.table, place.base)
        drop = self._drop(place, base, policy=chain.policy == uapi.NF_DROP)
        if drop is None:
            return ""
        what = "has policy drop" if drop.index is None else "has a rule that drops every packet"
        return f"chain {place.base} of table {self.family.data.nft} {place.table} {what}"

    def kube_proxy_mark(self) -> MarkEvidence | None:
        return self._mark.read(self._netlink)

    def _counted(self, place: Place) -> Iterator[tuple[str, Traffic]]:
        for rule, traffic in self._netlink.counted(self.family, place.table, place.chain):
            yield tag_of(comment(rule)), traffic

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        flannel = [item for group in Group for item in self._flannel(group, leases)]
        place = PLACES[Group.MASQUERADE]
        base = self._netlink.rules(self.family, place.table, place.base)
        jumps = [rule for rule in base if rules.is_cni_masquerade(jump_target(rule))]
        chains = [jump_target(rule) for rule in jumps if rules.is_about_pods(_source(rule, self.family), leases)]
        where = f"chain {chains[0]} of table {self.family.data.nft} {place.table}" if chains else ""
        return Survey(tuple(flannel), where, rules.flannel_nat(flannel))

    def fingerprint(self, groups: Collection[Group]) -> bytes:
        forward = PLACES[Group.FORWARD]
        base = self._netlink.chain(self.family, forward.table, forward.base)
        requests = (self._request(PLACES[group]) for group in Group if group in groups)
        dumped = () if Group.FORWARD in groups else (forward.base,)
        request = sum(requests, FingerprintRequest.of_table(self.family, forward.table, (), dumped))
        # kube-proxy writes its chains again at every sync.
        followed = self._netlink.contents(FingerprintRequest.of_rules(self.family, forward.table, self._followed))
        leftovers = b"".join(self._leftovers(PLACES[group]) for group in Group if group not in groups)
        evidence = (base and (base.hook, base.policy), self._mark.read(self._netlink))
        return self._netlink.fingerprint(request) + followed + repr(evidence).encode() + leftovers

    def _leftovers(self, place: Place) -> bytes:
        """Return what differs when objects of the daemon appear in a place; b"" if there are none.

        Tags in FORWARD are left out, because the fingerprint holds all rules of that chain anyway.
        """
        dumped = () if place.base == PLACES[Group.FORWARD].base else (place.base,)
        base = FingerprintRequest.of_rules(self.family, place.table, dumped)
        chain = self._netlink.chain(self.family, place.table, place.chain)
        if chain is None:
            return b"".join(rules.TAG.findall(self._netlink.fingerprint(base)))
        own = FingerprintRequest.of_rules(self.family, place.table, (place.chain,))
        return self._netlink.fingerprint(base + own) + repr(chain).encode()

    def _request(self, place: Place) -> FingerprintRequest:
        return FingerprintRequest.of_table(self.family, place.table, (place.chain,), (place.chain, place.base))

    def generation(self) -> int:
        return self._netlink.generation()

    def poll(self) -> None:
        return None

    def _forget(self) -> None:
        self._cache.forget()

    def _probe(self, program: binaries.Program) -> Probe:
        self._netlink.generation()
        if self._netlink.has_extension(self.family, "MASQUERADE", 0, target=True):
            return Probe(True, versions=(str(program),), random_fully=program.random_fully)
        remedy = "the kernel needs nft_compat and xt_MASQUERADE (modprobe nft_compat)"
        return Probe(False, "the kernel's nft_compat does not offer MASQUERADE", remedy, (str(program),))

    def _write(self, desired: Desired, observed: Observation, jumps: Mapping[Place, Jumps]) -> int:
        """Add new jumps before the stale ones are deleted: at no time is there none."""
        cached = self._write_cached(desired, observed, jumps)
        transactions = self._write_with_program(desired, jumps) if cached is None else cached
        return transactions + sum(self._delete(place, jump.stale, None) for place, jump in jumps.items())

    def _write_with_program(self, desired: Desired, jumps: Mapping[Place, Jumps]) -> int:
        before = self._netlink.generation()
        try:
            self._restore(rules.restore_input(desired, lambda place, _: jumps[place].new))
        except CommandError as error:
            raise self._explained(error) from error
        chains = [(place.table, chain) for place in jumps for chain in (place.chain, place.base)]
        self._cache.learn(self._netlink, chains, following(before, len(jumps)))
        return len(jumps)

    def _write_cached(self, desired: Desired, observed: Observation, jumps: Mapping[Place, Jumps]) -> int | None:
        """Write without iptables-nft-restore, unless the kernel's form of a rule is not known. Return the number of
        transactions, or None if the program is needed.

        The program takes 5 ms to start, and lists all chains of its tables: 40 ms if there are 50,000 foreign rules.
        Nor does it commit at once: among other writers each wait for the kernel's lock may take 30 ms.
        A table that is in order is left alone.
        """
        try:
            chains, added, made = {}, [], []
            for group in desired.groups:
                place = PLACES[group.group]
                own = self._cache.rules(place.chain, [rule.comment for rule in group.rules])
                new = jumps[place].new
                if not new and holds(observed, place.own, own):
                    continue
                chains[place.table, place.chain] = own
                jump = self._cache.rules(place.base, [group.jump_comment] if new else [])
                first = desired.position_of(group.group) is Position.FIRST
                added += [AddedRule(place.table, rule, ahead=first, before=jumps[place].before) for rule in jump]
                made += [(place.table, self._cache.chain(place.table, name)) for name in (place.base, place.chain)]
            if chains:
                self._netlink.refill(self.family, chains, added, made=made)
        except (LookupError, KernelError):  # the kernel refuses, for example, a base chain of another priority
            return None
        return 1 if chains else 0

    def _delete(self, place: Place, items: tuple[Item, ...], chain: str | None) -> int:
        if not items and chain is None:
            return 0
        handles = tuple((item.place.split(" ", 1)[1], item.handle) for item in items)
        self._netlink.delete(self.family, place.table, handles, chain)
        return 1

    def _remove_chain(self, place: Place, items: tuple[Item, ...]) -> Removal:
        try:
            return Removal(self._delete(place, items, place.chain))
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
        table = f"{self.family.data.nft} {place.table}"
        stuck = rules.still_referenced(place, table, f"nft -a list table {table}")
        return Removal(self._delete(place, items, None), stuck)

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

    def _explained(self, error: CommandError) -> MasqError:
        """Return the error, with what is wrong with a built-in chain if that may be why (iptables 1.8.7 takes any)."""
        problems = "; ".join(filter(None, map(self._unusable_base, PLACES.values())))
        return RulesetError(f"{problems}: {error}") if problems else error

    def _unusable_base(self, place: Place) -> str:
        """Return why iptables-nft refuses the table: it takes a chain with a built-in name only if it is as its own."""
        table = f"{self.family.data.nft} {place.table}"
        chain = self._netlink.chain(self.family, place.table, place.base)
        if chain is None or (chain.type, chain.hook, chain.priority) == _BUILT_IN[place]:
            return ""
        what = "a regular chain" if chain.hook is None else _describe_base(chain.type, chain.hook, chain.priority)
        return (
            f"chain {place.base} in table {table} is {what}, and iptables can use the table only if it is "
            f"{_describe_base(*_BUILT_IN[place])}; rename the table or the chain in the program that made it, "
            f"/etc/nftables.conf for example"
        )

    def _observe(self, place: Place) -> PlaceItems:
        base = self._netlink.rules(self.family, place.table, place.base)
        positions = [index for index, rule in enumerate(base) if tag_of(comment(rule))]
        jumps = [base[index] for index in positions]
        own: tuple[KernelRule, ...] = ()
        items: list[Item] = []
        chain = self._netlink.chain(self.family, place.table, place.chain)
        if chain is not None and chain.hook is None:
            own = self._netlink.rules(self.family, place.table, place.chain)
            items.append(Item(ItemKind.CHAIN, place.own, rules.chain_text(place), raw=_chain_raw(place, chain)))
            items.extend(self._item(ItemKind.RULE, place, rule) for rule in own)
            if chain.use != len(own) + sum(jump_target(rule) == place.chain for rule in base):
                jumps.extend(self._strays(place))
        items.extend(self._item(ItemKind.JUMP, place, rule) for rule in jumps)
        blocker = self._blocker(place, base, positions) if place == PLACES[Group.FORWARD] else None
        bare = not base and not self._netlink.holds_rules(self.family, place.table)
        return tuple(items), replace(_neighbours(place, base, positions, blocker), bare=bare)

    def _blocker(self, place: Place, base: tuple[KernelRule, ...], jumps: list[int]) -> Blocker | None:
        chain = self._netlink.chain(self.family, place.table, place.base)
        drop = self._drop(place, base, policy=chain is not None and chain.policy == uapi.NF_DROP)
        if drop is None or drop.index is None:
            return None
        foreign = drop.index - sum(jump < drop.index for jump in jumps)
        return Blocker(foreign, drop.index + 1, base[drop.index].handle)

    def _drop(self, place: Place, base: tuple[KernelRule, ...], *, policy: bool) -> Drop | None:
        analysis = Analysis(lambda chain: self._steps(place, chain), own=place.chain)
        drop, self._followed = analysis.drop(map(_base_step, base), policy=policy), tuple(map(str, analysis.followed))
        return drop

    def _steps(self, place: Place, chain: Hashable) -> tuple[Step, ...]:
        return tuple(map(_step, self._netlink.rules(self.family, place.table, str(chain))))

    def _strays(self, place: Place) -> Iterator[KernelRule]:
        """Yield jumps with the daemon's comment in chains where none belongs. This reads the whole table, so it is done
        only if the kernel counts more references to the daemon's chain than are known."""
        for rule in self._netlink.rules(self.family, place.table):
            if rule.chain != place.base and jump_target(rule) == place.chain and tag_of(comment(rule)):
                yield rule

    def _flannel(self, group: Group, leases: tuple[FamilyLease, ...]) -> Iterator[Item]:
        place, chain = PLACES[group], flannel_rules.CHAINS[group]
        flat_rules = (flannel_rules.flat_rules(group, self.family, lease) for lease in leases)
        flat = {rule.nft(self.family) for of_lease in flat_rules for rule in of_lease}
        for rule in self._netlink.rules(self.family, place.table, place.base):
            marked = comment(rule) == flannel_rules.COMMENTS[group] or jump_target(rule) == chain
            if marked or describe(rule, self.family) in flat:
                yield self._item(ItemKind.RULE, place, rule)
        if self._netlink.chain(self.family, place.table, chain) is not None:
            for rule in self._netlink.rules(self.family, place.table, chain):
                yield self._item(ItemKind.RULE, place, rule)
            yield Item(ItemKind.CHAIN, f"{place.table} {chain}", f"chain {chain}")

    def _item(self, kind: ItemKind, place: Place, rule: KernelRule) -> Item:
        tag, text = tag_of(comment(rule)), describe(rule, self.family)
        if kind is ItemKind.JUMP and jump_target(rule) == place.chain and _is_plain_jump(rule):
            text = rules.jump_line(place, GroupRules(Group.MASQUERADE, (), tag))
        return Item(kind, f"{place.table} {rule.chain}", text, raw=rule.raw, tag=tag, handle=rule.handle)


def _chain_raw(place: Place, chain: Chain) -> str:
    return rules.chain_text(place) + (f", flags {chain.flags:#x}" if chain.flags else "")


def _source(rule: KernelRule, family: Family) -> str:
    """Return the source that a rule matches, as it is described; empty for none."""
    source = _SOURCE.search(describe(rule, family))
    return source[1] if source else ""


def _is_plain_jump(rule: KernelRule) -> bool:
    """Return True for a jump as the daemon writes it: a comment, a counter, and no match that could skip a packet."""
    names = [expression.name for expression in rule.expressions]
    return (
        len(set(names)) == len(names)
        and set(names) <= _JUMP_EXPRESSIONS
        and bool(tag_of(comment(rule)))
        and " goto " not in f" {describe(rule, Family.IPV4)} "
    )


def _base_step(rule: KernelRule) -> Step:
    return OURS if tag_of(comment(rule)) else _step(rule)


def _step(rule: KernelRule) -> Step:
    decided = decision(rule)
    return Step(_ACTIONS.get(decided.verdict, Action.OTHER), decided.always, decided.chain)


def _neighbours(place: Place, base: tuple[KernelRule, ...], jumps: list[int], blocker: Blocker | None) -> Neighbours:
    digests = [rules.digest(rule.raw) for rule in base]
    if not jumps:
        return Neighbours(place.jump, tuple(digests), blocker=blocker)
    return Neighbours(
        place.jump,
        tuple(digest for index, digest in enumerate(digests) if index < jumps[0]),
        tuple(digest for index, digest in enumerate(digests) if index > jumps[0] and index not in jumps),
        base[jumps[0]].handle,
        blocker,
    )


def _describe_base(kind: str, hook: int, priority: int) -> str:
    return f"a base chain of type {kind}, hook {hook}, priority {priority}"
