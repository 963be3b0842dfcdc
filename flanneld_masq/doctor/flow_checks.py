"""Examines what becomes of the packets that pods need: one finding for each rule that decides otherwise. Pure.

Only what is certain counts, and only flows that no healthy node does without. A rule that decides by more than pods (an
address, a port) is intended. What another finding already explains is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.doctor import flow_remedies
from flanneld_masq.doctor.catalog import finding
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding, Kind, listed
from flanneld_masq.doctor.flow_remedies import NO_RULE, Remedy, Traffic
from flanneld_masq.doctor.interfaces import of_family
from flanneld_masq.model import SLOTS, Address, Family, FamilyLease
from flanneld_masq.packet_path.flows import KUBE_PROXY, Cause, Fault, FlowResult, Judgement
from flanneld_masq.packet_path.packet import ICMPV6, Packet
from flanneld_masq.packet_path.rules import Hook
from flanneld_masq.packet_path.state import Effect, Step

POLICY_PROGRAMS = frozenset({"kube-router", "calico", "cilium", "antrea", "weave", "ovn-kubernetes", "istio"})
_SHOWN = 3  # flows that a finding names
_WRONG_LEASE = {Kind.CONFIGURATION_INVALID, Kind.SUBNET_FILE_OF_ANOTHER_NODE, Kind.SUBNET_FILES_OVERLAP}
_RULES_MISSING = {Kind.RULES_DIFFER, Kind.RULES_UNREADABLE, Kind.BACKEND_UNUSABLE}
_FORWARD_DROPS = _RULES_MISSING | {Kind.FORWARD_DROPS, Kind.FORWARD_DROPS_UNHELPED}
_ASTRAY = {
    Kind.BRIDGE_ADDRESS_DIFFERS,
    Kind.DEFAULT_ROUTE_ON_POD_INTERFACE,
    Kind.GATEWAY_ADDRESS_TWICE,
    Kind.POD_INTERFACE_DOWN,
    Kind.POD_NETWORK_ON_NODE,
    Kind.POD_ROUTE_ELSEWHERE,
    Kind.POD_ROUTE_MISSING,
}
_BRIDGED = {Kind.BRIDGE_NETFILTER_MISSING, Kind.BRIDGE_NETFILTER_OFF}
_OTHER_MASQUERADE = {"flannel": Kind.FLANNEL_OVERRULES, "cni-plugins": Kind.CNI_MASQUERADES}
_BEFORE_NAT = (Hook.INGRESS, Hook.PREROUTING)
_BOTH_WAYS = (Hook.FORWARD, Hook.POSTROUTING)  # packets and answers to them pass, the latter to the pod's own address
_KINDS = {
    Fault.LOST: Kind.FLOW_DROPPED,
    Fault.MISROUTED: Kind.FLOW_MISROUTED,
    Fault.REDIRECTED: Kind.FLOW_REDIRECTED,
    Fault.UNANSWERED: Kind.FLOW_REDIRECTED,
    Fault.MASQUERADED: Kind.FLOW_MASQUERADED,
    Fault.NOT_MASQUERADED: Kind.FLOW_NOT_MASQUERADED,
    Fault.NO_ADDRESS: Kind.UPLINK_WITHOUT_ADDRESS,
}


@dataclass(frozen=True, **SLOTS)
class _Decision:
    """A rule or a reason that makes flows of one family go wrong in one way."""

    family: Family
    kind: Kind
    cause: Optional[Cause]
    flows: tuple[FlowResult, ...]

    @property
    def step(self) -> Optional[Step]:
        return self.cause.step if self.cause is not None else None

    @property
    def owner(self) -> str:
        return self.cause.owner if self.cause is not None else ""


def flows(facts: Facts, found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield a finding for each rule that loses or changes packets of pods, unless another one of `found` says so."""
    if {one.kind for one in found} & _WRONG_LEASE:
        return
    if facts.unread.packet_path:
        yield finding(Kind.FLOWS_UNKNOWN, facts.unread.packet_path)
    for decision in _decisions(facts.packets.flows):
        if not _is_known(decision, [one for one in found if one.family in ("", str(decision.family))]):
            yield _finding(decision, of_family(facts.leases, decision.family))


