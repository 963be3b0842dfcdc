"""Evaluates the flows that pods need, in both directions, and says of each if it is as wanted. Pure over a snapshot.

A flow that this node cannot have, for example to pods of other nodes where there are none, is skipped with the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Optional

from flanneld_masq.model import (
    DEFAULT_KUBE_PROXY_MARK,
    SLOTS,
    Address,
    Family,
    FamilyLease,
    Group,
    Lease,
    Mark,
    Network,
    Settings,
)
from flanneld_masq.model import Packet as PolicyPacket
from flanneld_masq.model import Verdict as PolicyVerdict
from flanneld_masq.packet_path.evaluate import Node, Outcome, Result
from flanneld_masq.packet_path.flow_cases import OTHER_PORT, Case, Cases, Flow, pod_of
from flanneld_masq.packet_path.packet import Connection, CtState, Packet
from flanneld_masq.packet_path.routing import BRIDGE_KEYS, Routing
from flanneld_masq.packet_path.rules import DESTINATION_NAT, Hook
from flanneld_masq.packet_path.state import Effect, Step
from flanneld_masq.ruleset import policy

KUBE_PROXY = "kube-proxy"  # masquerades packets with its mark, from any program
_SERVICES = (Flow.POD_TO_SERVICE, Flow.POD_TO_API_SERVER)


class Judgement(str, enum.Enum):
    AS_WANTED = "as wanted"
    WRONG = "wrong"
    MAY = "may be wrong"
    SKIPPED = "skipped"


class Fault(str, enum.Enum):
    """How a flow is not as wanted."""

    LOST = "lost"
    MISROUTED = "sent to another device"
    REDIRECTED = "sent to another address"
    UNANSWERED = "an answer that is none"
    MASQUERADED = "with another source"
    NOT_MASQUERADED = "without a source of the node"
    NO_ADDRESS = "with a source inside the pods' networks"


class Source(str, enum.Enum):
    """The source address that must arrive."""

    KEPT = "its own"
    NODE = "an address of the node"
    ANY = "any"


@dataclass(frozen=True, **SLOTS)
class Cause:
    """A rule, route or sysctl that keeps a flow from what is wanted, and the program that owns it, empty if unknown."""

    step: Step
    owner: str


@dataclass(frozen=True, **SLOTS)
class FlowResult:
    """A flow, what is wanted of it, and what becomes of it. `answer` is True for the direction of the answers.

    `why` is the fault, or the reason why the flow was skipped. A skipped flow has no result. `fault` is what is wrong
    with it, or may be. `narrow` is True for a packet that is lost or redirected while those of another pod, or to
    another address or port, are not: the rule decides by more than pods.
    """

    family: Family
    flow: Flow
    answer: bool
    wanted: Source
    judgement: Judgement
    why: str = ""
    causes: tuple[Cause, ...] = ()
    result: Optional[Result] = None
    fault: Optional[Fault] = None
    narrow: bool = False


def flows(
    node: Node,
    lease: Lease,
    settings: Settings,
    *,
    exceptions: tuple[Network, ...] = (),
    mark: Mark = DEFAULT_KUBE_PROXY_MARK,
) -> tuple[FlowResult, ...]:
    """Evaluate every flow of each family of a lease.

    `exceptions` are the destinations that plugins exempt, `mark` is what `kube_proxy_mark = "auto"` stands for; both as
    in `policy.group_rules`. Raises SnapshotError if routes or addresses cannot be read.
    """
    leases = {family: found for family in Family if (found := lease.of(family)) is not None}
    pods = {family: pod_of(one, node.routing[family]) for family, one in leases.items()}
    # Both families share the pods' bridge, also one whose address is lost, so that no route leads to its pods.
    bridge = next((device for family, (_, device) in pods.items() if node.routing[family].is_bridge(device)), "")
    results: list[FlowResult] = []
    for family, family_lease in leases.items():
        wanted = _Wanted(settings, lease, family, exceptions, mark)
        address, device = pods[family]
        cases = Cases(node, family, family_lease, address, device or bridge)
        results += _Flows(node, family, family_lease, wanted, cases).results()
    return tuple(results)


class _Wanted:
    """The source address that the policy wants of a packet."""

    def __init__(
        self, settings: Settings, lease: Lease, family: Family, exceptions: tuple[Network, ...], mark: Mark
    ) -> None:
        groups = policy.group_rules(settings, (lease,), family, exceptions=exceptions, auto_mark=mark)
        self._rules = next((group.rules for group in groups if group.group is Group.MASQUERADE), None)

    def of(self, packet: Packet) -> Source:
        if self._rules is None:
            return Source.ANY
        rule = policy.decide(self._rules, PolicyPacket(packet.src, packet.dst))
        if rule is None:
            return Source.ANY
        return Source.NODE if rule.verdict is PolicyVerdict.MASQUERADE else Source.KEPT


class _Flows:
    """The flows of one family, judged."""

    def __init__(self, node: Node, family: Family, lease: FamilyLease, wanted: _Wanted, cases: Cases) -> None:
        self._node = node
        self._family = family
        self._lease = lease
        self._wanted = wanted
        self._cases = cases
        self._routing: Routing = node.routing[family]

    def results(self) -> Iterator[FlowResult]:
        for flow, case in self._cases.all():
            if isinstance(case, str):
                yield FlowResult(self._family, flow, False, Source.ANY, Judgement.SKIPPED, case)
            else:
                yield from self._both_ways(case)
        for packet in self._cases.discovery():
            yield self._discovered(packet)

    def _both_ways(self, case: Case) -> Iterator[FlowResult]:
        result = self._node.evaluate(case.packet)
        wanted = self._wanted.of(case.packet) if case.kept else Source.ANY
        if case.device == "":  # a packet that stays passes no rule of the policy
            wanted = Source.KEPT
        yield self._judge(case, result, wanted, answer=False)
        delivered = [outcome for outcome in result.outcomes if outcome.delivered]
        here = [outcome for outcome in delivered if outcome.dst.address in self._lease.subnet]
        if delivered:
            yield self._answer(case, (here or delivered)[0])

    def _answer(self, case: Case, outcome: Outcome) -> FlowResult:
        first = case.packet
        answer = _answer_to(first, outcome)
        if obstacle := self._bridged(case, outcome):
            judgement, fault = Judgement.WRONG, Fault.MISROUTED
            return FlowResult(self._family, case.flow, True, Source.KEPT, judgement, obstacle, fault=fault)
        back = Case(case.flow, answer, first.iif, kept=False)
        result = self._node.evaluate(answer)
        return self._judge(back, result, Source.ANY, answer=True, original=first)

    def _discovered(self, packet: Packet) -> FlowResult:
        asked_by_pod = bool(packet.iif) != packet.reply
        case = Case(Flow.POD_TO_GATEWAY if asked_by_pod else Flow.GATEWAY_TO_POD, packet, None, kept=False)
        found = self._judge(case, self._node.evaluate(packet), Source.ANY, answer=False)
        return replace(found, answer=packet.reply)

    def _bridged(self, case: Case, outcome: Outcome) -> str:
        """Return why the answer of another pod on the same bridge misses NAT, empty if it does not."""
        same = outcome.device == case.packet.iif and outcome.src.address == case.packet.src
        if case.flow is not Flow.POD_TO_SERVICE or not same or not self._routing.is_bridge(outcome.device):
            return ""
        if self._routing.bridge_calls(outcome.device):
            return ""
        key = BRIDGE_KEYS[self._family]
        if self._node.snapshot.sysctl(key) is None:
            return f"the answer is bridged past NAT: there is no {key}, br_netfilter is not loaded"
        return f"the answer is bridged past NAT: {key} = 0"

    def _judge(
        self, case: Case, result: Result, wanted: Source, *, answer: bool, original: Optional[Packet] = None
    ) -> FlowResult:
        faults = [self._fault(case, outcome, wanted, original) for outcome in result.outcomes]
        bad = [(outcome, found) for outcome, found in zip(result.outcomes, faults) if found]
        bad.sort(key=lambda one: any(step.effect is Effect.MAY for step in one[0].steps))  # the certain cause first
        steps = [step for outcome, (fault, _) in bad for step in _cause(outcome, fault)]
        why = "; ".join(dict.fromkeys(text for _, (_, text) in bad))
        judgement = Judgement.AS_WANTED
        if bad:
            judgement = Judgement.WRONG if len(bad) == len(faults) and not result.why_not else Judgement.MAY
        elif doubt := self._doubt(result, wanted):
            judgement, why = Judgement.MAY, doubt
        if judgement is Judgement.MAY:
            steps += [step for step in result.deciders if step not in steps]
        causes = tuple(Cause(step, self._node.owner(step)) for step in dict.fromkeys(steps))
        if bad and causes and causes[0].owner == KUBE_PROXY:
            marked = (Cause(step, self._node.owner(step)) for step in _marked(bad[0][0]))
            causes += tuple(cause for cause in marked if cause.owner != KUBE_PROXY)[-1:]
        first = bad[0][1][0] if bad else None
        decided = judgement is Judgement.WRONG and first in (Fault.LOST, Fault.REDIRECTED)
        tried = original or case.packet
        if decided and case.flow in _SERVICES:  # another port of a service leads nowhere
            end = case.packet.source if answer else bad[0][0].dst
            tried = replace(tried, dst=end.address, dport=end.port)
        narrow = decided and self._is_narrow(tried, answer=answer, kept=first is Fault.REDIRECTED)
        return FlowResult(self._family, case.flow, answer, wanted, judgement, why, causes, result, first, narrow)

    def _is_narrow(self, packet: Packet, *, answer: bool, kept: bool) -> bool:
        """Return True if the packet of another pod, or to another address or port, may pass, or the `answer` to it;
        with `kept` only if it may keep its destination."""
        others = [replace(packet, dport=OTHER_PORT)]
        others += [replace(packet, src=address) for address in self._cases.others(packet.src)]
        others += [replace(packet, dst=address) for address in self._cases.others(packet.dst)]
        return any(self._passes(other, answer=answer, kept=kept) for other in others)

    def _passes(self, packet: Packet, *, answer: bool, kept: bool = False) -> bool:
        delivered = [outcome for outcome in self._node.evaluate(packet).outcomes if outcome.delivered]
        if not answer:
            return any(not kept or outcome.dst.address == packet.dst for outcome in delivered)
        return any(self._passes(_answer_to(packet, outcome), answer=False) for outcome in delivered)

    def _fault(
        self, case: Case, outcome: Outcome, wanted: Source, original: Optional[Packet]
    ) -> Optional[tuple[Fault, str]]:
        """Return what is wrong with an outcome, None if nothing is."""
        packet = case.packet
        if not outcome.delivered:
            last = outcome.steps[-1] if outcome.steps else None
            return (Fault.LOST, f"{last.effect.value} by {last.place}") if last else None
        if case.kept and outcome.dst.address != packet.dst:
            return Fault.REDIRECTED, f"sent to {outcome.dst.address}, not to {packet.dst}"
        if case.device not in (None, outcome.device):
            wrong, right = (device or "the node itself" for device in (outcome.device, case.device))
            return Fault.MISROUTED, f"sent to {wrong}, not to {right}"
        if original is not None and (outcome.src.address, outcome.dst.address) != (original.dst, original.src):
            return Fault.UNANSWERED, f"arrives as {outcome.src.address} -> {outcome.dst.address}, so it is no answer"
        if wanted is Source.KEPT and outcome.src.address != packet.src:
            return Fault.MASQUERADED, f"arrives from {outcome.src.address}, not from {packet.src}"
        return self._foreign_source(packet, outcome) if wanted is Source.NODE else None

    def _foreign_source(self, packet: Packet, outcome: Outcome) -> Optional[tuple[Fault, str]]:
        """Return what is wrong with a source that must be the node's. One outside the pods' networks may be routed
        to the node."""
        source, device = outcome.src.address, outcome.device
        if not self._is_of_pods(source):
            return None
        if not self._routing.is_local(source):
            return Fault.NOT_MASQUERADED, f"arrives from {source}, not from an address of the node"
        bare = not any(one.device == device and one.scope == "global" for one in self._routing.addresses)
        if bare and not self._is_of_pods(packet.dst):
            return Fault.NO_ADDRESS, f"arrives from {source}, for {device} has no global address"
        return None

    def _doubt(self, result: Result, wanted: Source) -> str:
        """Return why a result without a fault may have one, empty if it has none."""
        if result.why_not:
            return result.why_not
        if any(outcome.unknown_end for outcome in result.outcomes):
            return "an address that NAT picks is not known"
        sources = {outcome.src.address for outcome in result.outcomes} if wanted is Source.NODE else set()
        foreign = [one for one in sources if not self._is_of_pods(one) and not self._routing.is_local(one)]
        return f"arrives from {foreign[0]}, which is no address of the node, but may be routed to it" if foreign else ""

    def _is_of_pods(self, address: Address) -> bool:
        return any(address in network for network in self._lease.networks)


def _answer_to(first: Packet, outcome: Outcome) -> Packet:
    """Return the first answer to a packet that was delivered."""
    connection = Connection(first.source, first.destination, outcome.src, outcome.dst, outcome.ct_mark)
    return Packet(
        outcome.dst.address,
        outcome.src.address,
        first.proto,
        outcome.dst.port,
        outcome.src.port,
        outcome.device,
        state=CtState.NEW if outcome.untracked else CtState.ESTABLISHED,
        reply=not outcome.untracked,
        connection=None if outcome.untracked else connection,
    )


def _cause(outcome: Outcome, fault: Fault) -> tuple[Step, ...]:
    """Return the rule that did it: one that dropped or translated, or else one that kept NAT away."""
    if fault in (Fault.REDIRECTED, Fault.MISROUTED):
        moved = [step for step in outcome.deciders if step.hook in DESTINATION_NAT]
        written = _marked(outcome) if fault is Fault.REDIRECTED else []
        return tuple((moved or written)[-1:])
    if fault is Fault.NO_ADDRESS:
        return ()
    if outcome.deciders or fault not in (Fault.NOT_MASQUERADED, Fault.UNANSWERED):
        return outcome.deciders[-1:]
    untracked = [step for step in outcome.steps if step.effect is Effect.UNTRACKED]
    ended = [step for step in outcome.steps if step.effect is Effect.ACCEPTED and step.hook is Hook.POSTROUTING]
    return tuple((untracked or ended or _marked(outcome))[-1:])


def _marked(outcome: Outcome) -> list[Step]:
    """Return the rules that changed the mark of a packet."""
    return [step for step in outcome.steps if step.effect is Effect.MARKED]
