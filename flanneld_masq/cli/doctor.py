"""The command `doctor`: what breaks the traffic of pods, on this node or on one that was saved."""

from __future__ import annotations

import argparse

from flanneld_masq.cli import doctor_facts, doctor_snapshot
from flanneld_masq.cli.output import in_colour, print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.doctor.examine import examine, examine_flows
from flanneld_masq.doctor.findings import Finding, data_of, exit_status, text_of
from flanneld_masq.service.desired_state import OnError


def doctor(options: argparse.Namespace) -> int:
    """Print the findings. Return 0 for a healthy node, 1 for a problem, 2 if something cannot be told."""
    if options.snapshot:
        found = list(examine_flows(doctor_snapshot.facts(options)))
        _print(found, (), as_json=options.json)
        return exit_status(found)
    session = Session.despite(options)
    builder = session.builder(OnError.KEEP)
    failures = builder.ask_plugins()
    broken = tuple(map(str, (*session.plugins.failures, *failures)))
    findings = list(examine(doctor_facts.gather(session, options, builder, broken)))
    _print(findings, broken, as_json=options.json)
    return session.wrong.exit_code if session.wrong is not None else exit_status(findings)


def _print(findings: list[Finding], failures: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"findings": list(map(data_of, findings)), "plugin_failures": failures})
    else:
        lines = list(text_of(findings, colour=in_colour()))
        print("\n".join(lines or ["nothing found that breaks masquerading"]))
