"""Each entry of the journal becomes a line with its time, message and own fields."""

from __future__ import annotations

import json

from flanneld_masq.report.journal_text import lines

ENTRY = {
    "__REALTIME_TIMESTAMP": "1700000000123456",
    "PRIORITY": "4",
    "SYSLOG_IDENTIFIER": "flanneld-masq",
    "_PID": "42",
    "MESSAGE": "ipv4: POSTROUTING jump removed by sh (pid 7)",
    "MESSAGE_ID": "5d2c0d2d",
    "FLANNELD_MASQ_CULPRIT": "sh",
    "FLANNELD_MASQ_CULPRIT_COMMAND": "sh -c hunter2",
    "FLANNELD_MASQ_REASON": "event",
    "_CMDLINE": "flanneld-masq --token hunter2",
    "_HOSTNAME": "node-1",
}


def shown(*entries: object) -> list[str]:
    return list(lines("\n".join(map(json.dumps, entries))))


def test_an_entry_has_time_message_and_own_fields() -> None:
    assert shown(ENTRY) == [
        "2023-11-14T22:13:20.123+00:00 <4> flanneld-masq[42]: ipv4: POSTROUTING jump removed by sh (pid 7)",
        "    FLANNELD_MASQ_CULPRIT=sh FLANNELD_MASQ_CULPRIT_COMMAND=(redacted) FLANNELD_MASQ_REASON=event "
        "MESSAGE_ID=5d2c0d2d",
    ]


def test_command_lines_are_left_out() -> None:
    assert "hunter2" not in "\n".join(shown(ENTRY))


def test_a_message_of_bytes_is_shown_on_one_line() -> None:
    (line,) = shown({"MESSAGE": list(b"a\x1b\nb\xff"), "__REALTIME_TIMESTAMP": "x"})
    assert line == "(no time) <> ?[]: a\\x1b; b\ufffd"


def test_a_field_that_occurs_twice_is_joined() -> None:
    assert shown({"MESSAGE": ["one", "two"]}) == ["(no time) <> ?[]: one; two"]


def test_lines_that_are_no_entries_are_counted() -> None:
    found = list(lines('{"MESSAGE": "x"}\n{\n[]\n\n'))
    assert found == ["(no time) <> ?[]: x", "2 lines of journalctl could not be read"]
