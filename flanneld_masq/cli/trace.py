"""The command `trace`: real packets of a flow, the rules that they pass, and the rule that decides."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from flanneld_masq.cli.command_options import PROTOCOLS, check_flow
from flanneld_masq.cli.live_output import trace_json, trace_lines
from flanneld_masq.cli.output import print_json
from flanneld_masq.errors import MasqError
from flanneld_masq.kernel.flow_match import Flow
from flanneld_masq.live.tracer import Trace, Tracer
from flanneld_masq.process import ProcessRunner


def trace(options: argparse.Namespace) -> int:
    """Return 0 if packets of the flow were seen, else 1."""
    flow = flow_of(options)
    insist_on_root("trace", "it sets a rule in nf_tables that turns tracing on")
    with ended_by_sigterm():
        found = _traced(flow, options)
    if options.json:
        print_json({"flow": _flow_json(flow), "seconds": options.seconds, **trace_json(found)})
    else:
        for line in trace_lines(found):
            print(line)
    if found.packets:
        return 0
    raise MasqError(_nothing(flow, options.seconds))


def flow_of(options: argparse.Namespace) -> Flow:
    """Return the flow that the options name. Raises ConfigError if they contradict each other."""
    check_flow(options)
    return Flow(options.src, options.dst, options.proto, options.dport)


def insist_on_root(command: str, why: str) -> None:
    """Raise MasqError unless this process is root, at least in its user namespace."""
    if os.geteuid():
        raise MasqError(f"{command} needs root: {why}; run it with sudo")


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Leave the block with an exception at SIGTERM, so that what it made is removed."""

    def end(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _traced(flow: Flow, options: argparse.Namespace) -> Trace:
    with Tracer((flow,), options.packets, run=ProcessRunner()) as tracer:
        print(f"tracing {_text(flow)} for {options.seconds:g} s at most; Ctrl-C ends it", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            tracer.collect(options.seconds)
        return tracer.finish()


def _flow_json(flow: Flow) -> dict[str, object]:
    return {"src": str(flow.src), "dst": str(flow.dst), "proto": flow.proto or None, "dport": flow.dport or None}


def _nothing(flow: Flow, seconds: float) -> str:
    return (
        f"no packet of {_text(flow)} was seen in {seconds:g} s: send packets during the trace, for example with "
        "ping in the pod; if you did, they do not reach this node's network stack: check the pod's own route and "
        "device with `ip "
        f"route get {flow.dst}` in the pod, or whether an eBPF program forwards them (Cilium, for example)"
    )


def _text(flow: Flow) -> str:
    names = {number: name for name, number in PROTOCOLS.items()}
    proto = f", {names.get(flow.proto, flow.proto)}" if flow.proto else ""
    return f"{flow.src} -> {flow.dst}{proto}" + (f" port {flow.dport}" if flow.dport else "")
