"""The command `monitor`: prints the daemon's signals on D-Bus."""

from __future__ import annotations

import argparse

from flanneld_masq import footprint
from flanneld_masq.cli.output import in_colour
from flanneld_masq.errors import MasqError


def monitor(options: argparse.Namespace) -> int:
    """Follow the daemon until Ctrl-C."""
    footprint.load_asyncio()
    try:
        from flanneld_masq.cli.bus_events import follow
    except ImportError as error:
        raise MasqError(f"{error}, which speaks D-Bus; install python3-dbus-next") from error
    follow(lambda line: print(line, flush=True), as_json=options.json, colour=in_colour())
    return 0
