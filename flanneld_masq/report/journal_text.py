"""Turns entries of the journal into lines, with the fields that a report may hold. Pure.

The input is that of `journalctl -o json`: an object on each line, see systemd.journal-fields(7). The command line of a
program (`_CMDLINE`, `FLANNELD_MASQ_CULPRIT_COMMAND`) may hold a secret, so it is left out, as is every field not named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from flanneld_masq.printable import one_line, printable
from flanneld_masq.report.redact import REDACTED, secrets_removed
from flanneld_masq.service import journal

_COMMAND = f"{journal.PREFIX}CULPRIT_COMMAND"
_TIME, _TEXT, _NAME, _PID, _PRIORITY = "__REALTIME_TIMESTAMP", "MESSAGE", "SYSLOG_IDENTIFIER", "_PID", "PRIORITY"


def lines(text: str) -> Iterator[str]:
    """Yield a line for each entry, and below it a line with the daemon's own fields. What is no entry is counted."""
    unread = 0
    for line in text.split("\n"):
        entry = _entry(line) if line else {}
        if entry is None:
            unread += 1
        elif entry:
            yield from _shown(entry)
    if unread:
        yield f"{unread} lines of journalctl could not be read"


def _entry(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _shown(entry: dict[str, Any]) -> Iterator[str]:
    name = _text(entry, _NAME) or "?"
    yield f"{_time(entry)} <{_text(entry, _PRIORITY)}> {name}[{_text(entry, _PID)}]: {_text(entry, _TEXT)}"
    own = {key: _text(entry, key) for key in sorted(entry) if key.startswith(journal.PREFIX) or key == "MESSAGE_ID"}
    if own.get(_COMMAND):
        own[_COMMAND] = REDACTED
    if shown := [f"{printable(key)}={value}" for key, value in own.items() if value]:
        yield "    " + " ".join(shown)


def _time(entry: dict[str, Any]) -> str:
    """Return the time, which the journal keeps in microseconds."""
    text = str(entry.get(_TIME, ""))
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        return "(no time)"
    return datetime.fromtimestamp(int(text) / 1e6, timezone.utc).isoformat(timespec="milliseconds")


def _text(entry: dict[str, Any], key: str) -> str:
    """Return a field. A value that is no text is an array of bytes, and one that occurs twice an array of values."""
    value = entry.get(key, "")
    if isinstance(value, list):
        if all(isinstance(one, int) and 0 <= one < 256 for one in value):
            value = bytes(value).decode("utf-8", "replace")
        else:
            value = "; ".join(map(str, value))
    return secrets_removed(one_line(str(value)))
