"""Flows and results as values for JSON. Pure."""

from __future__ import annotations

from typing import Any, Optional

from flanneld_masq.packet_path.evaluate import Node, Outcome, Result
from flanneld_masq.packet_path.flows import FlowResult
from flanneld_masq.packet_path.packet import Packet
from flanneld_masq.packet_path.state import Step


def flow_data(node: Node, flow: FlowResult) -> dict[str, Any]:
    """Return a flow: what is wanted of it, what becomes of it, and the rules that decided."""
    return {
        "family": str(flow.family),
        "flow": flow.flow.value,
        "answer": flow.answer,
        "wanted_source": flow.wanted.value,
        "judgement": flow.judgement.value,
        "why": flow.why,
        "causes": [step_data(node, cause.step) for cause in flow.causes],
        "result": result_data(node, flow.result),
    }


def result_data(node: Node, result: Optional[Result]) -> Optional[dict[str, Any]]:
    """Return every end that a packet may have; None for None."""
    if result is None:
        return None
    return {
        "packet": _packet(result.packet),
        "fate": result.fate.value,
        "certain": result.certain,
        "why_not": result.why_not,
        "outcomes": [_outcome(node, outcome) for outcome in result.outcomes],
    }


def step_data(node: Node, step: Step) -> dict[str, Any]:
    """Return a rule with its place, its owner and what it did. `owner` is empty for one that is not recognised."""
    place = step.place
    return {
        "hook": step.hook.value,
        "effect": step.effect.value,
        "detail": step.detail,
        "owner": node.owner(step),
        "table": place.table,
        "chain": place.chain,
        "rule": place.number or None,
        "handle": place.handle or None,
        "text": place.text,
        "comment": place.comment,
        "jumps": list(map(str, step.jumps)),
    }


def _packet(packet: Packet) -> dict[str, Any]:
    return {
        "src": str(packet.source),
        "dst": str(packet.destination),
        "proto": packet.proto,
        "from": packet.iif or None,
        "mark": packet.mark,
        "state": packet.state.value,
    }


def _outcome(node: Node, outcome: Outcome) -> dict[str, Any]:
    return {
        "delivered": outcome.delivered,
        "src": str(outcome.src),
        "dst": str(outcome.dst),
        "address_unknown": outcome.unknown_end,
        "device": outcome.device or None,
        "steps": [step_data(node, step) for step in outcome.steps],
    }
