"""The command `status`: asks the daemon, or reads what it left behind and what the kernel holds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace

from flanneld_masq.cli.comparison import compared
from flanneld_masq.cli.output import in_colour, in_state_colour, print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.status_lines import status_lines
from flanneld_masq.controller import authors
from flanneld_masq.controller.status import FamilyStatus, GroupStatus, MarkStatus, State, Status, from_json, to_json
from flanneld_masq.dbus import client
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Family
from flanneld_masq.printable import one_line
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.reconcile.wording import describe
from flanneld_masq.ruleset import policy
from flanneld_masq.state_directory import StateDirectory

NOT_RUNNING = 2  # the exit status of --check; 1 is that of a daemon that is not healthy


def status(options: argparse.Namespace) -> int:
    """Print the status, once or with --watch until Ctrl-C. Return its health with --check, else 0 or the exit status of
    an invalid configuration."""
    session = Session.despite(options)
    if options.watch:
        from flanneld_masq.cli.watch import watch

        return watch(session, options)
    known = compared(session, lambda: reported(session, options)) or _unreported(session)
    if session.wrong is not None and not any(trouble.startswith(str(session.wrong)) for trouble in known.troubles):
        known = replace(known, troubles=(*known.troubles, str(session.wrong)))
    if options.json:
        print_json(to_json(known))
    else:
        print(status_text(session, known))
    if options.check:
        return health(known)
    return session.wrong.exit_code if session.wrong else 0


def status_text(session: Session, known: Status) -> str:
    """Return the lines for people, for root with the command lines of those who made repairs necessary."""
    lines = map(one_line, status_lines(authors.restored(known, session.directory.authors()), commands=True))
    return "\n".join(map(in_state_colour, lines) if in_colour() else lines)


def health(known: Status) -> int:
    """Return 0 for a daemon in sync or waiting for a first subnet file, 2 for none that is known to run, else 1.

    A daemon that reports synced while the kernel holds other rules is not healthy.
    """
    if known.state in (State.STOPPED, State.UNKNOWN):
        return NOT_RUNNING
    if any(family.kernel for family in known.families.values()):
        return 1
    return 0 if known.state is State.SYNCED or known.waits else 1


def written_status(directory: StateDirectory) -> Status | None:
    """Return the status that a daemon wrote last; None for none that can be read."""
    try:
        return from_json(directory.status())
    except ValueError:
        return None


def reported(session: Session, options: argparse.Namespace) -> Status | None:
    """Return what the running daemon reports, over D-Bus or in its file; None if none runs or reports anything.

    A daemon that keeps another state directory until its restart answers over D-Bus.
    """
    holder = session.directory.holder()
    config = os.path.realpath(options.config)
    asked = client.status(client.Instance(pid=holder.pid) if holder.pid else client.Instance(config=config))
    written = written_status(session.directory)
    fresh = written is not None and written.state is not State.STOPPED and holder.pid in (0, written.pid)
    return asked or (written if holder.runs and fresh else None)


def last_known(session: Session) -> Status:
    """Return the status that the last daemon left, with all of it stopped, or unknown if that cannot be found out."""
    holder, written = session.directory.holder(), written_status(session.directory)
    state = State.STOPPED if holder.runs is False else State.UNKNOWN
    before = written or Status(state)
    families = {name: replace(family, state=state) for name, family in before.families.items()}
    return replace(before, state=state, pid=holder.pid or None, families=families)


def _unreported(session: Session) -> Status:
    """Return what the kernel holds, and what the last daemon did."""
    holder = session.directory.holder()
    found = _kernel_status(session, last_known(session))
    if holder.runs is False:
        return replace(found, troubles=(*map(str, session.unreadable()), *found.troubles))
    what = "the daemon reports no status" if holder.runs else "it is not known whether the daemon runs"
    trouble = f"{what}: {holder.why}; run `systemctl status flanneld-masq`, or this command as root"
    return replace(found, troubles=(trouble, *found.troubles))


def _kernel_status(session: Session, before: Status) -> Status:
    """Return the status with each family as the kernel holds it now, and the repairs that a daemon reported before."""
    desired: DesiredState | None = None
    troubles: tuple[str, ...] = ()
    try:
        desired = session.desired_state() if session.wrong is None else None
    except MasqError as error:
        troubles = (str(error),)
    return replace(
        before,
        leases=desired.leases if desired is not None else (),
        troubles=troubles,
        families=_kernel_families(session, desired, before),
    )


def _kernel_families(session: Session, desired: DesiredState | None, before: Status) -> Mapping[Family, FamilyStatus]:
    families: dict[Family, FamilyStatus] = {}
    for reconciler in session.reconcilers():
        last = before.families.get(reconciler.family)
        if last is None and desired is None:
            continue
        family = FamilyStatus(before.state, repairs=None, healed_flows=None)
        if desired is not None:
            family = _in_kernel(reconciler, desired, family)
        if last is not None:
            past = {
                name: getattr(last, name)
                for name in ("repairs", "healed_flows", "last_repair", "last_write", "verified")
            }
            family = replace(family, **past)
        families[reconciler.family] = family
    return families


def _in_kernel(reconciler: Reconciler, desired: DesiredState, family: FamilyStatus) -> FamilyStatus:
    """Add the backends of the groups, and whether the kernel holds what is wanted."""
    try:
        choices = reconciler.selector.choices(desired)
        family = replace(family, groups={group: GroupStatus.of(chosen) for group, chosen in choices.items()})
        mark = reconciler.selector.kube_proxy_mark(desired.settings) if choices else None
        if mark is not None and policy.masquerades(desired.settings.masquerade, reconciler.family):
            family = replace(family, kube_proxy_mark=MarkStatus(str(mark.mark or ""), mark.why))
        used = (choice.backend for chosen in choices.values() for choice in chosen)
        family = replace(family, protection=reconciler.selector.protection(desired.settings, used))
        changes = [change for plan in reconciler.plan(desired) for change in plan.changes]
    except MasqError as error:
        return replace(family, last_error=str(error))
    return replace(family, kernel=describe(changes, past=False) if changes else "holds what is wanted")
