"""Where log lines go, and the short list of events that people may alert on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Event

LOGGER = logging.getLogger("flanneld_masq")

# fixed for ever: alerts and the message catalog are keyed by them
MESSAGE_IDS: Mapping[str, str] = {
    "started": "e93f760863114e488b600dfe0e2e7542",
    "stopped": "97bc80aa30cd4d479927032493b2d1d4",
    "failed": "8d3120b3832c4efc8dc711435050fc2c",
    "waiting": "6104c3239f134cefb2d245ec2823826c",
    "lease-changed": "8f8af8006af54633b75c44e54d8dfe75",
    "lease-refused": "3a93a664d1654f7c9b4186c1413426c2",
    "backend-chosen": "a3138d826a424c8fbc64a52952f81bb6",
    "mark-chosen": "06a394b6cb34449f993a9d7635cea2bb",
    "rules-applied": "6529fab2faab4f33bc7121d07a97790e",
    "verified": "9e92cc5527e04207b22669cea32d278d",
    "drift-repaired": "afca4eb59f464901a9b7df2ebc1cc9c6",
    "flows-healed": "ad6a52f0965c43bfaf61d78957025853",
    "degraded": "f1470fb6fef94fe093da04eb86b42504",
    "forward-dropped": "b44c1c05e529440b8e45f41f38514dbb",
    "lock-held": "b33698e556e847888db2e5be9c8f687b",
    "hanging": "bdc17829d89b49ccab2333efc8d9b785",
    "stuck": "a167a408a9db4d1f83b2de305fd00e57",
    "rules-left": "76715cf74db54310899c217e9a9f30de",
    "unwritable": "0605c86b61824dca909e12448bbf4430",
    "contended": "929d2688f6994fe8935b535998e34001",
    "recovered": "3e79fd230120450db5de35e360353314",
    "reloaded": "011c048da86a4364853ef10c887399e3",
    "reload-refused": "7426cacce7b44ddf90c4229724d87da1",
    "flannel-decides": "da9c4c8bdd514fcb8fc15e5068813fe2",
    "takeover-stopped": "cbf11a44000d4142b71360dc39d7a8e6",
    "plugin-failed": "d15ee9c2771f471c8d7adf544658f1ad",
    "notice": "23969de349bf4122b9d933c3d662c987",
}
PREFIX = "FLANNELD_MASQ_"


def emit(event: Event, level: int = logging.INFO, bug: Exception | None = None) -> None:
    """Log an event with its message id and fields; with the traceback of a bug."""
    fields = {
        "FAMILY": event.family,
        "GROUP": event.group,
        "BACKEND": event.backend,
        "REASON": event.reason,
        "DURATION_US": event.duration_us or "",
        "CULPRIT": event.culprit,
        "CULPRIT_PID": event.culprit_pid or "",
        "CULPRIT_COMMAND": event.culprit_command,
        "CULPRIT_UNIT": event.culprit_unit,
        "DIFF": event.diff,
    }
    extra = {PREFIX + key: str(value) for key, value in fields.items() if value}
    LOGGER.log(level, "%s", event.message, exc_info=bug, extra={"MESSAGE_ID": MESSAGE_IDS[event.kind], **extra})


def failed(error: Exception) -> None:
    """Log what ends the daemon."""
    if isinstance(error, MasqError):
        emit(Event("failed", str(error)), logging.ERROR)
    else:
        emit(Event("failed", f"internal error: {error!r}"), logging.ERROR, bug=error)


def set_up(level: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Log to the journal if systemd reads standard error, else to standard error. Return True for the journal."""
    to_journal = _stderr_is_journal(environ)
    LOGGER.handlers[:] = [_journal_handler() if to_journal else _stream_handler()]
    LOGGER.propagate = False
    set_level(level)
    return to_journal


def set_level(level: str) -> None:
    LOGGER.setLevel(level.upper())


def _stream_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _journal_handler() -> logging.Handler:
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return _stream_handler()
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER="flanneld-masq")
    return handler


def _stderr_is_journal(environ: Mapping[str, str]) -> bool:
    """systemd.exec(5): JOURNAL_STREAM names device and inode of the stream that goes to the journal."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
