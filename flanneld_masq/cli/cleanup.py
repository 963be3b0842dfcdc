"""The command `cleanup`: removes the rules, and on request those of flannel."""

from __future__ import annotations

import argparse
import sys

from flanneld_masq.cli.output import print_errors, print_repairs
from flanneld_masq.cli.session import Session
from flanneld_masq.errors import BackendUnavailable, MasqError
from flanneld_masq.model import Change, ChangeKind, Item, Lease, Plan
from flanneld_masq.reconcile.survey import remove_flannel_rules
from flanneld_masq.reconcile.values import Repair
from flanneld_masq.service.desired_state import OnError


def cleanup(options: argparse.Namespace) -> int:
    session = Session.of(options)
    holder = session.directory.holder()
    if holder.runs and options.flannel:
        print(f"the daemon runs (pid {holder.pid}), so its rules stay; only flannel's are removed", file=sys.stderr)
        removed, refused = _remove_flannel_rules(session)
        return print_repairs(removed, refused, options.json, "there was nothing to remove")
    if holder.runs:
        raise MasqError(
            f"the daemon runs (pid {holder.pid}) and would put the rules back; stop it first, for instance with "
            f"`systemctl stop flanneld-masq`"
        )
    results, errors = session.each(lambda reconciler: reconciler.remove_everything())
    failures = errors + [
        error for _, failed in results for error in failed if not isinstance(error, BackendUnavailable)
    ]
    print_errors(failures)
    repairs = [repair for done, _ in results for repair in done]
    flannel, refused = _remove_flannel_rules(session) if options.flannel else ([], [])
    return print_repairs([*repairs, *flannel], failures + refused, options.json, "there was nothing to remove")


def _remove_flannel_rules(session: Session) -> tuple[list[Repair], list[MasqError]]:
    """Remove flannel's rules. Those without a comment are known by the lease alone, so read it if there is one."""
    builder = session.builder(OnError.RAISE)
    leases: tuple[Lease, ...] = ()
    try:
        builder.read_leases()
        leases = builder.required().leases
    except MasqError as error:
        print(f"flanneld-masq: cannot search for rules of old flannel releases: {error}", file=sys.stderr)
    found, errors = session.each(lambda each: (each.family, remove_flannel_rules(each.selector.usable(), leases)))
    repairs = [
        Repair(Plan(family, name, tuple(map(_of_flannel, items))), 0)
        for family, removed in found
        for name, items in removed
    ]
    print_errors(errors)
    return repairs, errors


def _of_flannel(item: Item) -> Change:
    return Change(ChangeKind.FLANNEL, item.place, found=item.text, item=item.kind)
