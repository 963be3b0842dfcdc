"""The packets of the flows that pods need: which there are on this node, and where each is to go. Pure over a snapshot.

A flow that this node cannot have, for example to pods of other nodes where there are none, has a reason instead.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice
from typing import Optional

from flanneld_masq.model import SLOTS, Address, Family, FamilyLease, Network
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.packet import ICMPV6, TCP, UDP, CtState, Packet
from flanneld_masq.packet_path.routing import UNICAST, Route, Routing
from flanneld_masq.packet_path.services import Service, api_server, services

WORLD = {Family.IPV4: ip_address("8.8.8.8"), Family.IPV6: ip_address("2001:4860:4860::8888")}  # any of the world
OTHER_WORLD = {Family.IPV4: ip_address("93.184.216.34"), Family.IPV6: ip_address("2606:2800:220:1::1")}
OTHER_PORT = 31234
WORLD_PORT, POD_PORT, HOST_PORT, CLIENT_PORT, DNS_PORT = 443, 8080, 10250, 40000, 53
MAX_SERVICES = 32  # that are tried until one has a pod of this node
_NO_REMOTE = "the node has no route to pods of other nodes"
_NO_DEVICE = "there is no device of the pods yet"
_SOLICITED_NODE = int(ip_address("ff02::1:ff00:0"))


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


@dataclass(frozen=True, **SLOTS)
class Case:
    """A flow to evaluate. `device` is where the packet must leave the node, empty if it must stay; None for anywhere.
    With `kept` its destination must stay the same."""

    flow: Flow
    packet: Packet
    device: Optional[str]
    kept: bool = True


class Cases:
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

    def all(self) -> Iterator[tuple[Flow, Case | str]]:
        """Yield each flow with its case, or the reason why the node cannot have it."""
        attempts = tuple(self._attempts())
        for flow, case in (*attempts, *_by_udp(attempts)):
            yield flow, case if self._device or flow is Flow.HOST_TO_REMOTE_POD else _NO_DEVICE

    def _attempts(self) -> Iterator[tuple[Flow, Case | str]]:
        yield Flow.POD_TO_WORLD, self._to_world()
        yield Flow.WORLD_TO_POD, self._from_world()
        for flow, make in (
            (Flow.POD_TO_REMOTE_POD, self._to_remote_pod),
            (Flow.REMOTE_POD_TO_POD, self._from_remote_pod),
            (Flow.HOST_TO_REMOTE_POD, self._host_to_remote_pod),
            (Flow.REMOTE_HOST_TO_POD, self._from_remote_host),
        ):
            yield flow, make(*self._remote) if self._remote is not None else _NO_REMOTE
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
    ) -> Case:
        return Case(flow, Packet(src, dst, TCP, CLIENT_PORT, port, iif, uid=uid), device)

    def _to_world(self) -> Case | str:
        if self._world is None:
            return "the node has no route to the world"
        # An administrator may lead pods to the world by another way than the node itself.
        return self._case(Flow.POD_TO_WORLD, self._pod, WORLD[self._family], WORLD_PORT, self._device, None)

    def _from_world(self) -> Case | str:
        if self._world is None:
            return "the node has no route to the world"
        return self._case(Flow.WORLD_TO_POD, WORLD[self._family], self._pod, POD_PORT, self._world.device, self._device)

    def _to_remote_pod(self, pod: Address, route: Route) -> Case | str:
        return self._case(Flow.POD_TO_REMOTE_POD, self._pod, pod, POD_PORT, self._device, route.device)

    def _from_remote_pod(self, pod: Address, route: Route) -> Case | str:
        return self._case(Flow.REMOTE_POD_TO_POD, pod, self._pod, POD_PORT, route.device, self._device)

    def _host_to_remote_pod(self, pod: Address, route: Route) -> Case | str:
        src = route.source or self._routing.source_for(route, pod)
        if src is None:
            return f"{route.device} has no address"
        return self._case(Flow.HOST_TO_REMOTE_POD, src, pod, POD_PORT, "", route.device, uid=0)

    def _from_remote_host(self, _: Address, route: Route) -> Case | str:
        if route.via is None or route.via.version != self._family.data.version:
            return "the address of another node is not known"
        return self._case(Flow.REMOTE_HOST_TO_POD, route.via, self._pod, POD_PORT, route.device, self._device)

    def _host_to_pod(self) -> Case | str:
        route = Route(UNICAST, self._device)
        src = self._routing.source_for(route, self._pod)
        if src is None:
            return f"{self._device} has no address"
        return self._case(Flow.HOST_TO_POD, src, self._pod, POD_PORT, "", self._device, uid=0)

    def _to_host(self) -> Case | str:
        own = [one.address for one in self._routing.addresses if one.scope == "global" and one.device != self._device]
        outer = [address for address in own if not any(address in network for network in self._lease.networks)]
        if not outer:
            return "the node has no address outside the pods' networks"
        return self._case(Flow.POD_TO_HOST, self._pod, outer[0], HOST_PORT, self._device, "")

    def _to_service(self) -> Case | str:
        """Return a packet to a service that may reach a pod of this node."""
        for service in islice(services(self._node.ruleset, self._family), MAX_SERVICES):
            packet = self._for(service)
            for outcome in self._node.evaluate(packet).outcomes:
                if outcome.delivered and outcome.dst.address in self._lease.subnet:
                    return Case(Flow.POD_TO_SERVICE, packet, None, kept=False)
        return "no service has a pod on this node"

    def _to_api_server(self) -> Case | str:
        """Return a packet to the API server by its service, if that may lead to this node."""
        service = api_server(self._node.ruleset, self._family)
        if service is not None:
            packet = self._for(service)
            ends = {outcome.dst.address for outcome in self._node.evaluate(packet).outcomes} - {packet.dst}
            if any(self._routing.is_local(end) for end in ends):
                return Case(Flow.POD_TO_API_SERVER, packet, None, kept=False)
        return "no API server is known to run on this node"

    def _to_local_pod(self) -> Case | str:
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


def _by_udp(attempts: Iterable[tuple[Flow, Case | str]]) -> Iterator[tuple[Flow, Case | str]]:
    """Yield the flows that have one, as DNS over UDP. A flow that was skipped is skipped again."""
    for flow, case in attempts:
        if flow.udp is not None and isinstance(case, Case):
            yield flow.udp, replace(case, flow=flow.udp, packet=replace(case.packet, proto=UDP, dport=DNS_PORT))
        elif flow.udp is not None:
            yield flow.udp, case


def _route(routing: Routing, src: Optional[Address], dst: Address) -> Optional[Route]:
    """Return the route to an address, None if it has none or is the node's own."""
    found = routing.route(src, dst, "", 0)[0]
    return found if found.kind == UNICAST else None


def pod_of(lease: FamilyLease, routing: Routing) -> tuple[Address, str]:
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