def _decisions(results: Sequence[FlowResult]) -> Iterator[_Decision]:
    grouped: dict[object, list[FlowResult]] = {}
    for result in results:
        if result.judgement is Judgement.WRONG and result.flow.essential and not result.narrow and result.fault:
            cause = result.causes[0] if result.causes else None
            reason = cause.step.place if cause is not None else result.why
            grouped.setdefault((result.family, _kind(result.fault, cause), reason), []).append(result)
    for group in grouped.values():
        first = group[0]
        cause = first.causes[0] if first.causes else None
        if first.fault is not None:
            yield _Decision(first.family, _kind(first.fault, cause), cause, tuple(group))


def _kind(fault: Fault, cause: Optional[Cause]) -> Kind:
    kind = _KINDS[fault]
    if kind is Kind.FLOW_DROPPED:
        if cause is None or cause.step.place.table in NO_RULE:
            return Kind.FLOW_MISROUTED
        if cause.owner in POLICY_PROGRAMS:
            return Kind.FLOW_DENIED_BY_POLICY
    return kind


# ---- what other findings say


def _is_known(decision: _Decision, found: Sequence[Finding]) -> bool:
    kinds = {one.kind for one in found}
    if decision.kind is Kind.FLOW_MISROUTED:
        return _is_setting_named(decision, found) or bool(kinds & (_ASTRAY | _BRIDGED))
    if decision.kind is Kind.FLOW_NOT_MASQUERADED:
        return bool(kinds & _RULES_MISSING)
    if decision.kind is Kind.FLOW_MASQUERADED:
        return _OTHER_MASQUERADE.get(decision.owner) in kinds
    place = decision.step.place if decision.step is not None else None
    in_forward = place is not None and place.chain == "FORWARD" and place.table.endswith(" filter")
    return decision.kind is Kind.FLOW_DROPPED and in_forward and bool(kinds & _FORWARD_DROPS)


def _is_setting_named(decision: _Decision, found: Sequence[Finding]) -> bool:
    """Return True if a finding names the setting of the kernel that drops the packets."""
    if decision.step is None or decision.step.place.table != "sysctl":
        return False
    key = decision.step.place.text.partition(" = ")[0]
    return any(key in text.replace("/", ".") for one in found for text in (one.seen, one.remedy))


# ---- texts


def _finding(decision: _Decision, leases: tuple[FamilyLease, ...]) -> Finding:
    step, owner = decision.step, decision.owner
    packet = _packet(decision.flows[0])
    advice = _remedy(decision, leases)
    return finding(
        decision.kind,
        _seen(decision),
        decision.family,
        owner=owner or ("" if step is None or step.place.table in NO_RULE else "unknown"),
        by=f": {owner}" if owner else "",
        verb="rejects" if step is not None and step.effect is Effect.REJECTED else "drops",
        src=packet.src if packet else "SOURCE",
        dst=packet.dst if packet else "DESTINATION",
        device=_device(decision),
        remedy=advice.command,
        persist=advice.persist,
    )


def _packet(result: FlowResult) -> Optional[Packet]:
    return result.result.packet if result.result is not None else None


def _seen(decision: _Decision) -> str:
    return f"{listed([_flow_text(one) for one in decision.flows], _SHOWN)}: {_what(decision)}"


def _flow_text(one: FlowResult) -> str:
    packet = _packet(one)
    ends = f" ({packet.src} -> {packet.dst})" if packet is not None else ""
    return f"{'answers of ' if one.answer else ''}{one.flow.value}{ends}"


def _what(decision: _Decision) -> str:
    step = decision.step
    if step is None or step.place.table in NO_RULE:
        return decision.flows[0].why
    why = "" if decision.kind in (Kind.FLOW_DROPPED, Kind.FLOW_DENIED_BY_POLICY) else f"{decision.flows[0].why}; "
    place = step.place
    handle = f", handle {place.handle}" if place.handle and place.number else ""
    which = str(place) if place.number else f"the policy of {place.chain} in {place.table}"
    return f"{why}{step.effect.value} at {step.hook.value} by {which}{handle}{_reason(step)}{_mark(decision)}"


def _reason(step: Step) -> str:
    return f"; {step.detail}" if step.effect is Effect.DROPPED and step.detail else ""


def _mark(decision: _Decision) -> str:
    """Return which rule gave the packets the mark by which kube-proxy masquerades them."""
    cause = _remediable(decision)
    marks = cause is not None and cause is not decision.cause
    return f"; marked at {cause.step.hook.value} by {cause.step.place}" if cause is not None and marks else ""


# ---- remedies


