"""An entry of the log, as the parts of the daemon hand it on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flanneld_masq.hookspecs import Event
from flanneld_masq.model import SLOTS


@dataclass(frozen=True, **SLOTS)
class LogEntry:
    """An event and the level (of `logging`) that it is logged at. `once` is True for one that is logged only the first
    time, and not passed to plugins."""

    event: Event
    level: int = logging.INFO
    once: bool = False


def notice(message: str, level: int = logging.INFO, *, once: bool = False) -> LogEntry:
    """Return an entry that is worth knowing, and belongs to no family."""
    return LogEntry(Event("notice", message), level, once)
