"""What each command does, from parsed options to an exit status."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flanneld_masq import footprint, plugin_loader
from flanneld_masq.dbus import client
from flanneld_masq.errors import BackendUnavailable, BusError, ConfigError, MasqError
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import config, net_conf, subnet_env
from flanneld_masq.inputs.leases import as_data
from flanneld_masq.model import Change, ChangeKind, Family, Group, Lease, Packet, Plan, Settings, Verdict, family_of
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.reconcile.survey import remove_flannel_rules
from flanneld_masq.reconcile.values import DesiredState, Repair, describe
from flanneld_masq.ruleset import backend_choice, diff, policy
from flanneld_masq.service import journal
from flanneld_masq.state_directory import StateDirectory

DRIFT = 3
Command = Callable[[argparse.Namespace], int]
_COLOURS = {"-": "\033[31m", "+": "\033[32m", "@": "\033[36m"}


@dataclasses.dataclass
class Session:
    """What every command starts from."""

    settings: Settings
    plugins: plugin_loader.Plugins
    store: StateDirectory
    root: Path = Path("/")
    wrong: ConfigError | None = None  # with the configuration file, which is not used then

    @classmethod
    def of(cls, options: argparse.Namespace) -> Session:
        settings = load_settings(options)
        found = plugin_loader.load()
        backend_choice.check_names(settings, found.backends, found.failures)
        return cls(settings, found, StateDirectory(Path(settings.state_directory)))

    @classmethod
    def despite(cls, options: argparse.Namespace) -> Session:
        """For who asks how the daemon is doing: it may run with settings that the file no longer gives."""
        try:
            return cls.of(options)
        except ConfigError as error:
            if options.backend or options.subnet_file:
                raise
            store = StateDirectory(Path(config.state_directory(Path(options.config))))
            return cls(Settings(), plugin_loader.load(), store, wrong=error)

    def desired_state(self) -> DesiredState:
        """What the configuration and the subnet files ask for now. Raises MasqError where that is nothing."""
        networks, failures = self.plugins.non_masquerade_cidrs(self.settings)
        for failure in (*self.plugins.failures, *failures):
            print(f"flanneld-masq: {failure}", file=sys.stderr)
        uses_nftables = net_conf.flannel_uses_nftables(Path(self.settings.net_conf))
        return DesiredState(self.settings, self.leases(), networks, uses_nftables)

    def leases(self) -> tuple[Lease, ...]:
        found = {path: subnet_env.read(Path(path)) for path in self.settings.subnet_files}
        leases = tuple(lease for lease in found.values() if lease is not None)
        if not leases:
            raise MasqError(
                f"there is no subnet file yet ({', '.join(found)}), so there is nothing to do; flannel writes it when "
                f"it starts, and --subnet-file names another"
            )
        return leases

    def reconcilers(self) -> Iterator[Reconciler]:
        host = Host(ProcessRunner(), self.root)
        for family in Family:
            reason = missing_family(self.root, family)
            backends = self.plugins.create(family, host)
            yield Reconciler(family, backends, self.store, missing=lambda reason=reason: reason)  # type: ignore[misc]


def load_settings(options: argparse.Namespace) -> Settings:
    """The configuration file, under what the command line says."""
    return config.with_overrides(config.load(Path(options.config)), options.backend, options.subnet_file or ())


def run(options: argparse.Namespace) -> int:
    """What ends it goes to the journal, where people alert on it; at a terminal the caller prints it."""
    to_journal = journal.set_up(Settings().log_level)
    try:
        _serve(options)
    except Exception as error:  # the top of the daemon
        if not to_journal:
            raise
        journal.failed(error)
        return error.exit_code if isinstance(error, MasqError) else 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    import asyncio
    import faulthandler

    from flanneld_masq.service.daemon import Daemon

    footprint.one_arena()
    daemon = Daemon(lambda: load_settings(options), plugin_loader.load(), config=options.config)
    journal.set_level(daemon.settings.log_level)
    faulthandler.enable()  # when systemd's watchdog ends us, the journal says where each thread was
    asyncio.run(daemon.run())


def plan(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    plans, errors = _each(session, lambda reconciler: reconciler.plan(desired_state))
    changed = [found for each in plans for found in each if found.changes]
    _print_errors(errors)
    if options.json:
        _print_json(
            {
                "in_sync": not changed and not errors,
                "plans": [dataclasses.asdict(found) for found in changed],
                "errors": list(map(str, errors)),
            }
        )
    else:
        _print_plans(changed)
        if not changed and not errors:
            print("in sync: nothing to change")
    return DRIFT if changed else 1 if errors else 0


def apply(options: argparse.Namespace) -> int:
    """By the daemon, if one runs with this configuration and the command line asks for nothing else."""
    session = Session.of(options)
    repairs, errors = (None, []) if options.backend or options.subnet_file else _by_daemon(session.store, options)
    if repairs is None:
        desired_state = session.desired_state()
        outcomes, errors = _each(session, lambda reconciler: reconciler.reconcile(desired_state))
        repairs = [repair for outcome in outcomes for repair in outcome.repairs]
    _print_errors(errors)
    return _report(repairs, errors, options.json, "in sync already")


def _by_daemon(store: StateDirectory, options: argparse.Namespace) -> tuple[list[Repair] | None, list[MasqError]]:
    """None where there is no daemon that can be asked."""
    holder = store.holder()
    if not holder.pid:
        return None, []
    try:
        return client.reconcile({"pid": holder.pid, "config": os.path.realpath(options.config)}), []
    except BusError as error:
        return [], [error]


def cleanup(options: argparse.Namespace) -> int:
    session = Session.of(options)
    holder = session.store.holder()
    if holder.runs:
        raise MasqError(
            f"the daemon runs (pid {holder.pid}) and would put the rules back; stop it first, for instance with "
            f"`systemctl stop flanneld-masq`"
        )
    results, errors = _each(session, lambda reconciler: reconciler.remove_everything())
    failures = errors + [
        error for _, failed in results for error in failed if not isinstance(error, BackendUnavailable)
    ]
    _print_errors(failures)
    repairs = [repair for done, _ in results for repair in done]
    flannel, refused = _remove_flannel_rules(session) if options.flannel else ([], [])
    return _report([*repairs, *flannel], failures + refused, options.json, "nothing was there to remove")


def _remove_flannel_rules(session: Session) -> tuple[list[Repair], list[MasqError]]:
    """Of flannel's rules those without a comment are known by the lease alone, so read it if there is one."""
    try:
        leases = session.leases()
    except MasqError as error:
        print(f"flanneld-masq: rules of old flannel releases are not looked for: {error}", file=sys.stderr)
        leases = ()
    found, errors = _each(session, lambda each: (each.family, remove_flannel_rules(each.selector.usable(), leases)))
    repairs = [
        Repair(Plan(family, name, tuple(Change(ChangeKind.FLANNEL, item.place, found=item.text) for item in items)), 0)
        for family, removed in found
        for name, items in removed
    ]
    _print_errors(errors)
    return repairs, errors


