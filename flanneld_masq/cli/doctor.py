"""The command `doctor`: what breaks the traffic of pods, on this node or on one that was saved."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from flanneld_masq.cli import doctor_facts, doctor_snapshot
from flanneld_masq.cli.doctor_brief import examine_briefly
from flanneld_masq.cli.output import in_colour, print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.doctor.examine import examine, examine_saved
from flanneld_masq.doctor.findings import Finding, data_of, exit_status, text_of
from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.service.desired_state import OnError


@dataclass(frozen=True, **SLOTS)
class Answer:
    """The findings on a node, and the failures of plugins. `lacking` lists what a saved node does not contain. `wrong`
    is the exit status of an invalid configuration."""

    findings: tuple[Finding, ...]
    failures: tuple[str, ...] = ()
    lacking: str = ""
    wrong: int = 0

    def print(self, *, as_json: bool) -> None:
        if as_json:
            lacking = {"not_in_archive": self.lacking} if self.lacking else {}
            print_json({"findings": list(map(data_of, self.findings)), "plugin_failures": self.failures, **lacking})
        else:
            lines = list(text_of(self.findings, colour=in_colour()))
            last = [f"not in the archive: {self.lacking}"] if self.lacking else []
            print("\n".join([*(lines or ["nothing found that breaks masquerading"]), *last]))


def doctor(options: argparse.Namespace) -> int:
    """Print the findings, or one line with --brief. Return 0 for a healthy node, 1 for a problem, 2 if something cannot
    be told."""
    if options.brief:
        return _brief(options)
    answer = _answer(options)
    answer.print(as_json=options.json)
    return answer.wrong or exit_status(answer.findings)


def _brief(options: argparse.Namespace) -> int:
    status, line = examine_briefly(lambda: _answer(options).findings, options.timeout)
    if options.json:
        print_json({"status": status, "message": line})
    else:
        print(line)
    return status


def _answer(options: argparse.Namespace) -> Answer:
    """Return the findings on this node, or on a saved one."""
    if options.snapshot:
        facts, said, lacking = doctor_snapshot.read(options)
        return Answer(tuple(examine_saved(facts, said)), lacking=lacking)
    session = Session.despite(options)
    answer = examined(session, options)
    return answer if session.wrong is None else replace(answer, wrong=session.wrong.exit_code)


def examined(session: Session, options: argparse.Namespace, snapshot: Snapshot | None = None) -> Answer:
    """Examine this node. `snapshot` is what was collected of it already; None to collect it."""
    builder = session.builder(OnError.KEEP)
    failures = builder.ask_plugins()
    broken = tuple(map(str, (*session.plugins.failures, *failures)))
    return Answer(tuple(examine(doctor_facts.gather(session, options, builder, broken, snapshot))), broken)
