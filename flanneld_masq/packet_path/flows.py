"""Evaluates the flows that pods need, in both directions, and says of each if it is as wanted. Pure over a snapshot.

A flow that this node cannot have, for example to pods of other nodes where there are none, is skipped with the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice
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
from flanneld_masq.packet_path.packet import ICMPV6, TCP, UDP, Connection, CtState, Packet
from flanneld_masq.packet_path.routing import BRIDGE_KEYS, UNICAST, Route, Routing
from flanneld_masq.packet_path.rules import DESTINATION_NAT, Hook
from flanneld_masq.packet_path.services import Service, api_server, services
from flanneld_masq.packet_path.state import Effect, Step
from flanneld_masq.ruleset import policy

WORLD = {Family.IPV4: ip_address("8.8.8.8"), Family.IPV6: ip_address("2001:4860:4860::8888")}  # any of the world
OTHER_WORLD = {Family.IPV4: ip_address("93.184.216.34"), Family.IPV6: ip_address("2606:2800:220:1::1")}
OTHER_PORT = 31234
WORLD_PORT, POD_PORT, HOST_PORT, CLIENT_PORT, DNS_PORT = 443, 8080, 10250, 40000, 53
KUBE_PROXY = "kube-proxy"  # masquerades packets with its mark, from any program
MAX_SERVICES = 32  # that are tried until one has a pod of this node


class Flow(str, enum.Enum):
    """A flow that matters. The value is what users see."""

    POD_TO_WORLD = "pod to world"
    WORLD_TO_POD = "world to pod"
    POD_TO_REMOTE_POD = "pod to remote pod"
    REMOTE_POD_TO_POD = "remote pod to pod"
    HOST_TO_REMOTE_POD = "host to remote pod"
    REMOTE_HOST_TO_POD = "remote host to pod"
    HOST_TO_POD = "host to pod"
    POD_TO_HOST = "pod to host"
    POD_TO_SERVICE = "pod to service on the same node"
    POD_TO_API_SERVER = "pod to API server on the same node"
    POD_TO_LOCAL_POD = "pod to pod on the same node"
    POD_TO_WORLD_UDP = "pod to world by UDP"
    POD_TO_REMOTE_POD_UDP = "pod to remote pod by UDP"
    REMOTE_POD_TO_POD_UDP = "remote pod to pod by UDP"
    POD_TO_LOCAL_POD_UDP = "pod to pod on the same node by UDP"
    POD_TO_GATEWAY = "pod to gateway by neighbour discovery"
    GATEWAY_TO_POD = "gateway to pod by neighbour discovery"

    @property
    def udp(self) -> Optional[Flow]:
        """The same flow by UDP, as DNS needs it; None where only TCP is tried."""
        return _BY_UDP.get(self)

    @property
    def essential(self) -> bool:
        """True if no healthy node does without it; firewalls may rightly restrict the others."""
        return self not in (Flow.WORLD_TO_POD, Flow.POD_TO_HOST)


_BY_UDP = {
    Flow.POD_TO_WORLD: Flow.POD_TO_WORLD_UDP,
    Flow.POD_TO_REMOTE_POD: Flow.POD_TO_REMOTE_POD_UDP,
    Flow.REMOTE_POD_TO_POD: Flow.REMOTE_POD_TO_POD_UDP,
    Flow.POD_TO_LOCAL_POD: Flow.POD_TO_LOCAL_POD_UDP,
}


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


@dataclass(frozen=True, **SLOTS)
class _Case:
    """A flow to evaluate. `device` is where the packet must leave the node, empty if it must stay; None for anywhere.
    With `kept` its destination must stay the same."""

    flow: Flow
    packet: Packet
    device: Optional[str]
    kept: bool = True


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
    pods = {family: _pod(one, node.routing[family]) for family, one in leases.items()}
    # Both families share the pods' bridge, also one whose address is lost, so that no route leads to its pods.
    bridge = next((device for family, (_, device) in pods.items() if node.routing[family].is_bridge(device)), "")
    results: list[FlowResult] = []
    for family, family_lease in leases.items():
        wanted = _Wanted(settings, lease, family, exceptions, mark)
        address, device = pods[family]
        cases = _Cases(node, family, family_lease, address, device or bridge)
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


class _Cases:
    """The packets of one family, with a pod of this address behind this device; an empty one if there is no pod yet."""

    def __init__(self, node: Node, family: Family, lease: FamilyLease, pod: Address, device: str) -> None:
        self._node = node
        self._family = family
        self._lease = lease
        self._routing: Routing = node.routing[family]
        self._pod, self._device = pod, device
        self._remote = _remote_route(self._routing, lease)
        self._world = _route(self._routing, None, WORLD[family])
        self._neighbour = max(_neighbours(lease, self._routing, device, pod), default=None)

    def all(self) -> Iterator[tuple[Flow, _Case | str]]:
        """Yield each flow with its case, or the reason why the node cannot have it."""
        attempts = tuple(self._attempts())
        for flow, case in (*attempts, *_by_udp(attempts)):
            yield flow, case if self._device or flow is Flow.HOST_TO_REMOTE_POD else _NO_DEVICE

    def _attempts(self) -> Iterator[tuple[Flow, _Case | str]]:
        yield Flow.POD_TO_WORLD, self._to_world()
        yield Flow.WORLD_TO_POD, self._from_world()
        for flow, make in (
            (Flow.POD_TO_REMOTE_POD, self._to_remote_pod),
            (Flow.REMOTE_POD_TO_POD, self._from_remote_pod),
            (Flow.HOST_TO_REMOTE_POD, self._host_to_remote_pod),
            (Flow.REMOTE_HOST_TO_POD, self._from_remote_host),
        ):
            yield (
                flow,
                make(*self._remote) if self._remote is not None else _NO_REMOTE,
            )
        yield Flow.HOST_TO_POD, self._host_to_pod()
        yield Flow.POD_TO_HOST, self._to_host()
        yield Flow.POD_TO_SERVICE, self._to_service()
        yield Flow.POD_TO_API_SERVER, self._to_api_server()
        yield Flow.POD_TO_LOCAL_POD, self._to_local_pod()

    def _case(
        self,
        flow: Flow,
        src: Address,
        dst: Address,
        port: int,
        iif: str,
        device: Optional[str],
        *,
        uid: Optional[int] = None,
    ) -> _Case:
        return _Case(flow, Packet(src, dst, TCP, CLIENT_PORT, port, iif, uid=uid), device)

    def _to_world(self) -> _Case | str:
        if self._world is None:
            return "the node has no route to the world"
        # An administrator may lead pods to the world by another way than the node itself.
        return self._case(Flow.POD_TO_WORLD, self._pod, WORLD[self._family], WORLD_PORT, self._device, None)

    def _from_world(self) -> _Case | str:
        if self._world is None:
            return "the node has no route to the world"
        return self._case(Flow.WORLD_TO_POD, WORLD[self._family], self._pod, POD_PORT, self._world.device, self._device)

    def _to_remote_pod(self, pod: Address, route: Route) -> _Case | str:
        return self._case(Flow.POD_TO_REMOTE_POD, self._pod, pod, POD_PORT, self._device, route.device)

    def _from_remote_pod(self, pod: Address, route: Route) -> _Case | str:
        return self._case(Flow.REMOTE_POD_TO_POD, pod, self._pod, POD_PORT, route.device, self._device)

    def _host_to_remote_pod(self, pod: Address, route: Route) -> _Case | str:
        src = route.source or self._routing.source_for(route, pod)
        if src is None:
            return f"{route.device} has no address"
        return self._case(Flow.HOST_TO_REMOTE_POD, src, pod, POD_PORT, "", route.device, uid=0)

    def _from_remote_host(self, _: Address, route: Route) -> _Case | str:
        if route.via is None or route.via.version != self._family.data.version:
            return "the address of another node is not known"
        return self._case(Flow.REMOTE_HOST_TO_POD, route.via, self._pod, POD_PORT, route.device, self._device)

    def _host_to_pod(self) -> _Case | str:
        route = Route(UNICAST, self._device)
        src = self._routing.source_for(route, self._pod)
        if src is None:
            return f"{self._device} has no address"
        return self._case(Flow.HOST_TO_POD, src, self._pod, POD_PORT, "", self._device, uid=0)

    def _to_host(self) -> _Case | str:
        own = [one.address for one in self._routing.addresses if one.scope == "global" and one.device != self._device]
        outer = [address for address in own if not any(address in network for network in self._lease.networks)]
        if not outer:
            return "the node has no address outside the pods' networks"
        return self._case(Flow.POD_TO_HOST, self._pod, outer[0], HOST_PORT, self._device, "")

    def _to_service(self) -> _Case | str:
        """Return a packet to a service that may reach a pod of this node."""
        for service in islice(services(self._node.ruleset, self._family), MAX_SERVICES):
            packet = self._for(service)
            for outcome in self._node.evaluate(packet).outcomes:
                if outcome.delivered and outcome.dst.address in self._lease.subnet:
                    return _Case(Flow.POD_TO_SERVICE, packet, None, kept=False)
        return "no service has a pod on this node"

    def _to_api_server(self) -> _Case | str:
        """Return a packet to the API server by its service, if that may lead to this node."""
        service = api_server(self._node.ruleset, self._family)
        if service is not None:
            packet = self._for(service)
            ends = {outcome.dst.address for outcome in self._node.evaluate(packet).outcomes} - {packet.dst}
            if any(self._routing.is_local(end) for end in ends):
                return _Case(Flow.POD_TO_API_SERVER, packet, None, kept=False)
        return "no API server is known to run on this node"

    def _to_local_pod(self) -> _Case | str:
        if self._neighbour is None or not self._routing.bridge_calls(self._device):
            return "packets between pods of this node are not known to pass its rules"
        return self._case(Flow.POD_TO_LOCAL_POD, self._pod, self._neighbour, POD_PORT, self._device, self._device)

    def _for(self, service: Service) -> Packet:
        address, proto, port = service
        return Packet(self._pod, address, proto, CLIENT_PORT, port, self._device)

    def discovery(self) -> Iterator[Packet]:
        """Yield the packets by which a pod and its gateway, the node, find each other in IPv6, if the gateway is there.

        The node's own solicitation is left out, because it leaves by the device of the pods whatever the routes say.
        """
        gateway, device = self._lease.gateway, self._device
        own = ((one.address, one.device) for one in self._routing.addresses)
        if gateway.version == 4 or (gateway, device) not in own:
            return
        by_pod = Packet(self._pod, gateway, ICMPV6, iif=device, state=CtState.UNTRACKED)
        yield replace(by_pod, dst=_group_of(gateway))
        yield Packet(gateway, self._pod, ICMPV6, state=CtState.UNTRACKED, reply=True)
        yield replace(by_pod, reply=True)

    def others(self, address: Address) -> Iterator[Address]:
        """Yield another address of the same kind: of the world, or of a pod. A node has no other."""
        if address == WORLD[self._family]:
            yield OTHER_WORLD[self._family]
        elif address == self._pod:
            yield from islice(_pods(self._lease, self._routing, self._device, address), 1)
        elif address == self._neighbour or (self._remote is not None and address == self._remote[0]):
            yield address + 1


class _Flows:
    """The flows of one family, judged."""

    def __init__(self, node: Node, family: Family, lease: FamilyLease, wanted: _Wanted, cases: _Cases) -> None:
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

    def _both_ways(self, case: _Case) -> Iterator[FlowResult]:
        result = self._node.evaluate(case.packet)
        wanted = self._wanted.of(case.packet) if case.kept else Source.ANY
        if case.device == "":  # a packet that stays passes no rule of the policy
            wanted = Source.KEPT
        yield self._judge(case, result, wanted, answer=False)
        delivered = [outcome for outcome in result.outcomes if outcome.delivered]
        here = [outcome for outcome in delivered if outcome.dst.address in self._lease.subnet]
        if delivered:
            yield self._answer(case, (here or delivered)[0])

    def _answer(self, case: _Case, outcome: Outcome) -> FlowResult:
        first = case.packet
        answer = _answer_to(first, outcome)
        if obstacle := self._bridged(case, outcome):
            judgement, fault = Judgement.WRONG, Fault.MISROUTED
            return FlowResult(self._family, case.flow, True, Source.KEPT, judgement, obstacle, fault=fault)
        back = _Case(case.flow, answer, first.iif, kept=False)
        result = self._node.evaluate(answer)
        return self._judge(back, result, Source.ANY, answer=True, original=first)

    def _discovered(self, packet: Packet) -> FlowResult:
        asked_by_pod = bool(packet.iif) != packet.reply
        case = _Case(Flow.POD_TO_GATEWAY if asked_by_pod else Flow.GATEWAY_TO_POD, packet, None, kept=False)
        found = self._judge(case, self._node.evaluate(packet), Source.ANY, answer=False)
        return replace(found, answer=packet.reply)

    def _bridged(self, case: _Case, outcome: Outcome) -> str:
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
        self, case: _Case, result: Result, wanted: Source, *, answer: bool, original: Optional[Packet] = None
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
        self, case: _Case, outcome: Outcome, wanted: Source, original: Optional[Packet]
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


def _by_udp(attempts: Iterable[tuple[Flow, _Case | str]]) -> Iterator[tuple[Flow, _Case | str]]:
    """Yield the flows that have one, as DNS over UDP. A flow that was skipped is skipped again."""
    for flow, case in attempts:
        if flow.udp is not None and isinstance(case, _Case):
            yield flow.udp, replace(case, flow=flow.udp, packet=replace(case.packet, proto=UDP, dport=DNS_PORT))
        elif flow.udp is not None:
            yield flow.udp, case


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


_NO_REMOTE = "the node has no route to pods of other nodes"
_NO_DEVICE = "there is no device of the pods yet"
_SOLICITED_NODE = int(ip_address("ff02::1:ff00:0"))


def _route(routing: Routing, src: Optional[Address], dst: Address) -> Optional[Route]:
    """Return the route to an address, None if it has none or is the node's own."""
    found = routing.route(src, dst, "", 0)[0]
    return found if found.kind == UNICAST else None


