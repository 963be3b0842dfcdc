"""Who changed the ruleset, as far as /proc still knows."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from flanneld_masq.controller.attribution import (
    MAX_NAMED,
    Culprit,
    OwnPorts,
    identify,
    in_initial_pid_namespace,
    suspects,
)
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.process import ProcessRunner


class Proc:
    """A /proc with processes that the test made up."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, pid: int, comm: str, cmdline: bytes = b"", cgroup: str = "0::/\n") -> None:
        directory = self.root / "proc" / str(pid)
        directory.mkdir(parents=True)
        (directory / "comm").write_text(f"{comm}\n")
        (directory / "cmdline").write_bytes(cmdline)
        (directory / "cgroup").write_text(cgroup)

    def identify(self, pid: int, name: str) -> Culprit:
        return identify(Transaction(1, pid, name), self.root)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_a_process_that_lives_is_known_by_its_command_line(proc: Proc) -> None:
    proc.add(42, "nft", b"nft\0-f\0/etc/nftables.conf\0")
    found = proc.identify(42, "nft")
    assert found == Culprit("nft", 42, "nft -f /etc/nftables.conf")
    assert str(found) == "nft (pid 42)", "a command line may hold a secret"


def test_a_process_that_is_gone_is_known_by_name_and_pid(proc: Proc) -> None:
    found = proc.identify(42, "iptables-restor")
    assert found == Culprit("iptables-restor", 42)
    assert str(found) == "iptables-restor (pid 42)"


def test_another_process_with_the_same_pid_is_not_blamed(proc: Proc) -> None:
    proc.add(42, "bash", b"bash\0", "0::/system.slice/ssh.service\n")
    assert proc.identify(42, "nft") == Culprit("nft", 42)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/firewalld.service\n", "firewalld.service"),
        ("0::/system.slice/system-docker.slice/docker@a.service/init\n", "docker@a.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("12:pids:/system.slice/ufw.service\n1:name=systemd:/system.slice/ufw.service\n0::/\n", "ufw.service"),
        ("0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-0123.scope\n", "cri-containerd-0123.scope"),
        ("0::/../../system.slice/kubelet.service\n", "kubelet.service"),
        ("0::/user.slice\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_systemd_is_read_from_the_cgroup(proc: Proc, cgroup: str, unit: str) -> None:
    proc.add(42, "dockerd", b"/usr/bin/dockerd\0-H\0fd://\0", cgroup)
    assert proc.identify(42, "dockerd").unit == unit


def test_the_unit_is_said_and_the_command_line_is_not(proc: Proc) -> None:
    proc.add(42, "firewalld", b"/usr/bin/python3\0/usr/sbin/firewalld\0", "0::/system.slice/firewalld.service\n")
    said = str(proc.identify(42, "firewalld"))
    assert said == "firewalld (pid 42, firewalld.service)"


def test_a_kernel_thread_or_a_zombie_has_no_command_line(proc: Proc) -> None:
    proc.add(42, "kworker/0:1", b"")
    assert str(proc.identify(42, "kworker/0:1")) == "kworker/0:1 (pid 42)"


def test_a_name_with_blanks_in_it_is_compared_whole(proc: Proc) -> None:
    proc.add(42, "a b", b"a\0b\0")
    assert proc.identify(42, "a b").command == "a b"
    proc.add(43, " name ", b"name\0")
    assert proc.identify(43, " name ") == Culprit("name", 43, "name")
    assert proc.identify(43, "name") == Culprit("name", 43)


def test_what_is_not_text_does_no_harm(proc: Proc) -> None:
    proc.add(42, "nft", b"nft\0\xff\xfe\0")
    assert proc.identify(42, "nft").command.startswith("nft ")


def test_the_message_stays_on_one_line_whatever_the_command_line(proc: Proc) -> None:
    proc.add(42, "sh", b"sh\0-c\0nft flush ruleset\nsleep 1\r\x1b[31m\0")
    found = proc.identify(42, "sh")
    assert str(found).isprintable()
    assert found.command == r"sh -c nft flush ruleset\nsleep 1\r\x1b[31m"
    assert str(proc.identify(43, "x\nERROR all is lost\x1b")) == r"x\nERROR all is lost\x1b (pid 43)"


def test_a_command_line_without_end_is_cut(proc: Proc) -> None:
    proc.add(42, "sh", b"sh\0-c\0" + b"nft flush ruleset; " * 10_000)
    command = proc.identify(42, "sh").command
    assert len(command) == 300
    assert command.endswith("...")


def transactions(*names: str) -> list[Transaction]:
    return [Transaction(number, 100 + number, name) for number, name in enumerate(names)]


def test_each_program_is_named_once_by_its_latest_transaction(proc: Proc) -> None:
    assert suspects(transactions("nft", "kube-proxy", "nft"), root=proc.root) == (
        Culprit("kube-proxy", 101),
        Culprit("nft", 102),
    )


def test_of_many_the_latest_are_named(proc: Proc) -> None:
    found = suspects(transactions("a", "b", "c", "d", "a"), root=proc.root)
    assert len(found) == MAX_NAMED
    assert [culprit.name for culprit in found] == ["c", "d", "a"]


def test_nobody_is_named_where_nobody_committed(proc: Proc) -> None:
    assert suspects((), root=proc.root) == ()


@pytest.mark.parametrize(("link", "initial"), [("pid:[4026531836]", True), ("pid:[4026532201]", False)])
def test_the_initial_pid_namespace_has_a_fixed_number(tmp_path: Path, link: str, initial: bool) -> None:
    directory = tmp_path / "proc/self/ns"
    directory.mkdir(parents=True)
    (directory / "pid").symlink_to(link)
    assert in_initial_pid_namespace(tmp_path) == initial


def test_a_kernel_without_pid_namespaces_has_the_initial_one(tmp_path: Path) -> None:
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    assert in_initial_pid_namespace(tmp_path)


def test_without_proc_no_pid_is_known(tmp_path: Path) -> None:
    assert not in_initial_pid_namespace(tmp_path)


def test_in_a_pid_namespace_no_process_is_looked_up(proc: Proc) -> None:
    proc.add(42, "nft", b"nft\0-f\0/etc/nftables.conf\0", "0::/system.slice/nftables.service\n")
    transaction = Transaction(1, 42, "nft")
    (culprit,) = suspects([transaction], root=proc.root, pids_known=False)
    assert culprit == identify(transaction, proc.root, pid_known=False) == Culprit("nft", 0)
    assert str(culprit) == "nft (pid not known in a pid namespace)"


def test_ports_of_own_sockets_and_programs_are_own() -> None:
    run = ProcessRunner()
    run(("true",))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as opened:
        port = 1 << 30 | os.getpid()  # a socket of another netlink protocol may have the pid itself as port
        opened.bind((port, 0))
        assert port in OwnPorts([run])
        assert run.started_pids[-1] in OwnPorts([run])
        assert run.started_pids[-1] not in OwnPorts([])
    assert port not in OwnPorts([])
    assert 0 not in OwnPorts([run]), "an event without a port"
