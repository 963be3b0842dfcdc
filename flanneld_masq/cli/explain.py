"""The command `explain`: which rule decides a packet, and why; by the policy, and on the node as it is."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from flanneld_masq.cli import command_options
from flanneld_masq.cli.output import print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.errors import ConfigError, MasqError
from flanneld_masq.inputs import config_values
from flanneld_masq.model import (
    DEFAULT_KUBE_PROXY_MARK,
    SLOTS,
    BackendName,
    Family,
    Group,
    Mark,
    Packet,
    Rule,
    Verdict,
    family_of,
)
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import survey_backends
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.ruleset import flannel_effect, policy
from flanneld_masq.ruleset.flannel_effect import FlannelRule
from flanneld_masq.ruleset.mark_choice import MarkChoice

if TYPE_CHECKING:
    from flanneld_masq.cli.explain_node import Followed


@dataclasses.dataclass(frozen=True, **SLOTS)
class Flannel:
    """Flannel's part in a packet: the `rule` that masquerades it, of a `backend`; None if none does.

    `unread` says why flannel's rules are not known; empty if they are, or if flannel has none.
    """

    rule: FlannelRule | None = None
    backend: BackendName | None = None
    unread: str = ""


@dataclasses.dataclass(frozen=True, **SLOTS)
class Explanation:
    """The decision of the policy on a packet, and what flannel's rules make of it.

    `rule` is None if no rule of the policy matches; `mark` is kube-proxy's.
    """

    packet: Packet
    rule: Rule | None
    why: str
    mark: MarkChoice
    flannel: Flannel

    @property
    def by_policy(self) -> bool:
        return self.rule is not None and self.rule.verdict is Verdict.MASQUERADE

    @property
    def masqueraded(self) -> bool:
        return self.by_policy or self.flannel.rule is not None


def explain(options: argparse.Namespace) -> int:
    session = Session.of(options)
    command_options.check_flow(options)
    desired_state = session.desired_state()
    packet = Packet(options.src, options.dst, options.mark)
    family = family_of(packet.src)
    reconciler = next(one for one in session.reconcilers() if one.family is family)
    mark, flannel = (
        _mark(session, reconciler, desired_state),
        _flannel(session, reconciler.family, desired_state, packet),
    )
    explanation = _explain(desired_state, packet, mark, flannel)
    followed, unread = (None, "") if options.ours else _follow(options, session)
    if options.html:
        _draw(options.html, followed, unread)
    if options.json:
        node = {} if options.ours else {"node": followed.as_data() if followed else None, "node_unread": unread or None}
        print_json({**_data(explanation), **node})
    else:
        _print(explanation, followed, unread)
    return 0


def _follow(options: argparse.Namespace, session: Session) -> tuple[Followed | None, str]:
    """Follow the packet through the node's rules; None and the reason if they cannot be read."""
    from flanneld_masq.cli import explain_node

    if os.geteuid():
        return None, f"this is user {os.geteuid()}, not root"
    try:
        return explain_node.follow(options, session.root), ""
    except ConfigError:
        raise
    except MasqError as error:
        return None, str(error)


def _draw(file: str, followed: Followed | None, unread: str) -> None:
    from flanneld_masq.cli import explain_page

    if followed is None:
        raise MasqError(f"--html shows the rules of this node, and they are not known: {unread or '--ours was given'}")
    explain_page.write(file, followed.node, followed.result)


def _mark(session: Session, reconciler: Reconciler, desired_state: DesiredState) -> MarkChoice:
    """Return kube-proxy's mark as its rules say now; if they cannot be read, as the daemon read it last."""
    choice = reconciler.selector.kube_proxy_mark(desired_state.settings)
    if not choice.unread:
        return choice
    from flanneld_masq.cli.status import written_status  # `status` needs more than all of this

    status = written_status(session.directory)
    family = status.families.get(reconciler.family) if status is not None else None
    if family is None or family.kube_proxy_mark is None:
        return choice
    try:
        mark = config_values.mark(family.kube_proxy_mark.mark)
    except config_values.Refused:
        return choice
    return MarkChoice(mark, f"{family.kube_proxy_mark.why}, read by the daemon") if isinstance(mark, Mark) else choice


def _flannel(session: Session, family: Family, desired_state: DesiredState, packet: Packet) -> Flannel:
    """Look for a rule of flannel that masquerades the packet, in every backend that can be read."""
    unread = ""
    host = session.host()
    for backend in session.plugins.create(family, host).values():
        try:
            ((_, survey),) = survey_backends([backend], desired_state.leases)
        except MasqError as error:
            unread = str(error)
            continue
        rules, unknown = flannel_effect.parsed(survey.flannel_nat)
        rule = flannel_effect.decide(rules, packet) if packet.mark == 0 else None
        if rule is not None and rule.verdict is Verdict.MASQUERADE:
            return Flannel(rule, backend.name)
        unread = f"it cannot be evaluated: {unknown[0]}" if unknown else unread
    return Flannel(unread=unread if any(lease.ipmasq for lease in desired_state.leases) else "")


def _explain(desired_state: DesiredState, packet: Packet, mark: MarkChoice, flannel: Flannel) -> Explanation:
    groups = policy.group_rules(
        desired_state.settings,
        desired_state.leases,
        family_of(packet.src),
        exceptions=desired_state.exceptions,
        auto_mark=mark.mark or DEFAULT_KUBE_PROXY_MARK,
    )
    rules = policy.rules_of(groups, Group.MASQUERADE)
    rule = policy.decide(rules, packet)
    why = rule.why if rule else policy.why_undecided(desired_state.settings, desired_state.leases, packet)
    return Explanation(packet, rule, why, mark, flannel)


def _data(explanation: Explanation) -> dict[str, object]:
    rule, mark = explanation.rule, explanation.mark
    return {
        "family": str(family_of(explanation.packet.src)),
        "masquerade": explanation.masqueraded,
        "row": rule.row if rule else None,
        "verdict": rule.verdict.value if rule else None,
        "tag": rule.tag if rule else None,
        "why": explanation.why,
        "flannel": str(explanation.flannel.rule) if explanation.flannel.rule else None,
        "kube_proxy_mark": {"mark": str(mark.mark or ""), "why": mark.why},
    }


def _print(explanation: Explanation, followed: Followed | None, unread: str) -> None:
    packet = explanation.packet
    marked = f", mark {packet.mark:#x}" if packet.mark else ""
    ends = f"{packet.src} -> {packet.dst}{marked}"
    if followed is not None:
        print(f"{ends}{followed.description}: {followed.fate}")
        for line in followed.lines(explanation.by_policy):
            print(f"  {line}")
    else:
        fate = "masqueraded" if explanation.masqueraded else "keeps its source address"
        print(f"{ends}: {fate}")
    if unread:
        print(f"  by the policy alone, for the rules of this node are not known: {unread}")
    _print_policy(explanation)


def _print_policy(explanation: Explanation) -> None:
    packet, rule, mark = explanation.packet, explanation.rule, explanation.mark
    flannel = explanation.flannel
    if flannel.rule is not None and not explanation.by_policy:
        print(f"  decided by flannel, which masquerades too: {flannel.rule}, in {flannel.backend}")
        print("  although flanneld-masq would keep its source address:")
    print(f"  decided by row {rule.row} ({rule.verdict.value}, {rule.comment})" if rule else "  decided by no rule")
    print(f"  because {explanation.why}")
    if flannel.unread:
        print(f"  flannel masquerades too, and its rules are not known: {flannel.unread}")
    if packet.mark:
        print(f"  kube-proxy's mark: {mark.mark or 'none'} ({mark.why})")