def _pod(lease: FamilyLease, routing: Routing) -> tuple[Address, str]:
    """Return an address that a pod of this node may have, and the device of the pods; empty if there is none yet.

    With a bridge the address is probably free, because policies may restrict an existing pod. Where each pod has a
    route of its own, the address is that of an existing pod.
    """
    address = _free_address(lease, lease.subnet, routing)
    route = _route(routing, None, address)
    if route is not None and route.via is None:
        return address, route.device
    pods, device = next(_routes_to_pods(lease, routing), (None, ""))
    if pods is not None:
        address = pods.network_address if pods.num_addresses == 1 else _free_address(lease, pods, routing)
    return address, device


def _routes_to_pods(lease: FamilyLease, routing: Routing) -> Iterator[tuple[Network, str]]:
    """Yield the networks of this node's pods that a route without a next hop leads to, each with its device.

    The kernel has such a route to each IPv6 address of the node, that of flannel's interface among them.
    """
    for network, route in routing.unicast():
        first = network.network_address
        inside = network.version == lease.subnet.version and first in lease.subnet
        own = network.num_addresses == 1 and routing.is_local(first)
        if inside and route.via is None and not own:
            yield network, route.device


def _pods(lease: FamilyLease, routing: Routing, device: str, beside: Address) -> Iterator[Address]:
    """Yield addresses of other pods of this node: those with a host route of their own, then the neighbours of the
    address `beside`."""
    for network, _ in _routes_to_pods(lease, routing):
        if network.num_addresses == 1 and network.network_address != beside:
            yield network.network_address
    yield from _neighbours(lease, routing, device, beside)