def _remedy(decision: _Decision, leases: tuple[FamilyLease, ...]) -> Remedy:
    cause = _remediable(decision)
    if cause is None:
        return Remedy(
            "`flanneld-masq plan` says which of its own rules are missing, `flanneld-masq status` which group is off"
        )
    if decision.kind is Kind.FLOW_NOT_MASQUERADED and cause.step.effect in _OWN_REMEDIES:
        return _OWN_REMEDIES[cause.step.effect]
    traffic = [found for one in decision.flows for found in _traffic(one, decision.kind, leases)]
    answers = _answers(decision, leases)
    return flow_remedies.remedy(cause.step, cause.owner, decision.family, traffic, _device(decision), answers)


def _remediable(decision: _Decision) -> Optional[Cause]:
    """Return the rule that packets must pass: if it is kube-proxy's, which it makes again, the one that marks them."""
    causes = decision.flows[0].causes if decision.owner == KUBE_PROXY else ()
    marks = (one for one in causes if one.step.effect is Effect.MARKED and one.owner != KUBE_PROXY)
    return next(marks, decision.cause)


_OWN_REMEDIES: Mapping[Effect, Remedy] = {
    Effect.ACCEPTED: Remedy(
        'set masquerade.position = "first", then `systemctl reload flanneld-masq`; or remove the rule where it is made'
    ),
    Effect.MARKED: Remedy(
        "give the packets another mark than kube-proxy's where the rule is made, or kube-proxy another one "
        "(--iptables-masquerade-bit)"
    ),
}


def _device(decision: _Decision) -> str:
    """Return the device by which packets left that were delivered otherwise than wanted."""
    results = [one.result for one in decision.flows if one.result is not None]
    return next((outcome.device for result in results for outcome in result.outcomes), "")


def _traffic(one: FlowResult, kind: Kind, leases: tuple[FamilyLease, ...]) -> Iterator[Traffic]:
    """Yield the packets that must pass: as wide as the pod network, as narrow as the rest allows."""
    packet = _packet(one)
    if packet is None:
        return
    networks = [str(network) for lease in leases for network in lease.networks]
    if packet.proto == ICMPV6:
        yield from (Traffic(network, icmpv6=True) for network in networks)
        return
    step = one.causes[0].step if one.causes else None
    tracked = step is None or (step.tracked and step.hook is not Hook.EGRESS)  # a chain of a device has no state
    src, dst = _ends(one, packet, step)
    to_pods = _is_within(dst, leases)
    if one.answer and step is not None and step.hook in _BEFORE_NAT and not to_pods:
        # Such answers still have the address that the pod was masqueraded with.
        yield Traffic("", str(dst), answers=tracked)
        networks = networks if tracked else []
    masqueraded = src != packet.src and not one.answer and bool(packet.iif)
    if masqueraded and not to_pods:
        yield Traffic(str(src))
        return
    from_pods = _is_within(src, leases)
    for network in networks:
        if masqueraded:
            yield Traffic(str(src), network)
        elif from_pods:
            # An exception from NAT must not hold for the world.
            yield Traffic(network, network if kind is Kind.FLOW_MASQUERADED and to_pods else "")
        elif one.answer or not packet.iif:
            yield Traffic("", network, answers=one.answer and tracked)
        else:
            yield Traffic(str(src), network)


def _answers(decision: _Decision, leases: tuple[FamilyLease, ...]) -> Iterator[Traffic]:
    """Yield the answers of the world, which drops of everything lose as soon as the pods' own packets pass."""
    step = decision.step
    if step is None or step.hook not in _BOTH_WAYS or not flow_remedies.drops_all(step):
        return
    packets = [packet for one in decision.flows if not one.answer and (packet := _packet(one)) is not None]
    if any(_is_within(packet.src, leases) and not _is_within(packet.dst, leases) for packet in packets):
        yield from (Traffic("", str(network), answers=True) for lease in leases for network in lease.networks)


def _ends(one: FlowResult, packet: Packet, step: Optional[Step]) -> tuple[Address, Address]:
    """Return source and destination of a packet as the rule that drops it sees them, behind NAT for example."""
    outcomes = one.result.outcomes if one.result is not None else ()
    lost = (outcome for outcome in outcomes if not outcome.delivered and outcome.steps[-1:] == (step,))
    return next(((outcome.src.address, outcome.dst.address) for outcome in lost), (packet.src, packet.dst))


def _is_within(address: Address, leases: Collection[FamilyLease]) -> bool:
    return any(address in network for lease in leases for network in lease.networks)
