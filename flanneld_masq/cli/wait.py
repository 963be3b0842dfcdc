"""The command `wait`, for scripts: returns once the daemon reports the requested state."""

from __future__ import annotations

import argparse
import time

from flanneld_masq.cli.output import print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.status import last_known, reported
from flanneld_masq.controller.status import Status
from flanneld_masq.errors import MasqError


def wait(options: argparse.Namespace) -> int:
    """Wait until the daemon has the state. Return 0, or 1 if it does not have it in time."""
    from flanneld_masq.cli.following import moments

    started = time.monotonic()
    session = Session.despite(options)
    known = last_known(session)
    for _ in moments(session.directory.status_file, options.timeout):
        known = reported(session, options) or last_known(session)
        if known.state.value == options.state:
            break
    seconds = time.monotonic() - started
    reached = known.state.value == options.state
    errors = _errors(session, known)
    if options.json:
        answer = {"reached": reached, "for": options.state, "state": known.state.value, "seconds": round(seconds, 3)}
        print_json({**answer, "errors": errors})
    elif reached:
        print(f"{known.state} after {seconds:.1f} s")
    else:
        found = "; ".join((f"the state is {known.state}", *errors))
        raise MasqError(f"waited {seconds:.1f} s for the state {options.state}: {found}")
    return 0 if reached else 1


def _errors(session: Session, known: Status) -> list[str]:
    """Return what is wrong, once each."""
    wrong = [str(session.wrong)] if session.wrong else []
    return list(dict.fromkeys((*wrong, *known.errors)))
