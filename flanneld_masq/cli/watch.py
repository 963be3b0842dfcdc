"""`status --watch`: shows the status again whenever it is another one, until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from flanneld_masq.cli.following import moments
from flanneld_masq.cli.session import Session
from flanneld_masq.cli.settings import load_settings
from flanneld_masq.cli.status import last_known, reported, status_text
from flanneld_masq.controller.status import Status, to_json
from flanneld_masq.errors import ConfigError

_REDRAW = "\033[H\033[2J"  # from the top of an empty screen


def watch(session: Session, options: argparse.Namespace) -> int:
    """Print each new status, until Ctrl-C. On a terminal it replaces the one before; JSON takes one line for each."""
    shown = ""
    for _ in moments(session.directory.status_file):
        known = _known(session, options)
        text = json.dumps(to_json(known)) if options.json else status_text(session, known)
        if text != shown:
            print(f"{_start(options, first=not shown)}{text}", flush=True)
        shown = text
    return 0


def _start(options: argparse.Namespace, *, first: bool) -> str:
    if options.json:
        return ""
    if sys.stdout.isatty():
        return _REDRAW
    return "" if first else "\n"


def _known(session: Session, options: argparse.Namespace) -> Status:
    """Return what the daemon reports, or what the last one left; with what is wrong with the configuration by now."""
    known = reported(session, options) or last_known(session)
    try:
        load_settings(options)
    except ConfigError as error:
        if not any(trouble.startswith(str(error)) for trouble in known.troubles):
            known = replace(known, troubles=(*known.troubles, str(error)))
    return known
