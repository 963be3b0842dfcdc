"""Reads the facts of a node that `doctor` examines. Changes nothing."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.cli.comparison import difference, differs, left_behind
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.status import reported
from flanneld_masq.doctor import host_reader, tunnel_flows, unit_state
from flanneld_masq.doctor.facts import DaemonFacts, Facts, FamilyFacts, KubeProxy, PacketFacts, TunnelDrop, Unread
from flanneld_masq.doctor.host_network import HostNetwork
from flanneld_masq.errors import MasqError, SnapshotError
from flanneld_masq.inputs import saved_rulesets
from flanneld_masq.kernel import kube_proxy
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.live.counters import legacy_tables
from flanneld_masq.model import Family, MarkEvidence, Network, Protection, Settings, Survey
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.flows import FlowResult, flows
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.printable import printable
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import flannel_effects, survey_backends
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.service.desired_state import DesiredStateBuilder

_NAT = "nat"
_IPTABLES_TABLES = (_NAT, "filter")


def gather(
    session: Session,
    options: argparse.Namespace,
    builder: DesiredStateBuilder,
    plugins: tuple[str, ...],
    snapshot: Snapshot | None = None,
) -> Facts:
    """Return all facts. A fact that cannot be found out is a trouble of its family, or left out.

    With a configuration that is wrong, return those that do not depend on it. `plugins` are the failures of plugins.
    `snapshot` is what was collected of the node already; None to collect it.
    """
    daemon = _daemon(session, options)
    if session.wrong is not None:
        facts = Facts(session.settings, wrong=str(session.wrong), daemon=daemon, plugins=plugins)
        return _with_network(facts, session.root)
    net_conf = builder.refresh().net_conf
    unread = "" if os.geteuid() == 0 else f"this is user {os.geteuid()}, not root"
    facts = Facts(
        session.settings,
        builder.leases.good,
        builder.leases.troubles,
        net_conf,
        daemon=daemon,
        families=() if unread else tuple(_families(session, builder.current())),
        unread=Unread(unread),
        plugins=plugins,
    )
    facts = _with_network(facts, session.root)
    desired = builder.current()
    if unread or desired is None:
        return facts
    return with_flows(facts, snapshot or collect(ProcessRunner(), session.root), desired.exceptions)


def with_flows(facts: Facts, snapshot: Snapshot, exceptions: tuple[Network, ...] = ()) -> Facts:
    """Add what becomes of the packets that pods need, with the rules of every program."""
    unread = "; ".join(snapshot.unread)
    found: list[FlowResult] = []
    tunnels: tuple[TunnelDrop, ...] = ()
    losing: tuple[str, ...] = ()
    try:
        node = Node(snapshot)
        losing = node.ruleset.losing
        for lease in facts.leases:
            found += flows(node, lease, facts.settings, exceptions=exceptions)
        tunnels = tuple(tunnel_flows.drops(node, facts.network or HostNetwork()))
    except SnapshotError as error:
        unread = str(error)
    packets = PacketFacts(tuple(found), tunnels, losing)
    return replace(facts, packets=packets, unread=replace(facts.unread, packet_path=unread))


def _daemon(session: Session, options: argparse.Namespace) -> DaemonFacts:
    holder = session.directory.holder()
    status, saved = reported(session, options), saved_rulesets.find(session.root)
    if holder.runs or status is not None:
        return DaemonFacts(holder, status, saved=saved)
    return DaemonFacts(holder, None, unit_state.read(ProcessRunner()), session.unreadable(), saved)


def _with_network(facts: Facts, root: Path) -> Facts:
    """Add interfaces, routes and switches. Without a lease, nothing says which of them matter."""
    network, unread = None, ""
    try:
        network = host_reader.read_network(ProcessRunner(), root, facts.leases) if facts.leases else None
    except (MasqError, ValueError) as error:
        unread = printable(str(error))
    sysctls = host_reader.read_sysctls(root, host_reader.sysctl_paths(network or HostNetwork(), facts.leases))
    return replace(facts, network=network, unread=replace(facts.unread, network=unread), sysctls=sysctls)


def _families(session: Session, desired: DesiredState | None) -> Iterator[FamilyFacts]:
    """Yield the families that a lease names, and those that have rules although none does."""
    for reconciler in session.reconcilers():
        family = reconciler.family
        if desired is None:
            yield _left(reconciler, session.settings)
        elif any(lease.of(family) for lease in desired.leases):
            yield _family(reconciler, desired, session.root)
        elif different := differs(reconciler, desired):
            yield FamilyFacts(family, differs=different)


def _left(reconciler: Reconciler, settings: Settings) -> FamilyFacts:
    """Return the rules of the daemon and of flannel that are in the kernel although there is no lease."""
    facts = FamilyFacts(reconciler.family, left=left_behind(reconciler, settings))
    with contextlib.suppress(MasqError):
        surveyed = survey_backends(reconciler.selector.usable(), ())
        return replace(facts, surveys={one.name: Survey(found.flannel) for one, found in surveyed})
    return facts


def _family(reconciler: Reconciler, desired_state: DesiredState, root: Path) -> FamilyFacts:
    facts = FamilyFacts(reconciler.family)
    try:
        choices = reconciler.selector.choices(desired_state)
        used = (choice.backend for chosen in choices.values() for choice in chosen)
        protection = reconciler.selector.protection(desired_state.settings, used)
        facts = replace(facts, protected=protection not in (None, Protection.NONE))
    except MasqError as error:
        facts = replace(facts, unusable=str(error))
    else:
        facts = _with_rules(facts, reconciler, desired_state)
    return replace(
        facts,
        drops=reconciler.selector.drops(),
        unhelped=reconciler.selector.unhelped,
        both_flavours=_has_legacy_rules(root, reconciler.family) and _has_nft_rules(reconciler.family),
        kube_proxy=_kube_proxy(reconciler, desired_state.settings, root),
    )


def _with_rules(facts: FamilyFacts, reconciler: Reconciler, desired_state: DesiredState) -> FamilyFacts:
    """Add how the kernel differs from what is wanted, and what flannel and the CNI plugins have there."""
    try:
        facts = replace(facts, differs=difference(reconciler, desired_state))
        surveyed = survey_backends(reconciler.selector.usable(), desired_state.leases)
        surveys = {backend.name: survey for backend, survey in surveyed}
        return replace(facts, surveys=surveys, effects=flannel_effects(surveyed, desired_state))
    except MasqError as error:
        return replace(facts, unread=f"cannot be read: {error}")


def _kube_proxy(reconciler: Reconciler, settings: Settings, root: Path) -> KubeProxy:
    """Return what kube-proxy's rules say, as far as they can be read."""
    family = reconciler.family
    followed = replace(settings, masquerade=replace(settings.masquerade, kube_proxy_mark="auto"))
    choice = reconciler.selector.kube_proxy_mark(followed)
    mark = MarkEvidence(choice.mark, choice.why) if choice.read and choice.mark is not None else None
    found = {"nf_tables": _kube_proxy_in_nft(family), "iptables-legacy": _kube_proxy_in_legacy(family, root)}
    places = tuple(place for place, (services, _) in found.items() if services)
    return KubeProxy(places, mark, any(keeps_mark for _, keeps_mark in found.values()))


