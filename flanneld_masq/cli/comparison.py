"""Compares what a running daemon reports with what `plan` would say, so that no two commands contradict each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from flanneld_masq.cli.session import Session
from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family, Settings
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
    if known is not None and known.state is State.WAITING and not known.leases and os.geteuid() == 0:
        return replace(known, troubles=(*known.troubles, *_left(session)))
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
        return difference(reconciler, desired)
    except MasqError as error:
        return f"cannot be compared: {error}"


def difference(reconciler: Reconciler, desired: DesiredState) -> str:
    """Return the same. Raise MasqError if it cannot be compared."""
    changes = [change for plan in reconciler.plan(desired) for change in plan.changes]
    return describe(changes, past=False) if changes else ""


def left_behind(reconciler: Reconciler, settings: Settings) -> str:
    """Return the daemon's rules that are in force without a lease; empty for none, or if they cannot be read."""
    try:
        changes = [change for plan in reconciler.plan(DesiredState(settings)) for change in plan.changes]
    except MasqError:
        return ""
    return f"in force: {describe(changes, past=False)}" if changes else ""


def _left(session: Session) -> Iterator[str]:
    for reconciler in session.reconcilers():
        if left := left_behind(reconciler, session.settings):
            yield f"{reconciler.family}: rules of an earlier subnet file are {left}; see `flanneld-masq doctor`"


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
