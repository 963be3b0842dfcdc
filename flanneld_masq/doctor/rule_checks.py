"""Examines the rules of the daemon, of flannel, of the CNI plugins and of kube-proxy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts, FamilyFacts
from flanneld_masq.doctor.findings import Finding, Kind
from flanneld_masq.model import DEFAULT_KUBE_PROXY_MARK, Family, Mark
from flanneld_masq.packet_path.flows import Fault
from flanneld_masq.ruleset import policy
from flanneld_masq.ruleset.flannel_effect import Effect

_SERVICE = "systemctl reload flanneld-masq"
_JOURNAL = "apply the remedy in the message, or see `flanneld-masq plan` and `flanneld-masq backends`"


def unread(facts: Facts) -> Iterator[Finding]:
    if facts.unread.rules:
        yield finding(Kind.RULES_UNREADABLE, facts.unread.rules, remedy="run this as root: `sudo flanneld-masq doctor`")


def not_followed(facts: Facts) -> Iterator[Finding]:
    for table in facts.packets.losing:
        yield finding(Kind.RULES_NOT_FOLLOWED, f"table {table}", table=table)


def _backends(_: Facts, family: FamilyFacts) -> Iterator[Finding]:
    if family.unusable:
        yield finding(Kind.BACKEND_UNUSABLE, family.unusable, family.family)


def _cni_masquerade(_: Facts, family: FamilyFacts) -> Iterator[Finding]:
    where = [survey.cni_masquerade for survey in family.surveys.values() if survey.cni_masquerade]
    if where:
        yield finding(Kind.CNI_MASQUERADES, ", ".join(where), family.family)


def _flannel_rules(_: Facts, family: FamilyFacts) -> Iterator[Finding]:
    for backend, survey in family.surveys.items():
        effect = family.effects.get(backend, Effect())
        for conflict in effect.conflicts:
            seen = f"{backend}: {conflict.rule}"
            yield finding(Kind.FLANNEL_OVERRULES, seen, family.family, conflict=conflict.what)
        if survey.flannel:
            rest = "".join(f"; {summary}" for summary in effect.summaries() if not effect.conflicts)
            seen = f"{backend}: {survey.flannel[0].text}"
            yield finding(Kind.FLANNEL_RULES, seen, family.family, count=len(survey.flannel), rest=rest)


def _flavours(_: Facts, family: FamilyFacts) -> Iterator[Finding]:
    if family.both_flavours:
        places = "".join(f"; kube-proxy's are in {place}" for place in family.kube_proxy.places)
        seen = f"both hold rules: iptables-legacy-save and iptables-nft-save{places}"
        yield finding(Kind.IPTABLES_FLAVOURS_MIXED, seen, family.family)


def _dropped(facts: Facts, family: FamilyFacts) -> Iterator[Finding]:
    if family.drops and not facts.settings.forward.enabled:
        seen = "; ".join(family.drops.values())
        yield finding(Kind.FORWARD_DROPS, seen, family.family, owner=_dropper(facts, family.family))
    for drop in family.unhelped:
        yield finding(Kind.FORWARD_DROPS_UNHELPED, drop, family.family)


def _dropper(facts: Facts, family: Family) -> str:
    """Return the program that drops packets of pods in a chain FORWARD, empty if it is not known."""
    lost = (one for one in facts.packets.flows if one.family is family and one.fault is Fault.LOST)
    causes = (cause for one in lost for cause in one.causes[:1] if cause.step.place.chain == "FORWARD")
    return next((cause.owner for cause in causes), "")


def _rules(facts: Facts, family: FamilyFacts) -> Iterator[Finding]:
    if family.unread:
        yield finding(Kind.RULES_UNREADABLE, family.unread, family.family, remedy=_JOURNAL)
    if family.differs:
        runs = facts.daemon.holder.runs or facts.daemon.status is not None
        remedy = _SERVICE if runs else "flanneld-masq apply"
        yield finding(Kind.RULES_DIFFER, family.differs, family.family, remedy=remedy)
    if family.left:
        yield finding(Kind.RULES_WITHOUT_SUBNET, family.left, family.family)


def _kube_proxy(facts: Facts, family: FamilyFacts) -> Iterator[Finding]:
    read, masquerade = family.kube_proxy.mark, facts.settings.masquerade
    wanted = masquerade.kube_proxy_mark
    if read is not None and policy.masquerades(masquerade, family.family):
        seen = f"{read.where} says {read.mark}"
        if isinstance(wanted, Mark) and wanted != read.mark:
            seen = f"{seen}, the setting {wanted}"
            yield finding(Kind.KUBE_PROXY_MARK_DIFFERS, seen, family.family, mark=read.mark)
        if wanted == "auto" and read.mark != DEFAULT_KUBE_PROXY_MARK:
            yield finding(Kind.KUBE_PROXY_MARK_UNUSUAL, seen, family.family, mark=read.mark)
    if read is not None and family.kube_proxy.keeps_mark:
        seen = "chain KUBE-POSTROUTING of table nat masquerades, and no rule of it clears the mark"
        yield finding(Kind.KUBE_PROXY_KEEPS_MARK, seen, family.family, mark=read.mark)


OF_A_FAMILY: tuple[Callable[[Facts, FamilyFacts], Iterator[Finding]], ...] = (
    _backends,
    _cni_masquerade,
    _flannel_rules,
    _flavours,
    _kube_proxy,
    _dropped,
    _rules,
)
