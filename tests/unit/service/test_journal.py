"""Message ids and fields that people alert on, and where the lines go."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from flanneld_masq.hookspecs import Event
from flanneld_masq.service import journal


class Records(logging.Handler):
    def __init__(self, **fields: str) -> None:
        super().__init__()
        self.fields = fields
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The logger, as it was before afterwards."""
    logger = journal.LOGGER
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield logger
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture
def records(logger: logging.Logger) -> Records:
    records = Records()
    logger.handlers[:] = [records]
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    return records


def journal_fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key.isupper()}


def test_message_ids_are_ids_and_distinct() -> None:
    ids = list(journal.MESSAGE_IDS.values())
    assert len(set(ids)) == len(ids) >= 14
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in ids)


def test_they_are_random_ones() -> None:
    """As `journalctl --new-id128` makes them: version 4 of RFC 9562."""
    assert all(message_id[12] == "4" and message_id[16] in "89ab" for message_id in journal.MESSAGE_IDS.values())


def test_those_that_were_published_stay() -> None:
    """A new kind joins this list with its id."""
    published = {
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
        "forward-dropped": "b44c1c05e529440b8e45f41f38514dbb",
        "lock-held": "b33698e556e847888db2e5be9c8f687b",
        "flannel-decides": "da9c4c8bdd514fcb8fc15e5068813fe2",
        "takeover-stopped": "cbf11a44000d4142b71360dc39d7a8e6",
        "flows-healed": "ad6a52f0965c43bfaf61d78957025853",
        "degraded": "f1470fb6fef94fe093da04eb86b42504",
        "hanging": "bdc17829d89b49ccab2333efc8d9b785",
        "stuck": "a167a408a9db4d1f83b2de305fd00e57",
        "rules-left": "76715cf74db54310899c217e9a9f30de",
        "unwritable": "0605c86b61824dca909e12448bbf4430",
        "contended": "929d2688f6994fe8935b535998e34001",
        "recovered": "3e79fd230120450db5de35e360353314",
        "reloaded": "011c048da86a4364853ef10c887399e3",
        "reload-refused": "7426cacce7b44ddf90c4229724d87da1",
        "plugin-failed": "d15ee9c2771f471c8d7adf544658f1ad",
        "notice": "23969de349bf4122b9d933c3d662c987",
    }
    assert published == journal.MESSAGE_IDS


@pytest.mark.parametrize("kind", journal.MESSAGE_IDS)
def test_an_event_carries_its_id(kind: str, records: Records) -> None:
    journal.emit(Event(kind, "100 % done"), logging.WARNING)
    (record,) = records.records
    assert (record.getMessage(), record.levelno) == ("100 % done", logging.WARNING)
    assert journal_fields(record) == {"MESSAGE_ID": journal.MESSAGE_IDS[kind]}


def test_an_event_carries_its_fields(records: Records) -> None:
    event = Event(
        "drift-repaired",
        "jump removed",
        family="ipv4",
        group="masquerade",
        backend="nft",
        reason="kernel event",
        duration_us=1234,
        culprit="iptables-restor",
        culprit_pid=8426,
        culprit_command="iptables-restore --noflush",
        culprit_unit="kube-proxy.service",
        diff="@@ ipv4 nft: ip flanneld-masq @@\n# missing\n+ table ip flanneld-masq",
    )
    assert all(getattr(event, field.name) for field in fields(event)), "every field is tried here"
    journal.emit(event)
    assert journal_fields(records.records[0]) == {
        "MESSAGE_ID": journal.MESSAGE_IDS["drift-repaired"],
        "FLANNELD_MASQ_FAMILY": "ipv4",
        "FLANNELD_MASQ_GROUP": "masquerade",
        "FLANNELD_MASQ_BACKEND": "nft",
        "FLANNELD_MASQ_REASON": "kernel event",
        "FLANNELD_MASQ_DURATION_US": "1234",
        "FLANNELD_MASQ_CULPRIT": "iptables-restor",
        "FLANNELD_MASQ_CULPRIT_PID": "8426",
        "FLANNELD_MASQ_CULPRIT_COMMAND": "iptables-restore --noflush",
        "FLANNELD_MASQ_CULPRIT_UNIT": "kube-proxy.service",
        "FLANNELD_MASQ_DIFF": "@@ ipv4 nft: ip flanneld-masq @@\n# missing\n+ table ip flanneld-masq",
    }