def _neighbours(lease: FamilyLease, routing: Routing, device: str, beside: Address) -> Iterator[Address]:
    """Yield the neighbours of an address that the device reaches."""
    for pod in (beside - 1, beside + 1):
        found = _route(routing, None, pod) if pod in lease.subnet else None
        if found is not None and found.device == device:
            yield pod


def _group_of(address: Address) -> Address:
    """Return the group to which a solicitation for an address of IPv6 goes. Source: RFC 4291, section 2.7.1."""
    return ip_address((_SOLICITED_NODE | int(address) & 0xFFFFFF).to_bytes(16, "big"))


def _free_address(lease: FamilyLease, pods: Network, routing: Routing) -> Address:
    """Return an address near the end of a network that the node does not have: pods get those at its beginning."""
    own = {one.address for one in routing.addresses}
    last = pods.num_addresses - 1
    candidates = (pods[last - index] for index in range(5, min(last, 64)))
    return next((one for one in candidates if one not in own and one != lease.gateway), pods[min(last, 1)])


def _remote_route(routing: Routing, lease: FamilyLease) -> Optional[tuple[Address, Route]]:
    """Return a pod of another node, and the route to it; one by another node if there is one, for a LAN has none."""
    for network, route in sorted(routing.unicast(), key=lambda found: found[1].via is None):
        inside = any(
            network.version == pods.version and network.subnet_of(pods)  # type: ignore[arg-type]
            for pods in lease.networks
        )
        if not inside or network.overlaps(lease.subnet) or (route.via is None and route.device == ""):
            continue
        pod = network[max(network.num_addresses - 6, 0)]
        if not routing.is_local(pod):
            return pod, route
    return None
