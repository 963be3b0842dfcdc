"""Finds out of a node what `doctor` examines. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Optional

from flanneld_masq.cli.doctor import Facts, FamilyFacts
from flanneld_masq.errors import MasqError
from flanneld_masq.inputs import net_conf
from flanneld_masq.inputs.leases import Leases
from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import Family, Network, Settings
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import survey_backends
from flanneld_masq.reconcile.values import DesiredState, describe
from flanneld_masq.state_directory import StateDirectory

_IPTABLES_TABLES = ("nat", "filter")


def gather(
    settings: Settings,
    exceptions: tuple[Network, ...],
    reconcilers: Iterable[Reconciler],
    store: StateDirectory,
    root: Path = Path("/"),
) -> Facts:
    """What cannot be found out is told as trouble of its family, or left out."""
    leases = Leases(settings.subnet_files)
    leases.refresh()
    desired_state = DesiredState(settings, leases.good, exceptions, _flannel_uses_nftables(settings))
    named = [each for each in reconcilers if any(lease.of(each.family) for lease in leases.good)]
    return replace(
        of_daemon(settings, store, "", root),
        leases=leases.good,
        troubles=leases.troubles,
        families=tuple(_family(each, desired_state, root) for each in named),
    )


def of_daemon(settings: Settings, store: StateDirectory, wrong: str, root: Path) -> Facts:
    """What does not depend on the configuration, which may be wrong."""
    holder = store.holder()
    status = (store.status() or {}) if holder.runs else {}
    return Facts(settings, holder=holder, status=status, conntrack=_conntrack(root), wrong=wrong)


def _family(reconciler: Reconciler, desired_state: DesiredState, root: Path) -> FamilyFacts:
    family = reconciler.family
    forwarding = _number(root / "proc/sys" / family.data.forwarding)
    unusable = differs = ""
    surveys = {}
    try:
        reconciler.selector.choices(desired_state)
    except MasqError as error:
        unusable = str(error)
    else:
        try:
            changes = [change for plan in reconciler.plan(desired_state) for change in plan.changes]
            differs = describe(tuple(changes))
            surveyed = survey_backends(reconciler.selector.usable(), desired_state.leases)
            surveys = {backend.name: survey for backend, survey in surveyed}
        except MasqError as error:
            differs = f"that cannot be told: {error}"
    return FamilyFacts(
        family,
        None if forwarding is None else forwarding > 0,
        unusable,
        differs,
        reconciler.selector.drops(),
        surveys,
        _has_legacy_tables(root, family) and _has_nft_tables(family),
    )


def _has_legacy_tables(root: Path, family: Family) -> bool:
    with contextlib.suppress(OSError):
        return bool((root / family.data.legacy_names).read_text().split())
    return False


def _has_nft_tables(family: Family) -> bool:
    with contextlib.suppress(MasqError):
        return any(Nfnetlink().table(family, name) for name in _IPTABLES_TABLES)
    return False


def _conntrack(root: Path) -> Optional[tuple[int, int]]:
    count, most = (_number(root / "proc/sys/net/netfilter" / f"nf_conntrack_{name}") for name in ("count", "max"))
    return None if count is None or not most else (count, most)


def _number(path: Path) -> Optional[int]:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _flannel_uses_nftables(settings: Settings) -> bool:
    try:
        return net_conf.flannel_uses_nftables(Path(settings.net_conf))
    except MasqError:
        return False  # the daemon takes it so as well, and says it
