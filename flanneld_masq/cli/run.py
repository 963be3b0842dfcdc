"""The command `run`: the daemon."""

from __future__ import annotations

import argparse

from flanneld_masq import footprint, plugin_loader
from flanneld_masq.cli.settings import load_settings
from flanneld_masq.errors import MasqError
from flanneld_masq.hangup import HANGUP
from flanneld_masq.model import Settings
from flanneld_masq.service import journal


def run(options: argparse.Namespace) -> int:
    """Run the daemon. An error that ends it goes to the journal, where people alert on it, or else to the caller."""
    to_journal = journal.set_up(Settings().log_level)
    try:
        _serve(options)
    except Exception as error:  # the top of the daemon
        if not to_journal:
            raise
        journal.failed(error)
        return error.exit_code if isinstance(error, MasqError) else 1
    finally:
        HANGUP.ignore()
    return 0


def _serve(options: argparse.Namespace) -> None:
    footprint.load_asyncio()
    import asyncio
    import faulthandler

    from flanneld_masq.service.daemon import Daemon

    footprint.one_arena()
    HANGUP.hold()
    daemon = Daemon(lambda: load_settings(options), plugin_loader.load(), config=options.config)
    journal.set_level(daemon.settings.log_level)
    faulthandler.enable()  # when systemd's watchdog kills the daemon, the journal says where each thread was
    asyncio.run(daemon.run())
