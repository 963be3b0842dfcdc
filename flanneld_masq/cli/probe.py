"""The command `probe`: packets of a throwaway pod through the node's own rules."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing

from flanneld_masq.cli.live_output import header_text, packet_json, packet_lines, verdict_text
from flanneld_masq.cli.output import print_errors, print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.trace import ended_by_sigterm, insist_on_root
from flanneld_masq.errors import MasqError
from flanneld_masq.live.probe import Class, Outcome, Result
from flanneld_masq.live.probe import probe as send
from flanneld_masq.live.throwaway import Throwaway
from flanneld_masq.model import DEFAULT_KUBE_PROXY_MARK, Family, FamilyLease, Group, Packet, Verdict
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.ruleset import policy
from flanneld_masq.selftest.topology import families

CANNOT_TELL = 2


def probe(options: argparse.Namespace) -> int:
    """Return 0 if every packet arrived as wanted, 1 if one did not, 2 if that cannot be told."""
    results: list[Result] = []
    errors: list[MasqError] = []
    with ended_by_sigterm():
        try:
            insist_on_root("probe", "it makes network namespaces and attaches one to the bridge of this node")
            desired_state = Session.of(options).desired_state()
        except MasqError as error:
            errors.append(error)
        else:
            _probe_families(desired_state, options, results, errors)
    print_errors(errors)
    if options.json:
        print_json({"results": list(map(_result_json, results)), "errors": list(map(str, errors))})
    else:
        for result in results:
            print("\n".join(_lines(result)))
    return exit_status(results, errors, asked=bool(options.dst))


def exit_status(results: list[Result], errors: list[MasqError], *, asked: bool) -> int:
    """A class that cannot be probed on this node counts only if it was `asked` for by name."""
    outcomes = [result.outcome for result in results]
    if Outcome.NOT_AS_WANTED in outcomes:
        return 1
    told = Outcome.AS_WANTED in outcomes
    return CANNOT_TELL if errors or not told or (asked and Outcome.UNKNOWN in outcomes) else 0


def _probe_families(
    desired_state: DesiredState, options: argparse.Namespace, results: list[Result], errors: list[MasqError]
) -> None:
    run = ProcessRunner()
    classes = tuple(dict.fromkeys(map(Class, options.dst))) if options.dst else tuple(Class)
    for family, lease in _leases(desired_state):
        try:
            with closing(Throwaway(lease, run)) as throwaway:
                results += send(throwaway, family, classes, wanted_by(desired_state, family), run)
        except MasqError as error:
            errors.append(MasqError(f"{family}: {error}"))


def _leases(desired_state: DesiredState) -> Iterator[tuple[Family, FamilyLease]]:
    for family in families():
        for lease in desired_state.leases:
            if (found := lease.of(family)) is not None:
                yield family, found


def wanted_by(desired_state: DesiredState, family: Family) -> Callable[[Packet], bool]:
    """Return a function that says whether the policy masquerades a packet."""
    groups = policy.group_rules(
        desired_state.settings,
        desired_state.leases,
        family,
        exceptions=desired_state.exceptions,
        auto_mark=DEFAULT_KUBE_PROXY_MARK,
    )
    rules = policy.rules_of(groups, Group.MASQUERADE)

    def masqueraded(packet: Packet) -> bool:
        rule = policy.decide(rules, packet)
        return rule is not None and rule.verdict is Verdict.MASQUERADE

    return masqueraded


def _lines(result: Result) -> Iterator[str]:
    if result.packet is None:
        yield f"{result.family}: {result}: {result.outcome.value}: {result.failure}"
        return
    yield f"{result.family}: {result}, {result.packet.src} -> {result.packet.dst}: {_what(result)}"
    if result.outcome is Outcome.AS_WANTED:
        return
    if (traced := result.deciding) is not None:
        yield f"  {header_text(traced.begin)}"
        yield from packet_lines(traced)
    elif not result.trace.blind:
        yield "  no packet of it reached this node's network stack"
    yield from (f"  cannot tell: {blind}" for blind in result.trace.blind)


def _what(result: Result) -> str:
    wanted = "the node's address" if result.masquerade else "its own address"
    if result.arrived is not None:
        return f"{result.outcome.value}: arrived from {result.arrived} (wanted: {wanted})"
    if result.outcome is Outcome.REFUSED:
        return "no connection; the node's firewall may intend that"
    return f"{result.outcome.value}: {result.failure}"


def _result_json(result: Result) -> dict[str, object]:
    traced = result.deciding
    return {
        "class": result.kind.value,
        "family": str(result.family),
        "outcome": result.outcome.value.replace(" ", "-"),
        "src": str(result.packet.src) if result.packet else None,
        "dst": str(result.packet.dst) if result.packet else None,
        "masquerade_wanted": result.masquerade,
        "arrived_from": str(result.arrived) if result.arrived else None,
        "failure": result.failure or None,
        "verdict": verdict_text(traced) if traced else None,
        "packet": packet_json(traced) if traced else None,
        "cannot_tell": list(result.trace.blind),
    }
