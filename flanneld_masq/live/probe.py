"""Sends packets of each class between throwaway hosts through the node's rules, and compares with what is wanted."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.errors import MasqError
from flanneld_masq.kernel.flow_match import Flow
from flanneld_masq.live.journey import Fate
from flanneld_masq.live.judgement import Traced
from flanneld_masq.live.throwaway import Throwaway
from flanneld_masq.live.tracer import Trace, Tracer
from flanneld_masq.model import SLOTS, Address, Family, Packet
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.netns import Netns

_TCP = 6
_DEADLINE = 4.0  # seconds, for a connection between two namespaces; TCP repeats its first packet after 1 and 3 s
_MAX_PACKETS = 64


_NO_TRACE = Trace(())


class Class(enum.Enum):
    """A kind of flow, by its destination."""

    WORLD = "world"
    REMOTE_POD = "remote-pod"
    NODE = "node"
    POD = "pod"


_TEXTS = {
    Class.WORLD: "pod to the world",
    Class.REMOTE_POD: "pod to a pod of another node",
    Class.NODE: "pod to this node",
    Class.POD: "the world to a pod",
}


class Outcome(enum.Enum):
    """`REFUSED` is a connection to the node itself that a firewall stops, which it may be meant to do."""

    AS_WANTED = "as wanted"
    NOT_AS_WANTED = "not as wanted"
    REFUSED = "refused"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, **SLOTS)
class Result:
    """The result of one flow: the source address that `arrived`, or the `failure`. `masquerade` is what is wanted."""

    kind: Class
    family: Family
    outcome: Outcome
    packet: Optional[Packet] = None
    masquerade: bool = False
    arrived: Optional[Address] = None
    failure: str = ""
    trace: Trace = _NO_TRACE

    @property
    def lost(self) -> Optional[Traced]:
        """The packet that did not get through, as far as the trace shows: of the flow, or of its answers."""
        stopped = [one for one in self.trace.packets if one.fate not in (Fate.DELIVERED, Fate.TRANSLATED)]
        return stopped[-1] if stopped and self.arrived is None else None

    @property
    def deciding(self) -> Optional[Traced]:
        """The packet whose trace shows what decided the result."""
        src = self.packet.src if self.packet is not None else None
        return self.lost or next(
            (one for one in self.trace.packets if one.begin is not None and one.begin.src == src), None
        )

    def __str__(self) -> str:
        return _TEXTS[self.kind]


@dataclass(frozen=True, **SLOTS)
class _Flow:
    """A flow between two hosts."""

    kind: Class
    sender: Netns
    receiver: Netns
    src: Address
    dst: Address


def probe(
    throwaway: Throwaway,
    family: Family,
    classes: Sequence[Class],
    masqueraded: Callable[[Packet], bool],
    run: ProcessRunner,
) -> Iterator[Result]:
    """Yield the result of each class. `masqueraded` says what the policy wants of a packet."""
    for kind in classes:
        flow = _flow(throwaway, kind)
        if flow is None:
            yield Result(kind, family, Outcome.UNKNOWN, failure=throwaway.hosts.why_no_remote)
        else:
            yield _result(flow, family, masqueraded, run)


def _flow(throwaway: Throwaway, kind: Class) -> Optional[_Flow]:
    """Return None for a class whose destination cannot be made up."""
    hosts, pod, outside = throwaway.hosts, throwaway.pod, throwaway.outside
    if kind is Class.WORLD:
        return _Flow(kind, pod, outside, hosts.pod, hosts.outside)
    if kind is Class.NODE:
        return _Flow(kind, pod, throwaway.node, hosts.pod, hosts.gateway)
    if kind is Class.POD:
        return _Flow(kind, outside, pod, hosts.outside, hosts.pod)
    return _Flow(kind, pod, outside, hosts.pod, hosts.remote) if hosts.remote is not None else None


def _result(flow: _Flow, family: Family, masqueraded: Callable[[Packet], bool], run: ProcessRunner) -> Result:
    packet = Packet(flow.src, flow.dst)
    wanted = masqueraded(packet)
    arrived, failure, trace = _send(flow, packet, run)
    return Result(
        flow.kind, family, judged(flow.kind, packet, wanted, arrived), packet, wanted, arrived, failure, trace
    )


def judged(kind: Class, packet: Packet, masquerade: bool, arrived: Optional[Address]) -> Outcome:
    """Compare the source address that arrived with what is wanted."""
    if arrived is None:
        return Outcome.REFUSED if kind is Class.NODE else Outcome.NOT_AS_WANTED
    return Outcome.AS_WANTED if (arrived != packet.src) is masquerade else Outcome.NOT_AS_WANTED


def _send(flow: _Flow, packet: Packet, run: ProcessRunner) -> tuple[Optional[Address], str, Trace]:
    """Connect once, traced if the kernel can. Return the source address that arrived or why none did, and the trace."""
    flows = (Flow(flow.src, flow.dst, _TCP), Flow(flow.dst, None, _TCP))
    try:
        tracer = Tracer(flows, _MAX_PACKETS, run=run)
    except MasqError as error:
        return (*_connect(flow, packet), Trace(flows, blind=(f"no packet was traced: {error}",)))
    with tracer:
        arrived, failure = _connect(flow, packet)
        tracer.collect(0.0)
        return arrived, failure, tracer.finish()


def _connect(flow: _Flow, packet: Packet) -> tuple[Optional[Address], str]:
    try:
        return packets.tcp(flow.sender, flow.receiver, packet, deadline=_DEADLINE), ""
    except MasqError as error:
        return None, str(error)
