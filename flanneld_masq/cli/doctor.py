"""Examines the facts of a node for what breaks masquerading; each finding says what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from flanneld_masq.service.service_user import Unreadable
from flanneld_masq.controller.status import State, Status
from flanneld_masq.model import SLOTS, BackendName, Family, Holder, Lease, Settings, Survey
from flanneld_masq.printable import one_line
from flanneld_masq.ruleset.flannel_effect import Effect

CONNTRACK_NEARLY_FULL = 0.9
_NOBODY = Holder(False, 0, "")


class Severity(str, Enum):
    """A problem breaks the traffic of pods, or will; a notice is worth knowing."""

    PROBLEM = "problem"
    NOTICE = "notice"


_COLOURS = {Severity.PROBLEM: "\033[31m", Severity.NOTICE: "\033[33m"}


@dataclass(frozen=True, **SLOTS)
class Finding:
    """What is wrong, how that is known, and what to do about it."""

    severity: Severity
    what: str
    evidence: str
    remedy: str
    family: str = ""


@dataclass(frozen=True, **SLOTS)
class FamilyFacts:
    """The facts of one family that a lease names, or that has rules although no lease names it.

    `unusable` says why no backend can be used, `differs` what the kernel holds otherwise than wanted,
    `drops` what drops forwarded packets, by backend, `unhelped` what does where no accept can be put; all are
    empty for nothing of the kind. `forwarding` is None where
    the kernel does not say. `both_flavours` is whether iptables-nft and iptables-legacy both hold rules.
    """

    family: Family
    forwarding: Optional[bool] = None
    unusable: str = ""
    differs: str = ""
    drops: Mapping[BackendName, str] = field(default_factory=dict)
    unhelped: tuple[str, ...] = ()
    surveys: Mapping[BackendName, Survey] = field(default_factory=dict)
    effects: Mapping[BackendName, Effect] = field(default_factory=dict)
    both_flavours: bool = False


@dataclass(frozen=True, **SLOTS)
class Facts:
    """What was found out of a node. `troubles` say why subnet files give no lease; `status` is what the daemon
    says of itself, `holder` whether it runs; `conntrack` counts the connections, and how many there may be. `wrong`
    says what is wrong with the configuration file, without which nothing is known of what depends on it; `net_conf`
    what is wrong with flannel's. `unreadable` are the input files that the user of the service may not read; a daemon
    that runs reports that itself."""

    settings: Settings
    leases: tuple[Lease, ...] = ()
    troubles: tuple[str, ...] = ()
    net_conf: str = ""
    holder: Holder = _NOBODY
    status: Optional[Status] = None
    families: tuple[FamilyFacts, ...] = ()
    conntrack: Optional[tuple[int, int]] = None
    wrong: str = ""
    unreadable: tuple[Unreadable, ...] = ()


def examine(facts: Facts) -> Iterator[Finding]:
    """All findings, those of the whole node first."""
    yield from _configuration(facts)
    yield from _subnet_files(facts)
    yield from _net_conf(facts)
    yield from _daemon(facts)
    yield from _conntrack(facts)
    for found in facts.families:
        for check in (_forwarding, _backends, _cni_masquerade, _flannel_rules, _flavours):
            yield from check(found)
        yield from _dropped(facts, found)
        yield from _rules(facts, found)


def text_of(findings: Iterable[Finding], *, colour: bool = False) -> Iterator[str]:
    """Lines for people."""
    for found in findings:
        start, end = (_COLOURS[found.severity], "\033[0m") if colour else ("", "")
        yield f"{start}{found.severity.value}:{end} {found.family + ': ' if found.family else ''}{one_line(found.what)}"
        yield f"  seen:   {one_line(found.evidence)}"
        yield f"  remedy: {one_line(found.remedy)}"


def _configuration(facts: Facts) -> Iterator[Finding]:
    if facts.wrong:
        what = "the configuration is wrong: a daemon that runs keeps the one before, and none starts with it"
        remedy = "mend it, then `systemctl reload-or-restart flanneld-masq`, and ask again for what depends on it"
        yield Finding(Severity.PROBLEM, what, facts.wrong, remedy)


def _subnet_files(facts: Facts) -> Iterator[Finding]:
    for trouble in facts.troubles:
        remedy = "look at flannel's log: it writes the file when it starts; `subnet_files` names another"
        yield Finding(Severity.PROBLEM, "no subnet is known for this node's pods", trouble, remedy)
    effects = [effect for found in facts.families for effect in found.effects.values()]
    for lease in facts.leases:
        if lease.ipmasq:
            what = "flanneld was started with --ip-masq and masquerades too"
            if not effects:
                what = "flanneld was started with --ip-masq, but none of its masquerade rules is there"
            remedy = "to leave it to flanneld-masq alone, start flanneld with --ip-masq=false"
            if not any(effect.conflicts or effect.unread for effect in effects):
                remedy = f"none is needed; {remedy}"
            yield Finding(Severity.NOTICE, what, f"{lease.path} says FLANNEL_IPMASQ=true", remedy)


def _net_conf(facts: Facts) -> Iterator[Finding]:
    if facts.net_conf:
        what = "flannel's net-conf.json cannot be used, and flannel may refuse it too"
        remedy = "correct it where it comes from, usually the ConfigMap kube-flannel-cfg; `net_conf` names another file"
        yield Finding(Severity.PROBLEM, what, facts.net_conf, remedy)


def _daemon(facts: Facts) -> Iterator[Finding]:
    if facts.holder.runs is None:
        what, remedy = "whether the daemon runs cannot be told", "run this as root, or systemctl status flanneld-masq"
        yield Finding(Severity.NOTICE, what, facts.holder.why, remedy)
    elif not facts.holder.runs:
        what, remedy = "the daemon does not run, so nobody repairs the rules", "systemctl enable --now flanneld-masq"
        yield Finding(Severity.PROBLEM, what, facts.holder.why, remedy)
    for file in facts.unreadable:
        yield Finding(Severity.PROBLEM, "the service may not read a file that it needs", str(file), file.remedy)
    if facts.status is not None:
        yield from _reported(facts, facts.status)


def _reported(facts: Facts, status: Status) -> Iterator[Finding]:
    """Yield what the running daemon reports. It may meet troubles that this command, as another user, does not."""
    for trouble in status.troubles:
        if trouble not in (*facts.troubles, facts.net_conf) and not (facts.wrong and trouble.startswith(facts.wrong)):
            severity = Severity.NOTICE if status.state is State.SYNCED else Severity.PROBLEM
            remedy = "`journalctl -u flanneld-masq -x` explains it; the daemon tries again by itself, at each resync"
            yield Finding(severity, "the daemon reports a trouble", trouble, remedy)
    for name, family in status.families.items():
        if family.flannel.takeover_stopped:
            what = "flannel's rules are not removed, as takeover.remove_flannel_rules asks for"
            remedy = "start flanneld with the options that the daemon names, then `systemctl reload flanneld-masq`"
            yield Finding(Severity.PROBLEM, what, family.flannel.takeover_stopped, remedy, str(name))
        if family.state in (State.DEGRADED, State.CONTENDED):
            remedy = "journalctl -u flanneld-masq -x says who or what, and what to do"
            evidence = family.last_error or "the daemon says so"
            asked_for = status.names(name) or not status.leases
            severity = Severity.PROBLEM if asked_for else Severity.NOTICE
            yield Finding(severity, f"the daemon is {family.state}", evidence, remedy, str(name))


def _conntrack(facts: Facts) -> Iterator[Finding]:
    if facts.conntrack and facts.conntrack[0] >= facts.conntrack[1] * CONNTRACK_NEARLY_FULL:
        evidence = "{} of {} connections (nf_conntrack_count, nf_conntrack_max)".format(*facts.conntrack)
        remedy = "sysctl net.netfilter.nf_conntrack_max, or find what opens so many: `conntrack -S`"
        what = "connection tracking is nearly full, and new connections will be dropped"
        yield Finding(Severity.PROBLEM, what, evidence, remedy)


def _forwarding(found: FamilyFacts) -> Iterator[Finding]:
    if found.forwarding is False:
        key = found.family.data.forwarding.replace("/", ".")
        yield _problem(found, "the kernel forwards no packets", f"{key} = 0", f"sysctl -w {key}=1")


def _backends(found: FamilyFacts) -> Iterator[Finding]:
    if found.unusable:
        yield _problem(found, "no backend can be used", found.unusable, "`flanneld-masq backends` lists each remedy")


def _cni_masquerade(found: FamilyFacts) -> Iterator[Finding]:
    where = [survey.cni_masquerade for survey in found.surveys.values() if survey.cni_masquerade]
    if where:
        what = "the CNI bridge plugin masquerades too, and so hides the addresses of pods from each other"
        remedy = 'set "ipMasq": false in the delegate of the flannel CNI configuration, then make the pods anew'
        yield _problem(found, what, ", ".join(where), remedy)


def _flannel_rules(found: FamilyFacts) -> Iterator[Finding]:
    for backend, survey in found.surveys.items():
        effect = found.effects.get(backend, Effect())
        for conflict in effect.conflicts:
            remedy = (
                "start flanneld with --ip-masq=false, then run `flanneld-masq cleanup --flannel`; the flannel of k3s "
                "always masquerades"
            )
            yield _problem(found, conflict.what, f"{backend}: {conflict.rule}", remedy)
        if survey.flannel:
            rest = "".join(f"; {summary}" for summary in effect.summaries() if not effect.conflicts)
            what = f"flannel's own rules are there, {len(survey.flannel)} objects{rest}"
            remedy = "if flanneld runs with --ip-masq=false now, `flanneld-masq cleanup --flannel` removes them"
            evidence = f"{backend}: {survey.flannel[0].text}"
            yield Finding(Severity.NOTICE, what, evidence, remedy, str(found.family))


def _flavours(found: FamilyFacts) -> Iterator[Finding]:
    if found.both_flavours:
        what = "programs use both iptables-legacy and iptables-nft, and neither sees the rules of the other"
        remedy = "have all use one (update-alternatives --config iptables), then reboot or flush the other"
        evidence = "both hold rules: iptables-legacy-save and iptables-nft-save"
        yield Finding(Severity.NOTICE, what, evidence, remedy, str(found.family))


def _dropped(facts: Facts, found: FamilyFacts) -> Iterator[Finding]:
    if found.drops and not facts.settings.forward.enabled:
        remedy = "set forward.enabled = true, or accept the pods' traffic there yourself"
        yield _problem(found, "forwarded packets are dropped", "; ".join(found.drops.values()), remedy)
    for drop in found.unhelped:
        remedy = (
            "do what is said there, then `systemctl reload flanneld-masq`; or accept the pods' traffic there yourself"
        )
        yield _problem(found, "FORWARD drops pods' packets, and nothing here can accept them", drop, remedy)


def _rules(facts: Facts, found: FamilyFacts) -> Iterator[Finding]:
    if found.differs:
        remedy = "systemctl reload flanneld-masq" if facts.holder.runs else "flanneld-masq apply"
        yield _problem(found, "the kernel does not hold the rules that are wanted", found.differs, remedy)


def _problem(found: FamilyFacts, what: str, evidence: str, remedy: str) -> Finding:
    return Finding(Severity.PROBLEM, what, evidence, remedy, str(found.family))
