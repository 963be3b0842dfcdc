"""Compares what a running daemon reports with what `plan` would say, so that no two commands contradict each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from flanneld_masq.cli.session import Session
from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.reconcile.wording import describe
from flanneld_masq.service.desired_state import OnError

REPAIR_SECONDS = 1.0  # a difference that is older is not being repaired


def compared(session: Session, ask: Callable[[], Status | None]) -> Status | None:
    """Return what the daemon reports, with what the kernel holds otherwise for longer than a repair takes.

    `ask` returns what the daemon reports. Only root can read the kernel; for any other user, that is the answer.
    """
    known = ask()
    deadline = time.monotonic() + REPAIR_SECONDS
    while known is not None and known.state is State.SYNCED and session.wrong is None and os.geteuid() == 0:
        differing = _differing(session, known)
        if not differing:
            break
        if time.monotonic() >= deadline:
            return replace(known, families={**known.families, **differing})
        time.sleep(REPAIR_SECONDS / 10)
        known = ask()
    return known


def differs(reconciler: Reconciler, desired: DesiredState) -> str:
    """Return what the kernel holds otherwise than is wanted, as `plan` finds it; empty for nothing."""
    try:
        changes = [change for plan in reconciler.plan(desired) for change in plan.changes]
    except MasqError as error:
        return f"cannot be compared: {error}"
    return describe(changes, past=False) if changes else ""


def _differing(session: Session, known: Status) -> dict[Family, FamilyStatus]:
    builder = session.builder(OnError.KEEP)
    builder.ask_plugins()
    builder.refresh()
    desired = builder.current()
    families: dict[Family, FamilyStatus] = {}
    for reconciler in () if desired is None else session.reconcilers():
        if desired is not None and (kernel := differs(reconciler, desired)):
            family = known.families.get(reconciler.family, FamilyStatus(known.state, repairs=None))
            families[reconciler.family] = replace(family, kernel=f"{kernel}; see `flanneld-masq plan`")
    return families
