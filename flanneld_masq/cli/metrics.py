"""The command `metrics`: prints the daemon's metrics, or writes that it stopped where it can no longer write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flanneld_masq.cli.session import Session
from flanneld_masq.cli.status import reported, written_status
from flanneld_masq.controller.status import State, Status, stopped
from flanneld_masq.service import prometheus, status_files


def metrics(options: argparse.Namespace) -> int:
    """Print the metrics of the running daemon, or those of the last one, which then say that it stopped.

    With --write replace metrics.textfile instead, unless a daemon runs: that one keeps it up to date.
    """
    session = Session.despite(options)
    if options.write:
        if session.settings.metrics_textfile and session.directory.holder().runs is False:
            status_files.write_stopped(Path(session.settings.metrics_textfile), _last(session))
    else:
        sys.stdout.write(prometheus.exposition(reported(session, options) or stopped(_last(session))))
    return session.wrong.exit_code if session.wrong else 0


def _last(session: Session) -> Status:
    return written_status(session.directory) or Status(State.STOPPED)
