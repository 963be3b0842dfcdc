"""The command `doctor`: what breaks the traffic of pods, on this node or on one that was saved."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from flanneld_masq.cli import doctor_facts, doctor_snapshot
from flanneld_masq.cli.output import in_colour, print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.doctor.examine import examine, examine_saved
from flanneld_masq.doctor.findings import Finding, data_of, exit_status, text_of
from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.service.desired_state import OnError


@dataclass(frozen=True, **SLOTS)
class Answer:
    """The findings on a node, and the failures of plugins. `lacking` says what a saved node does not tell."""

    findings: tuple[Finding, ...]
    failures: tuple[str, ...] = ()
    lacking: str = ""

    def print(self, *, as_json: bool) -> None:
        if as_json:
            lacking = {"not_in_archive": self.lacking} if self.lacking else {}
            print_json({"findings": list(map(data_of, self.findings)), "plugin_failures": self.failures, **lacking})
        else:
            lines = list(text_of(self.findings, colour=in_colour()))
            last = [f"not in the archive: {self.lacking}"] if self.lacking else []
            print("\n".join([*(lines or ["nothing found that breaks masquerading"]), *last]))


def doctor(options: argparse.Namespace) -> int:
    """Print the findings. Return 0 for a healthy node, 1 for a problem, 2 if something cannot be told."""
    if options.snapshot:
        facts, said, lacking = doctor_snapshot.read(options)
        saved = Answer(tuple(examine_saved(facts, said)), lacking=lacking)
        saved.print(as_json=options.json)
        return exit_status(saved.findings)
    session = Session.despite(options)
    answer = examined(session, options)
    answer.print(as_json=options.json)
    return session.wrong.exit_code if session.wrong is not None else exit_status(answer.findings)


def examined(session: Session, options: argparse.Namespace, snapshot: Snapshot | None = None) -> Answer:
    """Examine this node. `snapshot` is what was collected of it already; None to collect it."""
    builder = session.builder(OnError.KEEP)
    failures = builder.ask_plugins()
    broken = tuple(map(str, (*session.plugins.failures, *failures)))
    return Answer(tuple(examine(doctor_facts.gather(session, options, builder, broken, snapshot))), broken)
