"""Says in words what becomes of a packet, and which rule of which program decided. Pure."""

from __future__ import annotations

from flanneld_masq.packet_path.evaluate import Node, Outcome, Result
from flanneld_masq.packet_path.names import PROTOCOLS
from flanneld_masq.packet_path.packet import Packet
from flanneld_masq.packet_path.rules import Place
from flanneld_masq.packet_path.state import Effect, Step

_NAMES = {number: name for name, number in reversed(list(PROTOCOLS.items()))}
_NO_RULE = ("routing", "sysctl")  # tables of places that are no rules
MAX_OUTCOMES = 4  # of a packet that are shown
UNKNOWN_OWNER = "program not recognised"


def packet_text(packet: Packet) -> str:
    proto = _NAMES.get(packet.proto, f"protocol {packet.proto}")
    begins = f"arrives by {packet.iif}" if packet.iif else "made by the node"
    mark = f", mark {packet.mark:#x}" if packet.mark else ""
    return f"{packet.source} -> {packet.destination} {proto}, {packet.state.value}, {begins}{mark}"


def is_rule(place: Place) -> bool:
    """Return False for a route or a sysctl."""
    return place.table not in _NO_RULE


def decider(node: Node, step: Step) -> str:
    """Return the program that owns the rule of a step, or the chain if the owner is not known. For a step without
    a rule return the text of its place."""
    if not is_rule(step.place):
        return step.place.text
    return node.owner(step) or f"{step.place.chain} in {step.place.table}"


def outcome_text(node: Node, packet: Packet, outcome: Outcome) -> str:
    """Return what becomes of the packet at one end, and who decided."""
    if not outcome.delivered:
        if not outcome.steps:
            return "not known"
        step = outcome.steps[-1]
        return f"{step.effect.value} by {decider(node, step)}"
    where = f"delivered by {outcome.device}" if outcome.device else "delivered to the node"
    changes = _translation(packet, outcome)
    by = dict.fromkeys(decider(node, step) for step in outcome.steps if step.effect is Effect.TRANSLATED)
    if not changes:
        return f"{where}, unchanged"
    return f"{where}, {changes}, translated by {' and '.join(by) or 'connection tracking'}"


def _translation(packet: Packet, outcome: Outcome) -> str:
    """Return the ends that differ from those of the packet."""
    unknown = " or another address" if outcome.unknown_end else ""
    ends = [f"from {outcome.src}{unknown}"] if outcome.src.address != packet.src else []
    ends += [f"to {outcome.dst}{unknown}"] if outcome.dst != packet.destination else []
    return " ".join(ends)


def result_text(node: Node, result: Result) -> str:
    """Return what becomes of the packet: of several ends the first ones."""
    ends = dict.fromkeys(outcome_text(node, result.packet, outcome) for outcome in result.outcomes[:MAX_OUTCOMES])
    more = len(result.outcomes) - MAX_OUTCOMES
    return "; or ".join((*ends, *((f"{more} more ends",) if more > 0 else ())))
