"""The command `apply`: one pass, by the daemon if one runs."""

from __future__ import annotations

import argparse
import os

from flanneld_masq.cli.output import print_errors, print_repairs
from flanneld_masq.cli.session import Session, warn
from flanneld_masq.errors import BusError, MasqError
from flanneld_masq.reconcile.healing import heal
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import DesiredState, Outcome, Repair
from flanneld_masq.reconcile.wording import describe_healed
from flanneld_masq.state_directory import StateDirectory


def apply(options: argparse.Namespace) -> int:
    """Ask the daemon, if one runs with this configuration. Refuse what it would undo at once."""
    session = Session.of(options)
    overridden = options.backend or options.subnet_file
    if overridden:
        _insist_on_no_daemon(session.directory, options.config)
    repairs, errors = (None, []) if overridden else _by_daemon(session.directory, options)
    if repairs is None:
        desired_state = session.desired_state()
        outcomes, errors = session.each(lambda reconciler: _reconcile(reconciler, desired_state))
        repairs = [repair for outcome in outcomes for repair in outcome.repairs]
    print_errors(errors)
    return print_repairs(repairs, errors, options.json, "in sync already")


def _reconcile(reconciler: Reconciler, desired_state: DesiredState) -> Outcome:
    """Run one pass; after a write heal the connections that began before it."""
    outcome = reconciler.reconcile(desired_state)
    if outcome.repairs and desired_state.settings.conntrack_heal:
        try:
            healed = heal(reconciler.family, desired_state)
        except MasqError as error:
            warn(f"{reconciler.family}: connections that began without masquerade are not healed: {error}")
        else:
            warn(f"{reconciler.family}: {describe_healed(healed)}" if healed.flows else "")
    return outcome


def _insist_on_no_daemon(directory: StateDirectory, config: str) -> None:
    holder = directory.holder()
    if holder.runs:
        raise MasqError(
            f"nothing was changed: the daemon runs (pid {holder.pid}) and would undo --backend and --subnet-file at "
            f"once; set them in {config} and `systemctl reload flanneld-masq`, or stop the daemon first"
        )


def _by_daemon(directory: StateDirectory, options: argparse.Namespace) -> tuple[list[Repair] | None, list[MasqError]]:
    """Return None if there is no daemon that can be asked."""
    holder = directory.holder()
    if not holder.pid:
        return None, []
    from flanneld_masq.dbus import client  # only now, for without a daemon nothing else needs it

    try:
        return client.reconcile(client.Instance(holder.pid, os.path.realpath(options.config))), []
    except BusError as error:
        return [], [error]