def test_an_event_without_an_id_is_a_bug(records: Records) -> None:
    with pytest.raises(KeyError):
        journal.emit(Event("nonsense", "hello"))


class TestWhereItGoes:
    @pytest.fixture
    def stderr(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Standard error is a file here, with a device and an inode to be named by."""
        with (tmp_path / "stderr").open("w", buffering=1) as file:
            monkeypatch.setattr(journal, "sys", SimpleNamespace(stderr=file))
            yield tmp_path / "stderr"

    @pytest.fixture(autouse=True)
    def systemd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package, module = ModuleType("systemd"), ModuleType("systemd.journal")
        module.JournalHandler = Records  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "systemd", package)
        monkeypatch.setitem(sys.modules, "systemd.journal", module)

    def stream(self, path: Path) -> str:
        status = path.stat()
        return f"{status.st_dev}:{status.st_ino}"

    def handler(self) -> logging.Handler:
        (handler,) = journal.LOGGER.handlers
        return handler

    def test_to_the_journal_if_that_is_what_stderr_is(self, stderr: Path) -> None:
        journal.set_up("info", {"JOURNAL_STREAM": self.stream(stderr)})
        handler = self.handler()
        assert isinstance(handler, Records)
        assert handler.fields == {"SYSLOG_IDENTIFIER": "flanneld-masq"}
        journal.emit(Event("notice", "hello"))
        assert [record.getMessage() for record in handler.records] == ["hello"]
        assert stderr.read_text() == ""

    @pytest.mark.parametrize("stream", [None, "", "1:2", "nonsense", "{}x", ":"])
    def test_else_to_stderr(self, stream: str | None, stderr: Path) -> None:
        environ = {} if stream is None else {"JOURNAL_STREAM": stream.format(self.stream(stderr))}
        journal.set_up("info", environ)
        journal.emit(Event("notice", "hello"))
        assert re.fullmatch(r"\S+ \S+ INFO hello\n", stderr.read_text())

    def test_a_redirected_stderr_of_a_service_is_no_journal(self, stderr: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("")
        journal.set_up("info", {"JOURNAL_STREAM": self.stream(tmp_path / "elsewhere")})
        assert not isinstance(self.handler(), Records)

    def test_without_the_binding_of_systemd(self, stderr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(cast("dict[str, Any]", sys.modules), "systemd.journal", None)  # as if absent
        journal.set_up("info", {"JOURNAL_STREAM": self.stream(stderr)})
        journal.emit(Event("notice", "hello"))
        assert "hello" in stderr.read_text()

    def test_a_stderr_without_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stderr = io.StringIO()
        monkeypatch.setattr(journal, "sys", SimpleNamespace(stderr=stderr))
        journal.set_up("info", {"JOURNAL_STREAM": "1:2"})
        journal.emit(Event("notice", "hello"))
        assert "hello" in stderr.getvalue()

    def test_setting_up_twice_does_not_say_things_twice(self, stderr: Path) -> None:
        for _ in range(2):
            journal.set_up("info", {})
        journal.emit(Event("notice", "hello"))
        assert stderr.read_text().count("hello") == 1

    @pytest.mark.parametrize(
        ("level", "said"),
        [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")],
    )
    def test_levels(self, level: str, said: str, stderr: Path) -> None:
        journal.set_up(level, {})
        for name in ("debug", "info", "warning", "error"):
            journal.emit(Event("notice", f"said-{name[0]}"), getattr(logging, name.upper()))
        assert re.findall("said-(.)", stderr.read_text()) == list(said)
        journal.set_level("error")
        assert not journal.LOGGER.isEnabledFor(logging.WARNING)