def _kube_proxy_in_nft(family: Family) -> tuple[bool, bool]:
    """Return if kube-proxy has rules for services, and if they keep the mark of a packet."""
    with contextlib.suppress(MasqError):
        netlink = Nfnetlink()
        rules = netlink.rules(family, _NAT, kube_proxy.POSTROUTING_CHAIN)
        return kube_proxy.has_services(netlink, family), kube_proxy.keeps_mark(rules)
    return False, False


def _kube_proxy_in_legacy(family: Family, root: Path) -> tuple[bool, bool]:
    with contextlib.suppress(OSError, ValueError, MasqError):
        if _NAT in legacy_tables(family, root):
            with TableInfo(family).entries(_NAT) as entries:
                targets = entries.targets(kube_proxy.POSTROUTING_CHAIN) or ()
                services = entries.targets(kube_proxy.SERVICES_CHAIN) is not None
                return services, "MASQUERADE" in targets and "MARK" not in targets
    return False, False


def _has_legacy_rules(root: Path, family: Family) -> bool:
    """Return True if legacy tables hold anything: a mere listing makes empty ones, which stay until a reboot."""
    with contextlib.suppress(OSError, ValueError, MasqError):
        return any(map(TableInfo(family).holds_rules, legacy_tables(family, root)))
    return False


def _has_nft_rules(family: Family) -> bool:
    with contextlib.suppress(MasqError):
        netlink = Nfnetlink()
        return any(netlink.rules(family, name) for name in _IPTABLES_TABLES)
    return False
