"""The native nft backend: reads and replaces the daemon's own table."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from ipaddress import ip_network

from flanneld_masq.errors import KernelError
from flanneld_masq.hookspecs import Host
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.expressions import comment, describe
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.kube_proxy import NFT_CHAINS, NFT_TABLE, MarkReader
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.kernel.objects import Chain, KernelRule, Table
from flanneld_masq.kernel.rule_cache import holds
from flanneld_masq.kernel.rule_encoding import encode
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
    MarkEvidence,
    Network,
    Observation,
    Probe,
    Protection,
    Rule,
    Stranger,
    Survey,
    Verdict,
    tag_of,
)
from flanneld_masq.ruleset import flannel_rules
from flanneld_masq_nft import protection, render
from flanneld_masq_nft.protection import FLAGS, Ownership

NAME = BackendName("nft")
_TRIAL = f"{render.TABLE}-trial"
_CNI_TABLE = "cni_plugins_masquerade"
_SOURCE = re.compile(r"\bip6? saddr ([0-9a-f.:]+(?:/[0-9]+)?)(?: |$)")
_HOOKS = {
    uapi.NF_INET_PRE_ROUTING: "prerouting",
    uapi.NF_INET_LOCAL_IN: "input",
    uapi.NF_INET_FORWARD: "forward",
    uapi.NF_INET_LOCAL_OUT: "output",
    uapi.NF_INET_POST_ROUTING: "postrouting",
}
_MODULES = "the kernel needs nf_tables with NAT (modules nf_tables, nft_chain_nat, nft_masq)"
_REMEDIES = {errno.EPERM: "run as root (CAP_NET_ADMIN)"}
_POLICIES = {uapi.NF_DROP: "drop", uapi.NF_ACCEPT: "accept"}


class NftBackend:
    """One table of nf_tables, with a base chain for each group of rules."""

    name = NAME

    def __init__(self, family: Family, host: Host) -> None:
        self.family = family
        self._mark = MarkReader(family, NFT_TABLE, NFT_CHAINS)
        self._ownership = Ownership(family, host)
        self._waits = False  # the table that was last observed persists without an owner
        self._owned: Desired | None = None  # what the table holds that would end with the socket

    @cached_property
    def _netlink(self) -> Nfnetlink:
        return self._ownership.open()

    def probe(self) -> Probe:
        """Let the kernel check a table like the daemon's, without a commit. It has another name, because what other
        programs did to the daemon's table says nothing about the kernel. No program or library takes part."""
        try:
            self._netlink.generation()
        except KernelError as error:
            return Probe(False, str(error), "run as root (CAP_NET_ADMIN), on a kernel with nf_tables")
        try:
            offered = protection.offered(self._netlink, self.family, _TRIAL, _encoded(_scenario(self.family)))
        except KernelError as error:
            return Probe(False, str(error), _REMEDIES.get(error.errno, _MODULES))
        return Probe(True, versions=(f"kernel {os.uname().release}",), protection=offered)

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return render.items(self._feasible(desired))

    def render(self, desired: Desired) -> str:
        return render.render(desired)

    def observe(self, groups: Collection[Group]) -> Observation:
        table = self._netlink.table(self.family, render.TABLE)
        self._waits = table is not None and table.owner == 0 and bool(table.flags & uapi.NFT_TABLE_F_PERSIST)
        if table is None:
            return Observation()
        # one dump of all chains takes 20 us less than one of each
        rules = self._netlink.rules(self.family, render.TABLE)
        items, obstacle = tuple(self._items(table, rules, groups)), self._obstacle(table)
        if any(tag_of(comment(rule)) for rule in rules):
            return Observation(items, obstacle=obstacle)
        chains = sum(item.kind is ItemKind.CHAIN for item in items)
        return Observation(obstacle=obstacle, strangers=(Stranger(items, not rules and table.use == chains),))

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        try:
            if desired.groups:
                return self._write(self._feasible(desired), observed)
            if not observed.items:
                return 0
            self._netlink.remove_table(self.family, render.TABLE)
        except KernelError as error:
            raise self._ownership.explained(self._netlink, error, render.TABLE) from error
        self._owned = None
        return 1

    def hold(self, desired: Desired) -> int:
        """Claim a table that an earlier process left. Nothing in it is written."""
        if not self._ownership.resident or desired.protection is Protection.NONE:
            return 0
        self._ownership.keep(self._netlink)
        self._owned = desired if desired.protection is Protection.OWNER else None
        if desired.protection is not Protection.PERSIST or not self._waits:
            return 0
        self._netlink.claim(self.family, render.TABLE, FLAGS[Protection.PERSIST])
        self._waits = False
        return 1

    def release(self) -> None:
        """Write a table that would end with the socket once more, without an owner, in one transaction."""
        if self._owned is not None:
            self._netlink.rebuild(self.family, render.TABLE, _encoded(self._owned))
            self._owned = None

    def drops_forwarding(self) -> str:
        return ""  # only the daemon writes its table, and no accept in it saves what another table drops

    def kube_proxy_mark(self) -> MarkEvidence | None:
        return self._mark.read(self._netlink)

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        name = flannel_rules.TABLES[self.family]
        place = f"{self.family.data.nft} {name}"
        flannel = (Item(ItemKind.TABLE, place, f"table {place}"),) if self._netlink.table(self.family, name) else ()
        return Survey(flannel, self._cni_masquerade(leases), tuple(self._flannel_nat(name)) if flannel else ())

    def _cni_masquerade(self, leases: tuple[FamilyLease, ...]) -> str:
        """Return the table in which the CNI bridge plugin masquerades, unless its rules name other networks alone."""
        if not self._netlink.has_inet_table(_CNI_TABLE):
            return ""
        rules = self._netlink.inet_rules(_CNI_TABLE)
        sources = [source for family in Family for rule in rules for source in _sources(describe(rule, family))]
        pods = [lease.subnet for lease in leases]
        about_pods = any(one.version == pod.version and one.overlaps(pod) for one in sources for pod in pods)
        return f"table inet {_CNI_TABLE}" if about_pods or not sources else ""

    def _flannel_nat(self, table: str) -> Iterator[Item]:
        name = flannel_rules.NFT_CHAIN
        chain = self._netlink.chain(self.family, table, name)
        if chain is not None and chain.hook == uapi.NF_INET_POST_ROUTING and chain.type == "nat":
            for rule in self._netlink.rules(self.family, table, name):
                place = f"{self.family.data.nft} {table} {name}"
                yield Item(ItemKind.RULE, place, describe(rule, self.family), handle=rule.handle)

    def remove(self, items: tuple[Item, ...]) -> None:
        for item in items:
            self._netlink.remove_table(self.family, item.place.split(" ", 1)[1])

    def fingerprint(self, groups: Collection[Group]) -> bytes:
        mark = repr(self._mark.read(self._netlink)).encode()
        chains = tuple(render.CHAINS[group].name for group in Group if group in groups)
        request = FingerprintRequest.of_table(self.family, render.TABLE, chains, (None,))
        return self._netlink.fingerprint(request) + mark

    def generation(self) -> int:
        return self._netlink.generation()

    def poll(self) -> None:
        return None

    def _feasible(self, desired: Desired) -> Desired:
        return replace(desired, protection=self._ownership.feasible(desired.protection))

    def _write(self, desired: Desired, observed: Observation) -> int:
        if _structure(observed.items) == _structure(render.structure(desired)):
            with contextlib.suppress(KernelError):  # another program has removed a chain since
                return self.hold(desired) + self._refill(desired, observed)
        self._netlink.rebuild(self.family, render.TABLE, _encoded(desired), self._ownership.flags(desired.protection))
        self._owned, self._waits = None, False
        return 1 + self.hold(desired)

    def _refill(self, desired: Desired, observed: Observation) -> int:
        """Write the rules of the chains that do not hold them. A chain that is in order is left alone, and no hook is
        unregistered. Return the number of transactions."""
        chains = {
            (render.TABLE, chain.name): rules
            for chain, rules in _encoded(desired).items()
            if not holds(observed, f"{render.table_place(self.family)} {chain.name}", rules)
        }
        if chains:
            self._netlink.refill(self.family, chains)
        return 1 if chains else 0

    def _items(self, table: Table, rules: Collection[KernelRule], groups: Collection[Group]) -> Iterator[Item]:
        text = self._describe_table(table) + _commented(table.comment)
        yield Item(ItemKind.TABLE, render.table_place(self.family), text, raw=text)
        for group in Group:
            if group in groups:
                yield from self._chain_items(group, rules)

    def _describe_table(self, table: Table) -> str:
        found = self._ownership.found(self._netlink, table)
        if found is None:
            return render.describe_table(self.family, table.use, Protection.NONE, table.flags, table.owner)
        return render.describe_table(self.family, table.use, found, table.flags & ~FLAGS[found])

    def _chain_items(self, group: Group, rules: Collection[KernelRule]) -> Iterator[Item]:
        name, place = render.CHAINS[group].name, render.chain_place(self.family, group)
        chain = self._netlink.chain(self.family, render.TABLE, name)
        if chain is None:
            return
        text = _describe(chain)
        yield Item(ItemKind.CHAIN, place, text, raw=text, handle=chain.handle)
        for rule in (rule for rule in rules if rule.chain == name):
            text, tag = describe(rule, self.family), tag_of(comment(rule))
            yield Item(ItemKind.RULE, place, text, raw=rule.raw, tag=tag, handle=rule.handle)

    def _obstacle(self, table: Table) -> str:
        if self._ownership.found(self._netlink, table) is not None:
            return ""
        return self._ownership.obstacle(render.table_place(self.family), table.owner)


