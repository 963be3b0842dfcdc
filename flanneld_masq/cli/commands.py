"""Each command, from parsed options to an exit status; `status` has a module of its own."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

from flanneld_masq import footprint, plugin_loader
from flanneld_masq.cli.output import (
    backend_lines,
    in_colour,
    print_errors,
    print_json,
    print_plans,
    print_repairs,
    protection_text,
)
from flanneld_masq.cli.session import Session, load_settings, warn
from flanneld_masq.controller.status import GroupStatus, group_json
from flanneld_masq.dbus import client
from flanneld_masq.errors import BackendUnavailable, BusError, MasqError
from flanneld_masq.hangup import HANGUP
from flanneld_masq.model import (
    DEFAULT_KUBE_PROXY_MARK,
    Change,
    ChangeKind,
    Family,
    Group,
    Item,
    Lease,
    Plan,
    Probe,
    Protection,
    Settings,
)
from flanneld_masq.reconcile.healing import heal
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import remove_flannel_rules
from flanneld_masq.reconcile.values import Choices, DesiredState, Outcome, Repair
from flanneld_masq.reconcile.wording import describe_healed
from flanneld_masq.ruleset import policy
from flanneld_masq.service import journal
from flanneld_masq.service.desired_state import OnError, read_net_conf
from flanneld_masq.state_directory import StateDirectory

DRIFT = 3
Command = Callable[[argparse.Namespace], int]


def run(options: argparse.Namespace) -> int:
    """Run the daemon. An error that ends it goes to the journal, where people alert on it, or else to the caller."""
    to_journal = journal.set_up(Settings().log_level)
    try:
        _serve(options)
    except Exception as error:  # the top of the daemon
        if not to_journal:
            raise
        journal.failed(error)
        return error.exit_code if isinstance(error, MasqError) else 1
    finally:
        HANGUP.ignore()
    return 0


def _serve(options: argparse.Namespace) -> None:
    footprint.load_asyncio()
    import asyncio
    import faulthandler

    from flanneld_masq.service.daemon import Daemon

    footprint.one_arena()
    HANGUP.hold()
    daemon = Daemon(lambda: load_settings(options), plugin_loader.load(), config=options.config)
    journal.set_level(daemon.settings.log_level)
    faulthandler.enable()  # when systemd's watchdog ends us, the journal says where each thread was
    asyncio.run(daemon.run())


def plan(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    plans, errors = session.each(lambda reconciler: reconciler.plan(desired_state))
    changed = [found for each in plans for found in each if found.changes]
    print_errors(errors)
    if options.json:
        print_json(
            {
                "in_sync": not changed and not errors,
                "plans": [dataclasses.asdict(found) for found in changed],
                "errors": list(map(str, errors)),
            }
        )
    else:
        print_plans(changed)
        if not changed and not errors:
            print("in sync: nothing to change")
    return DRIFT if changed else 1 if errors else 0


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
    try:
        return client.reconcile(client.Instance(holder.pid, os.path.realpath(options.config))), []
    except BusError as error:
        return [], [error]


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


def monitor(options: argparse.Namespace) -> int:
    """Follow the daemon until Ctrl-C."""
    footprint.load_asyncio()
    try:
        from flanneld_masq.cli.monitor import follow
    except ImportError as error:
        raise MasqError(f"{error}, which speaks D-Bus; install python3-dbus-next") from error
    follow(lambda line: print(line, flush=True), as_json=options.json, colour=in_colour())
    return 0


def render(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    rendered = {}
    note = _mark_note(session.settings)
    for reconciler, family in zip(session.reconcilers(), Family):
        if any(lease.of(family) for lease in desired_state.leases):
            rendered[str(family)] = {
                name: f"{note}{text}" if text else "" for name, text in reconciler.render(desired_state)
            }
    if options.json:
        print_json(rendered)
    else:
        for family_name, texts in rendered.items():
            for name, text in texts.items():
                print(f"# {family_name}, {name}\n{text}", end="" if text.endswith("\n") else "\n")
    return 0


def _mark_note(settings: Settings) -> str:
    """Return a line that says which mark a ruleset has that is made without a kernel; empty if the settings do."""
    if not settings.masquerade.enabled or settings.masquerade.kube_proxy_mark != "auto":
        return ""
    return f'# kube_proxy_mark = "auto": {DEFAULT_KUBE_PROXY_MARK} here, because kube-proxy\'s rules are not read\n'


def backends(options: argparse.Namespace) -> int:
    session = Session.of(options)
    uses_nftables, trouble = read_net_conf(session.settings)
    warn(trouble)
    families = {
        str(reconciler.family): _backends_of(session, reconciler, uses_nftables) for reconciler in session.reconcilers()
    }
    failures = [str(failure) for failure in session.plugins.failures]
    if options.json:
        print_json({"families": families, "plugin_failures": failures})
    else:
        print("\n".join(backend_lines(families, failures)))
    return 0


def _backends_of(session: Session, reconciler: Reconciler, uses_nftables: bool) -> dict[str, Any]:
    selector = reconciler.selector
    choices: Choices = {}
    why = ""
    try:
        choices = selector.candidates(session.settings, uses_nftables)
    except BackendUnavailable as error:
        why = str(error)
    masquerade = choices.get(Group.MASQUERADE)
    return {
        "chosen": masquerade[0].backend if masquerade else None,
        "why": masquerade[0].why if masquerade else why,
        "groups": {str(group): group_json(GroupStatus.of(chosen)) for group, chosen in choices.items()},
        "backends": [
            {
                "name": name,
                "summary": session.plugins.backends[name].summary,
                **dataclasses.asdict(probe),
                "protects": _protects(session.settings, probe),
            }
            for name, probe in selector.probes().items()
        ],
    }


def _protects(settings: Settings, probe: Probe) -> str:
    """Return whether the tables of a backend are protected with these settings; empty for one without a table."""
    if probe.protection is None:
        return ""
    protection = policy.protection(settings, probe.protection)
    if protection is not Protection.NONE or settings.nft_protect is False:
        return f"table {protection_text(protection)}"
    offered = "not at all" if probe.protection is Protection.NONE else "only while the daemon runs"
    return f"table {protection_text(protection)}, for this kernel can do that {offered}"


def doctor(options: argparse.Namespace) -> int:
    from flanneld_masq.cli import doctor as command

    return command.doctor(options)


def report(options: argparse.Namespace) -> int:
    from flanneld_masq.cli import report as command

    return command.report(options)


def selftest(options: argparse.Namespace) -> int:
    from flanneld_masq.selftest import runner

    named = (options.backend,) if options.backend else None
    return runner.main(named, tuple(Family), options.json, sys.stdout)
