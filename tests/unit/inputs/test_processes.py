"""Processes are found in /proc."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from flanneld_masq.inputs.processes import is_of_the_program, is_running, read_process, recent_processes

from ...common import eventually

NAMES = (b"iptables\n", b"iptables-l")


def process(root: Path, pid: int, name: bytes, command: bytes = b"x\0") -> None:
    (root / str(pid)).mkdir()
    (root / str(pid) / "comm").write_bytes(name + b"\n")
    (root / str(pid) / "cmdline").write_bytes(command)
    (root / str(pid) / "cgroup").write_bytes(b"0::/system.slice/evil.service\n")


def test_recent_processes_are_found_by_name_the_latest_first(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("0.00 0.01 0.05 1/345 42\n")
    process(tmp_path, 42, b"iptables-legacy")
    process(tmp_path, 41, b"iptables-nft")
    process(tmp_path, 39, b"iptables", b"")
    process(tmp_path, 38, b"iptables")
    names = [(one.pid, one.name, one.command) for one in recent_processes(NAMES, 4, str(tmp_path))]
    assert names == [(42, b"iptables-legacy\n", b"x\0"), (39, b"iptables\n", b"")]


@pytest.mark.parametrize("loadavg", [None, "", "0.00 0.01 0.05 1/345 x", "0 0 0 0/0 -1", "2"])
def test_without_a_last_pid_there_is_none(tmp_path: Path, loadavg: str | None) -> None:
    process(tmp_path, 9, b"iptables")
    if loadavg is not None:
        (tmp_path / "loadavg").write_text(loadavg)
    assert list(recent_processes(NAMES, 4, str(tmp_path))) == []


def test_first_pids_end_the_search(tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text("0 0 0 1/1 2")
    process(tmp_path, 1, b"iptables")
    assert [one.pid for one in recent_processes(NAMES, 9, str(tmp_path))] == [1]


def test_process_that_has_ended_is_none(tmp_path: Path) -> None:
    assert read_process(7, str(tmp_path)) is None
    assert not is_running(7, str(tmp_path))


def test_real_process_and_its_end() -> None:
    child = subprocess.Popen(("sleep", "60"))
    try:
        eventually(lambda: is_running(child.pid))  # the kernel shows no command line until exec is complete
        found = read_process(child.pid)
        assert found is not None
        assert (found.pid, bool(found.cgroup)) == (child.pid, True)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(child.pid), "a zombie has a name, and no command line"
        zombie = read_process(child.pid)
        assert zombie is not None
        assert (zombie.name, zombie.command) == (found.name, b"")
    finally:
        child.kill()
        child.wait()


def test_the_program_is_known_by_its_command_line(tmp_path: Path) -> None:
    process(tmp_path, 7, b"python3", b"/usr/bin/python3\0-I\0/usr/bin/flanneld-masq\0run\0")
    process(tmp_path, 8, b"systemd", b"/sbin/init\0")
    assert [is_of_the_program(str(tmp_path / name)) for name in ("7", "8", "9")] == [True, False, False]


def test_a_hidden_command_line_may_be_that_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid=1 a process can be seen, and its command line cannot be read."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    assert is_of_the_program(str(tmp_path))