def status(options: argparse.Namespace) -> int:
    session = Session.despite(options)
    found = _said(session, options) or _unsaid(session)
    if session.wrong is not None and not any(each.startswith(str(session.wrong)) for each in found["troubles"]):
        found = {**found, "troubles": [*found["troubles"], str(session.wrong)]}
    if options.json:
        _print_json(found)
    else:
        print("\n".join(_status_lines(found)))
    return session.wrong.exit_code if session.wrong else 0


def _said(session: Session, options: argparse.Namespace) -> dict[str, Any] | None:
    """What the running daemon says of itself, over D-Bus or in its file; None where none runs or says anything."""
    holder = session.store.holder()
    if holder.runs is False and session.wrong is None:
        return None
    written = session.store.status() or {}
    said = client.status({"pid": holder.pid} if holder.pid else {"config": os.path.realpath(options.config)})
    fresh = written.get("state", "stopped") != "stopped" and holder.pid in (0, written.get("pid"))
    return said or (written if holder.runs and fresh else None)


def _unsaid(session: Session) -> dict[str, Any]:
    """With no daemon that says anything, what the kernel holds, and what the last one did."""
    holder, written = session.store.holder(), session.store.status() or {}
    state = "stopped" if holder.runs is False else "unknown"
    kernel = _kernel_status(session, state, written.get("families", {}))
    found = {**written, "pid": holder.pid or None, "state": state, **kernel}
    if holder.runs is False:
        return found
    what = "the daemon says nothing of itself" if holder.runs else "whether the daemon runs cannot be told"
    trouble = f"{what}: {holder.why}; `systemctl status flanneld-masq` may tell, or this command as root"
    return {**found, "troubles": [trouble, *found["troubles"]]}


def monitor(options: argparse.Namespace) -> int:
    """Until it is interrupted."""
    try:
        from flanneld_masq.cli.monitor import follow
    except ImportError as error:
        raise MasqError(f"{error}, which speaks D-Bus; install python3-dbus-next") from error
    follow(lambda line: print(line, flush=True), as_json=options.json, colour=_in_colour())
    return 0


