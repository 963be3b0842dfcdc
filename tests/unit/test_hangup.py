"""SIGHUP at any moment of a start, a run or a stop: it never ends the process, and no request is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.hangup import Hangup

from ..common import as_from_a_terminal, eventually, patience


@pytest.fixture
def hangup() -> Iterator[Hangup]:
    before = signal.getsignal(signal.SIGHUP)
    yield Hangup()
    signal.signal(signal.SIGHUP, before)


def send() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_one_that_comes_early_is_passed_on_later(hangup: Hangup) -> None:
    calls: list[int] = []
    hangup.hold()
    send()
    send()
    hangup.pass_on(lambda: calls.append(1))
    assert calls == [1]
    hangup.forget()
    send()
    assert calls == [1, 1]


def test_many_that_come_before_an_answer_are_one_request(hangup: Hangup) -> None:
    calls: list[int] = []
    hangup.pass_on(lambda: calls.append(1))
    for _ in range(3):
        send()
    assert calls == [1]
    hangup.forget()
    send()
    assert calls == [1, 1]


def test_one_before_the_configuration_is_read_asks_for_nothing(hangup: Hangup) -> None:
    calls: list[int] = []
    hangup.hold()
    send()
    hangup.forget()
    hangup.pass_on(lambda: calls.append(1))
    assert calls == []


def test_one_at_the_end_is_ignored(hangup: Hangup) -> None:
    calls: list[int] = []
    hangup.pass_on(lambda: calls.append(1))
    hangup.ignore()
    send()
    assert calls == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def takes_it(pid: int) -> bool:
    """Return True if the process has a handler for SIGHUP, or ignores it: signal 1 is the lowest bit of the masks."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool((int(lines["SigCgt"], 16) | int(lines["SigIgn"], 16)) & 1)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'subnet_files = ["{tmp_path}/subnet.env"]\nnet_conf = "{tmp_path}/n"\nstate_directory = "{tmp_path}/state"\n'
        f"[dbus]\nenabled = false\n"
    )
    return path


def test_a_daemon_survives_it_from_its_first_line_to_its_last(config: Path, tmp_path: Path) -> None:
    argv = (sys.executable, "-m", "flanneld_masq", "--config", str(config), "run")
    status, environment = tmp_path / "state" / "status.json", {**os.environ, "NOTIFY_SOCKET": ""}
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(argv, stderr=stderr, env=environment) as daemon:
        try:
            eventually(lambda: takes_it(daemon.pid))
            assert not status.exists(), "it is not ready yet"

            def shaken(path: Path, text: str) -> bool:
                daemon.send_signal(signal.SIGHUP)
                assert daemon.poll() is None
                return path.exists() and text in path.read_text()

            eventually(lambda: shaken(status, '"waiting"'))
            daemon.terminate()

            def ended() -> bool:
                daemon.send_signal(signal.SIGHUP)
                return daemon.poll() is not None

            eventually(ended)
            assert daemon.wait(patience(5)) == 0
            assert "configuration reloaded" in log.read_text()
        finally:
            daemon.kill()


@pytest.mark.parametrize("command", ["plan", "render"])
def test_other_commands_end_with_their_terminal(command: str) -> None:
    program = "import flanneld_masq.cli.main, signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)"
    argv = (sys.executable, "-c", program, command)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=patience(10), preexec_fn=as_from_a_terminal)
    assert done.stdout == "True\n"
