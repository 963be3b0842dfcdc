"""When the status is written, and what the metrics file says after the end of the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from textwrap import dedent

import pytest

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.errors import StateError
from flanneld_masq.model import Family
from flanneld_masq.process import ExitHook
from flanneld_masq.service.status_files import MetricsFile, StatusFiles, ready_path
from flanneld_masq.state_directory import StateDirectory

from ...common import eventually, patience

AT = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
SYNCED, STOPPED = 'flanneld_masq_state{state="synced"} 1', 'flanneld_masq_state{state="stopped"} 1'


def status(seconds: float = 0.0, ipv6: float = 0.0) -> Status:
    times = {Family.IPV4: seconds, Family.IPV6: ipv6}
    families = {
        name: FamilyStatus(State.SYNCED, verified=AT + timedelta(seconds=after)) for name, after in times.items()
    }
    return Status(State.SYNCED, families=families)


class TestDue:
    @pytest.fixture
    def files(self, tmp_path: Path) -> StatusFiles:
        files = StatusFiles(StateDirectory(tmp_path / "state"))
        files.write_metrics(status(), "")
        files.write_status(status())
        return files

    def test_what_was_never_written(self, tmp_path: Path) -> None:
        assert StatusFiles(StateDirectory(tmp_path)).is_due(status(), 60)

    def test_what_is_new(self, files: StatusFiles) -> None:
        assert files.is_due(replace(status(), troubles=("x",)), 60)

    @pytest.mark.parametrize(
        ("now", "due"),
        [
            (status(0), False),
            (status(1, 1), False),
            (status(29, 29), False),
            (status(59.9), True),
            (status(0, 60), True),
            (status(-3600), True),
        ],
        ids=["the same", "an event", "events", "a resync", "a resync of IPv6", "the clock was set back"],
    )
    def test_an_old_verification(self, files: StatusFiles, now: Status, due: bool) -> None:
        assert files.is_due(now, 60) is due

    def test_a_first_verification(self, tmp_path: Path) -> None:
        files = StatusFiles(StateDirectory(tmp_path / "state"))
        files.write_status(Status(State.SYNCED, families={Family.IPV4: FamilyStatus(State.SYNCED)}))
        assert files.is_due(replace(status(), families={Family.IPV4: status().families[Family.IPV4]}), 60)

    def test_what_could_not_be_written(self, files: StatusFiles, tmp_path: Path) -> None:
        files.write_metrics(status(), str(tmp_path / "none" / "m.prom"))
        assert files.failures == (f"{tmp_path}/none/m.prom cannot be written: No such file or directory",)
        assert files.is_due(status(), 60)
        files.write_metrics(status(), "")
        assert not files.failures and not files.is_due(status(), 60)


class TestMetricsFile:
    def test_a_clean_end_leaves_the_file_alone(self, tmp_path: Path) -> None:
        path, metrics = tmp_path / "m.prom", MetricsFile()
        metrics.write(str(path), status())
        assert SYNCED in path.read_text() and STOPPED in ready_path(path).read_text()
        metrics.close()
        assert list(tmp_path.iterdir()) == [path]
        assert SYNCED in path.read_text()

    def test_a_process_killed_while_it_ends_leaves_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, metrics = tmp_path / "m.prom", MetricsFile()
        metrics.write(str(path), status())
        left: list[Path] = []
        cancel = ExitHook.cancel

        def killed(hook: ExitHook) -> None:
            left.extend(tmp_path.iterdir())
            cancel(hook)

        monkeypatch.setattr(ExitHook, "cancel", killed)
        metrics.close()
        assert left == [path]

    def test_another_file_replaces_the_one_before(self, tmp_path: Path) -> None:
        before, after, metrics = tmp_path / "before.prom", tmp_path / "after.prom", MetricsFile()
        metrics.write(str(before), status())
        metrics.write(str(after), status())
        assert set(tmp_path.iterdir()) == {after, ready_path(after)}
        metrics.remove()
        assert not list(tmp_path.iterdir())
        metrics.remove()

    def test_a_shell_that_another_program_ended_is_replaced(self, tmp_path: Path) -> None:
        metrics = MetricsFile()
        metrics.write(str(tmp_path / "m.prom"), status())
        first = metrics._hook
        assert first is not None
        metrics.write(str(tmp_path / "m.prom"), status())
        assert metrics._hook is first
        first._shell.kill()
        first._shell.wait()
        metrics.write(str(tmp_path / "m.prom"), status())
        assert metrics._hook is not None and metrics._hook is not first and metrics._hook.waits
        metrics.close()

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        metrics = MetricsFile()
        with pytest.raises(StateError, match=r"m\.prom cannot be written"):
            metrics.write(str(tmp_path / "none" / "m.prom"), status())
        metrics.close()

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=lambda number: number.name)
    def test_a_killed_daemon_is_stopped(self, number: signal.Signals, tmp_path: Path) -> None:
        """A process that is killed writes nothing; and its tools may outlive it."""
        path = tmp_path / "m.prom"
        program = f"""
            import pathlib, subprocess, sys
            from flanneld_masq.controller.status import State, Status
            from flanneld_masq.service.status_files import MetricsFile
            metrics = MetricsFile()
            for version in "12":
                metrics.write({str(path)!r}, Status(State.SYNCED, version=version))
            tool = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
            print(tool.pid, flush=True)
            sys.stdin.read()
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(
            (sys.executable, "-c", dedent(program)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdout is not None
            tool = int(process.stdout.readline())
            try:
                assert SYNCED in path.read_text()
                process.send_signal(number)
                assert process.wait(patience(10)) == -number
                eventually(lambda: STOPPED in path.read_text())
                text = path.read_text()
                assert SYNCED not in text and 'build_info{version="2"} 1' in text
                assert list(tmp_path.iterdir()) == [path]
            finally:
                os.kill(tool, signal.SIGKILL)
