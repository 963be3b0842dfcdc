"""Makes the rules out of settings and leases. Pure; `explain` and the tests use the same rule objects.

The rows of the design:

    1  mark & mask == value                      return      kube-proxy masquerades these itself
    2  src in subnet, dst in networks            return      pod to pod
    3  dst in subnet                             return      outside, host or remote pod to a local pod
    4  src in networks, dst in an excepted range return      setting
    5  src in networks, dst link-local           return      setting
    6  src in networks, dst not multicast        masquerade  pods to the world
    7  dst in networks                           masquerade  this host to remote pods, unless switched off
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from flanneld_masq.model import (
    DEFAULT_KUBE_PROXY_MARK,
    TAG_LENGTH,
    Desired,
    Family,
    FamilyLease,
    Group,
    GroupRules,
    Lease,
    Mark,
    MasqueradeSettings,
    Network,
    Packet,
    Protection,
    Rule,
    Settings,
    Verdict,
    family_of,
)


def desired(
    settings: Settings,
    leases: tuple[Lease, ...],
    family: Family,
    groups: frozenset[Group],
    *,
    random_fully: bool = True,
    exceptions: tuple[Network, ...] = (),
    auto_mark: Mark = DEFAULT_KUBE_PROXY_MARK,
    offered: Protection | None = None,
) -> Desired:
    """Return what a backend that carries `groups` must hold for `family`. `offered` is the protection that its probe
    offers."""
    rules = group_rules(settings, leases, family, random_fully=random_fully, exceptions=exceptions, auto_mark=auto_mark)
    return Desired(
        family,
        tuple(group for group in rules if group.group in groups),
        settings.masquerade.position,
        settings.forward.position,
        protection(settings, offered),
    )


def protection(settings: Settings, offered: Protection | None) -> Protection:
    """Return the protection of the tables of a backend whose probe offers that. For "auto", tables must not end with
    the daemon."""
    if offered is None or not settings.nft_protect:
        return Protection.NONE
    return offered if settings.nft_protect is True or offered is Protection.PERSIST else Protection.NONE


def group_rules(
    settings: Settings,
    leases: tuple[Lease, ...],
    family: Family,
    *,
    random_fully: bool = True,
    exceptions: tuple[Network, ...] = (),
    auto_mark: Mark = DEFAULT_KUBE_PROXY_MARK,
) -> tuple[GroupRules, ...]:
    """Return the rules of each enabled group; none for a family that no lease names.

    A family outside `masquerade.families` has forward rules all the same: its pods are routed, with their own address.

    `random_fully` is True if the backend supports it. `exceptions` are destinations that plugins add to
    `non_masquerade_cidrs`. `auto_mark` is the mark that `kube_proxy_mark = "auto"` stands for.
    """
    named = tuple(family_lease for lease in leases if (family_lease := lease.of(family)) is not None)
    if not named:
        return ()
    groups = []
    if masquerades(settings.masquerade, family):
        kept = (*settings.masquerade.non_masquerade_cidrs, *exceptions)
        mark = settings.masquerade.kube_proxy_mark
        masquerade = replace(settings.masquerade, kube_proxy_mark=auto_mark if mark == "auto" else mark)
        rules = _masquerade(masquerade, named, family, kept, random_fully)
        groups.append(_tagged(Group.MASQUERADE, rules))
    if settings.forward.enabled:
        groups.append(_tagged(Group.FORWARD, _forward(named, settings.forward.drop_invalid)))
    return tuple(groups)


def masquerades(settings: MasqueradeSettings, family: Family) -> bool:
    """Return True if a family that a lease names gets masquerade rules."""
    return settings.enabled and family in settings.families


def rules_of(groups: Iterable[GroupRules], group: Group) -> tuple[Rule, ...]:
    """Return the rules of a group; none if it is not among the groups."""
    return next((found.rules for found in groups if found.group is group), ())


def decide(rules: tuple[Rule, ...], packet: Packet) -> Rule | None:
    """Return the first rule that matches, which decides; None if no rule does."""
    return next((rule for rule in rules if rule.matches(packet)), None)


def why_undecided(settings: Settings, leases: tuple[Lease, ...], packet: Packet) -> str:
    """Return why no masquerade rule matches a packet."""
    family = family_of(packet.src)
    named = [family_lease for lease in leases if (family_lease := lease.of(family)) is not None]
    none = f"there are no masquerade rules for {family}"
    if not named:
        return f"{none}: no subnet file names the family"
    if not settings.masquerade.enabled:
        return f"{none}: masquerade.enabled is false"
    if not masquerades(settings.masquerade, family):
        return f"{none}: masquerade.families leaves the family out"
    if any(packet.dst in network for lease in named for network in lease.networks):
        return "masquerade.to_remote_pods is false, so packets to pods of other nodes keep their source address"
    return "none matches: the packet has nothing to do with pods, or goes to a multicast group"


def _masquerade(
    settings: MasqueradeSettings,
    leases: tuple[FamilyLease, ...],
    family: Family,
    exceptions: Iterable[Network],
    random_fully: bool,
) -> Iterator[Rule]:
    subnets = _distinct(lease.subnet for lease in leases)
    networks = _distinct(network for lease in leases for network in lease.networks)
    mark = settings.kube_proxy_mark
    fully_random = settings.random_fully and random_fully
    multicast = family.data.multicast
    if isinstance(mark, Mark):
        why = f"kube-proxy masquerades packets marked {mark} itself"
        yield Rule("1", why, Verdict.RETURN, mark=mark)
    for lease in leases:
        for network in _distinct(lease.networks):
            why = f"pod to pod: {lease.subnet} talks to {network} with the pod's own address"
            yield Rule("2", why, Verdict.RETURN, src=lease.subnet, dst=network)
    for subnet in subnets:
        why = f"a client of a pod of this node ({subnet}) keeps its address"
        yield Rule("3", why, Verdict.RETURN, dst=subnet)
    for exception in _distinct(network for network in exceptions if family_of(network) is family):
        for network in networks:
            why = f"{exception} is in non_masquerade_cidrs, so pods keep their address on the way there"
            yield Rule("4", why, Verdict.RETURN, src=network, dst=exception)
    if not settings.masquerade_link_local:
        for network in networks:
            why = "masquerade_link_local is off, so pods keep their address on the way to link-local addresses"
            yield Rule("5", why, Verdict.RETURN, src=network, dst=family.data.link_local)
    for network in networks:
        why = f"pods ({network}) reach the world with the node's address; multicast is left alone"
        yield Rule("6", why, Verdict.MASQUERADE, src=network, dst_not=multicast, fully_random=fully_random)
    for network in networks if settings.to_remote_pods else ():
        why = f"this host, or a router behind it, reaches remote pods ({network}) with the overlay address"
        yield Rule("7", why, Verdict.MASQUERADE, dst=network, fully_random=fully_random)


def _forward(leases: tuple[FamilyLease, ...], drop_invalid: bool) -> Iterator[Rule]:
    networks = _distinct(network for lease in leases for network in lease.networks)
    for network in networks if drop_invalid else ():
        why = f"a packet from pods ({network}) that belongs to no connection would leave without masquerade"
        yield Rule("forward-invalid-src", why, Verdict.DROP, src=network, invalid=True)
        why = f"a packet to pods ({network}) that belongs to no connection is not for them"
        yield Rule("forward-invalid-dst", why, Verdict.DROP, dst=network, invalid=True)
    for network in networks:
        why = f"packets from pods ({network}) may cross this node"
        yield Rule("forward-src", why, Verdict.ACCEPT, src=network)
        why = f"packets to pods ({network}) may cross this node"
        yield Rule("forward-dst", why, Verdict.ACCEPT, dst=network)


def _distinct(networks: Iterable[Network]) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(networks))


def _tagged(group: Group, rules: Iterable[Rule]) -> GroupRules:
    """Give each rule its tag: a hash of the rule and of the tag before it, so that it covers all rules before."""
    tag = _hash("", group.value)
    jump_tag = _hash(tag, "jump")
    tagged = []
    for rule in rules:
        tag = _hash(tag, _content(rule))
        tagged.append(replace(rule, tag=tag))
    return GroupRules(group, tuple(tagged), jump_tag)


def _content(rule: Rule) -> str:
    """Return everything of a rule that reaches the kernel; its explanation does not."""
    invalid = " invalid" if rule.invalid else ""
    return f"{rule.mark} {rule.src} {rule.dst} {rule.dst_not} {rule.verdict.value} {rule.fully_random}{invalid}"


def _hash(previous: str, text: str) -> str:
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()[:TAG_LENGTH]
