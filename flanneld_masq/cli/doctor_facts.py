"""Reads the facts of a node that `doctor` examines. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Optional

from flanneld_masq_iptables.sockopt import TableInfo

from flanneld_masq.cli.comparison import differs
from flanneld_masq.cli.doctor import Facts, FamilyFacts
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.status import written_status
from flanneld_masq.errors import MasqError
from flanneld_masq.inputs.text import read_start
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import BackendName, Family, Survey
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import flannel_effects, survey_backends
from flanneld_masq.reconcile.values import DesiredState, Effects
from flanneld_masq.service.desired_state import DesiredStateBuilder

_IPTABLES_TABLES = ("nat", "filter")


def gather(session: Session, builder: DesiredStateBuilder) -> Facts:
    """Return all facts. A fact that cannot be found out is a trouble of its family, or left out."""
    net_conf = builder.refresh().net_conf
    desired = builder.current()
    leases = builder.leases.good
    families = () if desired is None else tuple(_families(session, desired))
    return replace(
        of_daemon(session), leases=leases, troubles=builder.leases.troubles, net_conf=net_conf, families=families
    )


def of_daemon(session: Session) -> Facts:
    """Return the facts that do not depend on the configuration, which may be wrong."""
    holder = session.directory.holder()
    status = written_status(session.directory) if holder.runs else None
    wrong = str(session.wrong or "")
    return Facts(
        session.settings,
        holder=holder,
        status=status,
        conntrack=_conntrack(session.root),
        wrong=wrong,
        unreadable=() if holder.runs else session.unreadable(),
    )


def _families(session: Session, desired: DesiredState) -> Iterator[FamilyFacts]:
    """Yield the families that a lease names, and those that have rules although none does."""
    for reconciler in session.reconcilers():
        if any(lease.of(reconciler.family) for lease in desired.leases):
            yield _family(reconciler, desired, session.root)
        elif different := differs(reconciler, desired):
            yield FamilyFacts(reconciler.family, differs=different)


def _family(reconciler: Reconciler, desired_state: DesiredState, root: Path) -> FamilyFacts:
    family = reconciler.family
    forwarding = _number(root / "proc/sys" / family.data.forwarding)
    unusable = different = ""
    surveys: dict[BackendName, Survey] = {}
    effects: Effects = {}
    try:
        reconciler.selector.choices(desired_state)
    except MasqError as error:
        unusable = str(error)
    else:
        different = differs(reconciler, desired_state)
        try:
            surveyed = survey_backends(reconciler.selector.usable(), desired_state.leases)
            surveys = {backend.name: survey for backend, survey in surveyed}
            effects = flannel_effects(surveyed, desired_state)
        except MasqError as error:
            different = different or f"cannot be told: {error}"
    return FamilyFacts(
        family,
        None if forwarding is None else forwarding > 0,
        unusable,
        different,
        reconciler.selector.drops(),
        reconciler.selector.unhelped,
        surveys,
        effects,
        _has_legacy_rules(root, family) and _has_nft_rules(family),
    )


def _has_legacy_rules(root: Path, family: Family) -> bool:
    """Return True if legacy tables hold anything: a mere listing makes empty ones, which stay until a reboot."""
    with contextlib.suppress(OSError, ValueError, MasqError):
        tables = read_start(root / family.data.legacy_names, 4096).decode("ascii").split()
        return any(map(TableInfo(family).holds_rules, tables))
    return False


def _has_nft_rules(family: Family) -> bool:
    with contextlib.suppress(MasqError):
        netlink = Nfnetlink()
        return any(netlink.rules(family, name) for name in _IPTABLES_TABLES)
    return False


def _conntrack(root: Path) -> Optional[tuple[int, int]]:
    count, most = (_number(root / "proc/sys/net/netfilter" / f"nf_conntrack_{name}") for name in ("count", "max"))
    return None if count is None or not most else (count, most)


def _number(path: Path) -> Optional[int]:
    try:
        return int(read_start(path, 64))
    except (OSError, ValueError):
        return None