def _kernel_chain(chain: render.BaseChain) -> Chain:
    return Chain(chain.name, 0, 0, 0, chain.hook_number, chain.priority, chain.type, uapi.NF_ACCEPT)


def _encoded(desired: Desired) -> dict[Chain, tuple[KernelRule, ...]]:
    """Return the chains and their rules as the kernel holds them."""
    return {
        _kernel_chain(chain): tuple(encode(desired.family, chain.name, rule) for rule in group.rules)
        for group in desired.groups
        for chain in (render.CHAINS[group.group],)
    }


def _describe(chain: Chain) -> str:
    if chain.hook is None:
        return "a regular chain, without a hook"
    policy = _POLICIES.get(-1 if chain.policy is None else chain.policy, f"{chain.policy}")
    hook = _HOOKS.get(chain.hook, f"{chain.hook}")
    flags = f" flags {chain.flags:#x};" if chain.flags else ""
    return render.describe_chain(chain.type, hook, chain.priority, policy) + flags + _commented(chain.comment)


def _commented(comment: str) -> str:
    return f' comment "{comment}"' if comment else ""


def _structure(items: tuple[Item, ...]) -> list[tuple[str, str, str]]:
    """Return tables and chains. If these are as desired, only rules are written, and no hook is unregistered."""
    return [(item.kind, item.place, item.raw) for item in items if item.kind is not ItemKind.RULE]


def _scenario(family: Family) -> Desired:
    rule = Rule("6", "", Verdict.MASQUERADE, dst_not=family.data.multicast, fully_random=True, tag="trial")
    accept = Rule("forward-src", "", Verdict.ACCEPT, src=family.data.link_local, tag="trial")
    return Desired(family, (GroupRules(Group.MASQUERADE, (rule,)), GroupRules(Group.FORWARD, (accept,))))


def _sources(text: str) -> Iterator[Network]:
    """Yield the sources that the text of a rule matches."""
    for source in _SOURCE.findall(text):
        with contextlib.suppress(ValueError):  # a comment may hold anything
            yield ip_network(source, strict=False)