def render(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    rendered = {}
    for reconciler, family in zip(session.reconcilers(), Family):
        if any(lease.of(family) for lease in desired_state.leases):
            rendered[str(family)] = dict(reconciler.render(desired_state))
    if options.json:
        _print_json(rendered)
    else:
        for family_name, texts in rendered.items():
            for name, text in texts.items():
                print(f"# {family_name}, {name}\n{text}", end="" if text.endswith("\n") else "\n")
    return 0


def explain(options: argparse.Namespace) -> int:
    session = Session.of(options)
    if options.src.version != options.dst.version:
        raise ConfigError("command line", "--dst", f"{options.dst} is not of the same family as {options.src}")
    desired_state = session.desired_state()
    packet = Packet(options.src, options.dst, options.mark)
    groups = policy.group_rules(
        desired_state.settings, desired_state.leases, family_of(packet.src), exceptions=desired_state.exceptions
    )
    rules = next((found.rules for found in groups if found.group is Group.MASQUERADE), ())
    rule = policy.decide(rules, packet)
    masqueraded = rule is not None and rule.verdict is Verdict.MASQUERADE
    why = rule.why if rule else _why_no_rule(bool(rules), family_of(packet.src))
    if options.json:
        _print_json(
            {
                "family": str(family_of(packet.src)),
                "masquerade": masqueraded,
                "row": rule.row if rule else None,
                "verdict": rule.verdict.value if rule else None,
                "tag": rule.tag if rule else None,
                "why": why,
            }
        )
        return 0
    mark = f", mark {packet.mark:#x}" if packet.mark else ""
    print(f"{packet.src} -> {packet.dst}{mark}: {'masqueraded' if masqueraded else 'keeps its source address'}")
    print(f"  decided by row {rule.row} ({rule.verdict.value}, {rule.comment})" if rule else "  decided by no rule")
    print(f"  because {why}")
    return 0


def backends(options: argparse.Namespace) -> int:
    session = Session.of(options)
    uses_nftables = net_conf.flannel_uses_nftables(Path(session.settings.net_conf))
    found: dict[str, Any] = {}
    for reconciler in session.reconcilers():
        try:
            chosen, why = reconciler.selector.candidates(session.settings, uses_nftables), ""
        except BackendUnavailable as error:
            chosen, why = {}, str(error)
        found[str(reconciler.family)] = {
            "chosen": chosen[Group.MASQUERADE].backend if chosen else None,
            "why": chosen[Group.MASQUERADE].why if chosen else why,
            "groups": {str(group): dataclasses.asdict(named) for group, named in chosen.items()},
            "backends": [
                {"name": name, "summary": session.plugins.backends[name].summary, **dataclasses.asdict(probe)}
                for name, probe in reconciler.selector.probes().items()
            ],
        }
    failures = [str(failure) for failure in session.plugins.failures]
    if options.json:
        _print_json({"families": found, "plugin_failures": failures})
    else:
        print("\n".join(_backend_lines(found, failures)))
    return 0


def doctor(options: argparse.Namespace) -> int:
    from flanneld_masq.cli import doctor, doctor_facts

    session = Session.despite(options)
    networks, failures = session.plugins.non_masquerade_cidrs(session.settings)
    if session.wrong is None:
        known = doctor_facts.gather(session.settings, networks, session.reconcilers(), session.store, session.root)
    else:
        known = doctor_facts.of_daemon(session.settings, session.store, str(session.wrong), session.root)
    findings = list(doctor.examine(known))
    problems = [found for found in findings if found.severity is doctor.Severity.PROBLEM]
    broken = list(map(str, (*session.plugins.failures, *failures)))
    if options.json:
        _print_json({"findings": [dataclasses.asdict(found) for found in findings], "plugin_failures": broken})
    else:
        lines = [*doctor.text_of(findings, colour=_in_colour()), *broken]
        print("\n".join(lines or ["nothing found that breaks masquerading"]))
    if session.wrong is not None:
        return session.wrong.exit_code
    return 1 if problems or broken else 0


def selftest(options: argparse.Namespace) -> int:
    from flanneld_masq.selftest import runner

    named = (options.backend,) if options.backend else None
    return runner.main(named, tuple(Family), options.json, sys.stdout)


def _kernel_status(session: Session, state: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Each family as the kernel holds it now, with the repairs that a daemon told of `before`."""
    desired_state, troubles = None, []
    try:
        desired_state = session.desired_state() if session.wrong is None else None
    except MasqError as error:
        troubles = [str(error)]
    families: dict[str, Any] = {}
    for reconciler in session.reconcilers():
        name = str(reconciler.family)
        repairs = {key: value for key, value in before.get(name, {}).items() if key in ("repairs", "last_repair")}
        if repairs or desired_state is not None:
            kernel = _in_kernel(reconciler, desired_state) if desired_state is not None else {}
            families[name] = {"state": state, "last_error": "", "groups": {}, **kernel, **repairs}
    leases = [as_data(lease) for lease in desired_state.leases] if desired_state is not None else []
    return {"families": families, "leases": leases, "troubles": troubles}


def _in_kernel(reconciler: Reconciler, desired_state: DesiredState) -> dict[str, Any]:
    """Of one family: which backends, and whether the kernel holds what is wanted."""
    found: dict[str, Any] = {}
    try:
        found["groups"] = {
            str(group): {"backend": chosen.backend, "why": chosen.why}
            for group, chosen in reconciler.selector.choices(desired_state).items()
        }
        changes = [change for plan_of in reconciler.plan(desired_state) for change in plan_of.changes]
        found["kernel"] = describe(tuple(changes)) if changes else "holds what is wanted"
    except MasqError as error:
        found["last_error"] = str(error)
    return found


def _each(session: Session, call: Callable[[Reconciler], Any]) -> tuple[list[Any], list[MasqError]]:
    """Call for each family; an error of one does not keep the other from its turn."""
    results, errors = [], []
    for reconciler in session.reconcilers():
        try:
            results.append(call(reconciler))
        except MasqError as error:
            errors.append(error)
    return results, errors


def _report(repairs: list[Repair], errors: list[MasqError], as_json: bool, nothing: str) -> int:
    if as_json:
        changes = [{**dataclasses.asdict(found.plan), "duration_us": found.duration_us} for found in repairs]
        _print_json({"changed": changes, "errors": list(map(str, errors))})
    else:
        for found in repairs:
            changes_of = describe(found.plan.changes)
            print(f"{found.plan.family} {found.plan.backend}: {found.duration_us / 1000:.1f} ms: {changes_of}")
        if not repairs and not errors:
            print(nothing)
    return 1 if errors else 0


def _print_plans(plans: list[Plan]) -> None:
    colour = _in_colour()
    for found in plans:
        for line in diff.text_of(found):
            start = _COLOURS.get(line[0], "") if colour else ""
            print(f"{start}{line}\033[0m" if start else line)


def _in_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print_errors(errors: list[MasqError]) -> None:
    for error in errors:
        print(f"flanneld-masq: {error}", file=sys.stderr)


def _print_json(content: Any) -> None:
    json.dump(content, sys.stdout, indent=2, default=str)
    print()


def _why_no_rule(rules: bool, family: Family) -> str:
    if not rules:
        return f"there are no masquerade rules for {family}: the group is off, or no subnet file names the family"
    return "none matches: the packet has nothing to do with pods, or goes to a multicast group"


def _status_lines(found: Mapping[str, Any]) -> Iterator[str]:
    pid = f", pid {found['pid']}" if found["pid"] else ""
    yield f"flanneld-masq: {found['state']}{pid}"
    for trouble in found.get("troubles", ()):
        yield f"  trouble: {trouble}"
    for failure in found.get("plugin_failures", ()):
        yield f"  {failure}"
    for lease in found.get("leases", ()):
        named = [f"{family} {lease[str(family)]['subnet']}" for family in Family if str(family) in lease]
        yield f"  lease: {lease['path']}: {', '.join(named)}"
    for name, family in found.get("families", {}).items():
        yield f"{name}: {family['state']}" + (f", {family['last_error']}" if family["last_error"] else "")
        for group, details in family["groups"].items():
            rules = f"{details['rules']} rules in " if "rules" in details else ""
            yield f"  {group}: {rules}{details['backend']} ({details['why']})"
        if "kernel" in family:
            yield f"  kernel: {family['kernel']}"
        if "repairs" in family:
            yield f"  repairs: {family['repairs']}"
        last = family.get("last_repair")
        if last:
            what = "drift repaired" if last["drift"] else "rules applied"
            yield f"  last write: {last['time']}, {what} in {last['duration_us'] / 1000:.1f} ms ({last['reason']})"
            for culprit in last["culprits"] if last["drift"] else ():
                yield f"    changed by {culprit['name']} (pid {culprit['pid']}) {culprit['unit']}".rstrip()


def _backend_lines(families: Mapping[str, Any], failures: list[str]) -> Iterator[str]:
    for name, found in families.items():
        yield f"{name}: {found['chosen'] or 'none can be used'} ({found['why']})"
        for backend in found["backends"]:
            sign = "*" if backend["name"] == found["chosen"] else " "
            details = ", ".join(backend["versions"]) if backend["usable"] else backend["reason"]
            yield f" {sign} {backend['name']:<16} {'usable  ' if backend['usable'] else 'unusable'}  {details}"
            if not backend["usable"] and backend["remedy"]:
                yield f"   {'':<16} {'':<8}  -> {backend['remedy']}"
    yield from failures
