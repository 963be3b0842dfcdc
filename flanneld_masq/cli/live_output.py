"""How `trace` and `probe` show packets: as lines, and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Optional

from flanneld_masq.cli.command_options import PROTOCOLS
from flanneld_masq.kernel.trace_events import Header
from flanneld_masq.live.counters import Growth
from flanneld_masq.live.journey import Fate
from flanneld_masq.live.judgement import Passed, Traced
from flanneld_masq.live.tracer import Trace

_NAMES = {number: name for name, number in PROTOCOLS.items()}
_NEXT_STEP = (
    "check forwarding (`sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding`, and conf.DEVICE.forwarding), "
    "rp_filter and the route (`ip route get`)"
)


def trace_lines(trace: Trace) -> Iterator[str]:
    """Yield the lines of a trace. Packets that went the same way as the one before are counted, not shown."""
    shown: Optional[Traced] = None
    same = 0
    for number, packet in enumerate(trace.packets, 1):
        if shown is not None and _way(packet) == _way(shown):
            same += 1
            continue
        yield from _same(same)
        same, shown = 0, packet
        yield f"packet {number}: {header_text(packet.begin)}" + (f", by {packet.device_in}" * bool(packet.device_in))
        yield from packet_lines(packet)
    yield from _same(same)
    if trace.grown:
        yield "rules of legacy iptables whose counters grew meanwhile, by packets of this flow or of another:"
        yield from (
            f"  {growth.table} {growth.chain} rule {growth.number}: {growth.packets} packets: {growth.text}"
            for growth in trace.grown
        )
    yield from (f"cannot tell: {blind}" for blind in trace.blind)


def packet_lines(packet: Traced) -> Iterator[str]:
    """Yield a line for each rule that a packet passed, and one that says what became of it."""
    for step in packet.steps:
        yield f"  {step.hook:<11} {step} -> {step.verdict}{_owner(step)}{_text(step)}"
    yield f"  {verdict_text(packet)}"


def verdict_text(packet: Traced) -> str:
    """Return what became of a packet, and by which rule."""
    deciding = "; ".join(f"{step}{_owner(step)}{_text(step)}" for step in packet.decided)
    where = "to this host" if packet.local else f"by {packet.device_out or 'no device'}"
    if packet.fate is Fate.DELIVERED:
        return f"delivered: left {where} unchanged; no rule stopped or translated it"
    if packet.fate is Fate.TRANSLATED:
        known = deciding or "the first packet of its connection (connection tracking goes on translating)"
        return f"translated: left {where} as {header_text(packet.end)}, decided by {known}"
    if packet.fate is Fate.LOST:
        return f"lost after {packet.hook or 'the first hook'}, by no rule that reports it: {_NEXT_STEP}"
    return f"{packet.fate.value} in {packet.hook} by {deciding}"


def trace_json(trace: Trace) -> dict[str, object]:
    return {
        "seen": len(trace.packets),
        "packets": [packet_json(packet) for packet in trace.packets],
        "legacy_counters": [_growth_json(growth) for growth in trace.grown],
        "cannot_tell": list(trace.blind),
    }


def packet_json(packet: Traced) -> dict[str, object]:
    return {
        "fate": packet.fate.value,
        "hook": packet.hook or None,
        "from": _header_json(packet.begin),
        "to": _header_json(packet.end),
        "device_in": packet.device_in or None,
        "device_out": packet.device_out or None,
        "local": packet.local,
        "decided_by": [_passed_json(step) for step in packet.decided],
        "steps": [_passed_json(step) for step in packet.steps],
    }


def header_text(header: Optional[Header]) -> str:
    if header is None:
        return "a packet without a readable header"
    name = _NAMES.get(header.proto, f"protocol {header.proto}")
    return f"{_end(header, header.src, header.sport)} -> {_end(header, header.dst, header.dport)} {name}"


def _end(header: Header, address: object, port: int) -> str:
    if not (header.sport or header.dport):
        return str(address)
    return f"[{address}]:{port}" if header.src.version == 6 else f"{address}:{port}"


def _way(packet: Traced) -> tuple[object, ...]:
    return (packet.fate, packet.steps, packet.device_in, packet.device_out, packet.end and packet.end.src)


def _same(count: int) -> Iterable[str]:
    return (f"and {count} more that went the same way",) if count else ()


def _owner(step: Passed) -> str:
    return f" ({step.owner})" if step.owner else ""


def _text(step: Passed) -> str:
    return f": {step.text}" if step.text else ""


def _header_json(header: Optional[Header]) -> Optional[dict[str, object]]:
    if header is None:
        return None
    return {
        "src": str(header.src),
        "dst": str(header.dst),
        "proto": header.proto,
        "sport": header.sport or None,
        "dport": header.dport or None,
    }


def _passed_json(step: Passed) -> dict[str, object]:
    return {
        "backend": step.backend,
        "hook": step.hook or None,
        "table": step.table,
        "chain": step.chain,
        "kind": step.kind.value,
        "handle": step.handle or None,
        "number": step.number or None,
        "text": step.text or None,
        "verdict": step.verdict,
        "owner": step.owner or None,
    }


def _growth_json(growth: Growth) -> dict[str, object]:
    return {
        "table": growth.table,
        "chain": growth.chain,
        "number": growth.number,
        "text": growth.text,
        "packets": growth.packets,
    }
