"""The command line: options, exit status, and the commands that need neither root nor a kernel."""

from __future__ import annotations

import json
import logging
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flanneld_masq import __version__
from flanneld_masq.cli import commands, main
from flanneld_masq.inputs import config
from flanneld_masq.model import Holder
from flanneld_masq.service import journal
from flanneld_masq.state_directory import StateDirectory

COMMANDS = (
    "run",
    "plan",
    "apply",
    "status",
    "render",
    "explain",
    "backends",
    "selftest",
    "doctor",
    "monitor",
    "cleanup",
)
SUBNET = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """flanneld-masq in this process, with a configuration and a subnet file of the test."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capsys = capsys
        self.config_file = directory / "config.toml"
        self.subnet_file = directory / "subnet.env"
        self.subnet_file.write_text(SUBNET)
        self.configure()

    def configure(self, text: str = "") -> None:
        top = f'subnet_files = ["{self.subnet_file}"]\nnet_conf = "/none"\nstate_directory = "{self.directory}/state"\n'
        self.config_file.write_text(top + text)
        self.config_file.chmod(0o644)

    def __call__(self, line: str, *, options: bool = True) -> Done:
        """Run a command line; `options` says whether to name the configuration of the test before it."""
        argv = [*(["--config", str(self.config_file)] if options else []), *shlex.split(line)]
        self.capsys.readouterr()
        try:
            status = main.main(argv)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Done(status, *self.capsys.readouterr())


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """As it was before, after a test of `run`."""
    logger = journal.LOGGER
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture
def masq(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


class TestUsage:
    def test_every_command_is_tried_here(self, masq: Program) -> None:
        listed = masq("--help", options=False).out
        names = [line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
        assert tuple(names) == COMMANDS

    def test_help(self, masq: Program) -> None:
        done = masq("--help", options=False)
        assert (done.status, done.err) == (0, "")
        assert "exit status:" in done.out and "files:" in done.out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_each_command(self, command: str, masq: Program) -> None:
        done = masq(f"{command} --help", options=False)
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"usage: flanneld-masq {command} ")
        for option in ("--config", "--backend", "--subnet-file"):
            assert option in done.out
        assert ("--json" in done.out) == (command != "run")

    def test_version(self, masq: Program) -> None:
        assert masq("--version", options=False) == Done(0, f"flanneld-masq {__version__}\n", "")

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("", "COMMAND"),
            ("nonsense", "invalid choice: 'nonsense'"),
            ("plan extra", "unrecognized arguments: extra"),
            ("plan --nonsense", "unrecognized arguments: --nonsense"),
            ("plan --config", "expected one argument"),
            ("run --json", "unrecognized arguments: --json"),
            ("explain", "--src, --dst"),
            ("explain --src 10.0.0.1", "--dst"),
            ("explain --src x --dst 10.0.0.1", "'x' is not an IPv4 or IPv6 address"),
            ("explain --src 10.0.0.1/24 --dst 10.0.0.1", "'10.0.0.1/24' is not an IPv4 or IPv6 address"),
            ("explain --src 10.0.0.1 --dst 10.0.0.2 --mark x", "'x' is not a number"),
            ("explain --src 10.0.0.1 --dst 10.0.0.2 --mark -1", "-1 is not a mark of 32 bits"),
            ("explain --src 10.0.0.1 --dst 10.0.0.2 --mark 0x100000000", "is not a mark of 32 bits"),
        ],
    )
    def test_wrong_usage(self, line: str, problem: str, masq: Program) -> None:
        done = masq(line, options=False)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("usage: flanneld-masq")
        assert problem in done.err


class TestConfiguration:
    @pytest.mark.parametrize("command", ["plan", "apply", "render", "backends", "cleanup", "run"])
    def test_a_wrong_one_names_file_and_key(self, command: str, masq: Program) -> None:
        masq.configure("[masquerade]\nrandom_fuly = true\n")
        done = masq(command)
        assert (done.status, done.out) == (2, "")
        (line,) = done.err.splitlines()
        assert line.startswith(f"flanneld-masq: {masq.config_file}: masquerade.random_fuly: ")

    def test_an_unknown_backend(self, masq: Program) -> None:
        done = masq("render --backend ipfw")
        assert done.status == 2
        assert 'no plugin offers a backend "ipfw"; there are "auto", ' in done.err
        assert all(f'"{name}"' in done.err for name in ("nft", "iptables-nft", "iptables-legacy"))

    def test_one_that_others_can_write(self, masq: Program) -> None:
        masq.config_file.chmod(masq.config_file.stat().st_mode | stat.S_IWOTH)
        done = masq("render")
        assert done.status == 2
        assert str(masq.config_file) in done.err and "can be written by others" in done.err

    def test_a_missing_one_is_an_empty_one(self, masq: Program) -> None:
        masq.config_file.unlink()
        assert masq(f"render --backend nft --subnet-file {masq.subnet_file}").status == 0

    def test_a_bad_net_conf(self, masq: Program, tmp_path: Path) -> None:
        (tmp_path / "net-conf.json").write_text("{")
        masq.config_file.write_text(masq.config_file.read_text().replace("/none", f"{tmp_path}/net-conf.json"))
        done = masq("render")
        assert done.status == 2
        assert f"{tmp_path}/net-conf.json: cannot be read as JSON" in done.err


class TestSubnetFile:
    @pytest.mark.parametrize("command", ["render", "explain --src 10.244.1.5 --dst 1.1.1.1"])
    def test_there_is_none_yet(self, command: str, masq: Program) -> None:
        masq.subnet_file.unlink()
        done = masq(command)
        assert (done.status, done.out) == (1, "")
        assert f"there is no subnet file yet ({masq.subnet_file})" in done.err

    def test_a_bad_one_names_file_and_line(self, masq: Program) -> None:
        masq.subnet_file.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.245.1.1/24\n")
        done = masq("render")
        assert (done.status, done.out) == (1, "")
        assert f"{masq.subnet_file}, line 2: " in done.err


class TestOptions:
    """Before and after the command alike; the later one wins."""

    @pytest.mark.parametrize(
        "line",
        [
            "--config {config} --backend nft --subnet-file {subnet} render --json",
            "render --config {config} --backend nft --subnet-file {subnet} --json",
            "--backend nft render --json --subnet-file {subnet} --config {config}",
            "--backend iptables-nft --config /nonexistent render --backend nft --config {config} --json",
        ],
    )
    def test_anywhere(self, line: str, masq: Program) -> None:
        done = masq(line.format(config=masq.config_file, subnet=masq.subnet_file), options=False)
        assert (done.status, done.err) == (0, "")
        assert list(done.json["ipv4"]) == ["nft"]

    def test_several_subnet_files(self, masq: Program, tmp_path: Path) -> None:
        (tmp_path / "two.env").write_text("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n")
        both = f"--subnet-file {masq.subnet_file} --subnet-file {tmp_path}/two.env"
        for line in (f"{both} render --backend nft", f"render --backend nft {both}"):
            text = masq(line).out
            assert "ip saddr 10.244.1.0/24" in text and "ip saddr 10.42.7.0/24" in text

    def test_a_relative_subnet_file(self, masq: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert masq("render --backend nft --subnet-file subnet.env").status == 0


class TestRender:
    @pytest.mark.parametrize("backend", ["nft", "iptables-nft", "iptables-legacy"])
    def test_both_families_of_each_backend(self, backend: str, masq: Program) -> None:
        done = masq(f"render --backend {backend}")
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"# ipv4, {backend}\n")
        assert f"\n# ipv6, {backend}\n" in done.out
        for network in ("10.244.0.0/16", "fd00:10:244::/56"):
            assert network in done.out
        assert done.out.endswith("\n") and not done.out.endswith("\n\n")
        as_json = masq(f"render --backend {backend} --json").json
        assert done.out == "".join(f"# {family}, {backend}\n{found[backend]}" for family, found in as_json.items())

    def test_a_family_that_the_lease_does_not_name(self, masq: Program) -> None:
        masq.subnet_file.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n")
        assert list(masq("render --backend nft --json").json) == ["ipv4"]

    def test_groups_in_different_backends(self, masq: Program) -> None:
        masq.configure('backend = "nft"\n[forward]\nbackend = "iptables-legacy"\n')
        found = masq("render --json").json["ipv4"]
        assert list(found) == ["nft", "iptables-legacy"]
        assert "forward" not in found["nft"] and "*nat" not in found["iptables-legacy"]

    def test_auto_takes_the_preferred_one_without_asking_the_machine(self, masq: Program) -> None:
        assert list(masq("render --json").json["ipv4"]) == ["nft"]

    def test_nothing_is_written_anywhere(self, masq: Program) -> None:
        masq("render")
        assert sorted(found.name for found in masq.directory.iterdir()) == ["config.toml", "subnet.env"]


class TestExplain:
    def test_a_packet_to_the_world(self, masq: Program) -> None:
        done = masq("explain --src 10.244.1.5 --dst 1.1.1.1")
        assert (done.status, done.err) == (0, "")
        first, second, third = done.out.splitlines()
        assert first == "10.244.1.5 -> 1.1.1.1: masqueraded"
        assert second.startswith("  decided by row 6 (masquerade, flanneld-masq:")
        assert third.startswith("  because pods (10.244.0.0/16) reach the world")

    @pytest.mark.parametrize(
        ("packet", "row", "masquerade"),
        [
            ("--src 10.244.1.5 --dst 1.1.1.1", "6", True),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 0x4000", "1", False),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 16384", "1", False),
            ("--src 10.244.1.5 --dst 1.1.1.1 --mark 0x8000", "6", True),
            ("--src 10.244.1.5 --dst 10.244.2.5", "2", False),
            ("--src 1.1.1.1 --dst 10.244.1.5", "3", False),
            ("--src 192.0.2.1 --dst 10.244.2.5", "7", True),
            ("--src 10.244.1.5 --dst 224.0.0.1", None, False),
            ("--src fd00:10:244:1::5 --dst 2001:db8::1", "6", True),
        ],
    )
    def test_as_json(self, packet: str, row: str | None, masquerade: bool, masq: Program) -> None:
        done = masq(f"explain --json {packet}")
        assert (done.status, done.err) == (0, "")
        assert (done.json["row"], done.json["masquerade"]) == (row, masquerade)
        assert done.json["family"] == ("ipv6" if "fd00" in packet else "ipv4")
        assert done.json["why"]
        assert set(done.json) == {"family", "masquerade", "row", "verdict", "tag", "why"}

    def test_no_rule(self, masq: Program) -> None:
        out = masq("explain --src 192.0.2.1 --dst 1.1.1.1 --mark 5").out
        assert "192.0.2.1 -> 1.1.1.1, mark 0x5: keeps its source address" in out
        assert "decided by no rule" in out and "nothing to do with pods" in out

    def test_no_rules(self, masq: Program) -> None:
        masq.configure("[masquerade]\nenabled = false\n")
        assert "there are no masquerade rules for ipv4" in masq("explain --src 10.244.1.5 --dst 1.1.1.1").out

    def test_the_rule_is_the_one_that_is_written(self, masq: Program) -> None:
        tag = masq("explain --src 10.244.1.5 --dst 1.1.1.1 --json").json["tag"]
        assert masq("render --backend iptables-nft").out.count(f'"flanneld-masq:{tag}"') == 1

    def test_settings_count(self, masq: Program) -> None:
        masq.configure('[masquerade]\nnon_masquerade_cidrs = ["192.168.0.0/16"]\n')
        assert masq("explain --src 10.244.1.5 --dst 192.168.1.1 --json").json["row"] == "4"

    def test_two_families(self, masq: Program) -> None:
        done = masq("explain --src 10.244.1.5 --dst ::1")
        assert (done.status, done.out) == (2, "")
        assert "::1 is not of the same family as 10.244.1.5" in done.err


class TestStatus:
    """Without a bus, as somebody for whom the lock is or is not."""

    @pytest.fixture(autouse=True)
    def no_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")

    @pytest.fixture
    def store(self, masq: Program) -> StateDirectory:
        masq.subnet_file.unlink()  # so the kernel is left alone
        return StateDirectory(masq.directory / "state")

    def test_a_running_daemon_whose_lock_is_for_root_alone(
        self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.write_status({"state": "synced", "pid": os.getpid(), "families": {}})
        monkeypatch.setattr(StateDirectory, "holder", lambda _: Holder(True, os.getpid(), "status.json says so"))
        assert masq("status").out == f"flanneld-masq: synced, pid {os.getpid()}\n"

    def test_it_cannot_tell(self, masq: Program, store: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StateDirectory, "holder", lambda _: Holder(None, 0, "the lock is for root"))
        done = masq("status")
        assert (done.status, done.out.splitlines()[0]) == (0, "flanneld-masq: unknown")
        assert "whether the daemon runs cannot be told: the lock is for root; " in done.out

    @pytest.mark.parametrize(
        "left", [None, {"state": "stopped", "pid": 7, "families": {}}, {"state": "synced", "pid": 7}]
    )
    def test_a_daemon_that_has_said_nothing_yet(self, left: Any, masq: Program, store: StateDirectory) -> None:
        if left is not None:  # by the one before
            store.write_status(left)
        with store.instance():
            done = masq("status")
        assert (done.status, done.out.splitlines()[0]) == (0, f"flanneld-masq: unknown, pid {os.getpid()}")
        assert f"trouble: the daemon says nothing of itself: {masq.directory}/state/lock is held; " in done.out

    def test_a_wrong_configuration_is_a_trouble_of_the_daemon_that_goes_on(
        self, masq: Program, store: StateDirectory
    ) -> None:
        lines = [f"flanneld-masq: synced, pid {os.getpid()}", f"  trouble: {masq.config_file}: colour: unknown key"]
        status = {"state": "synced", "pid": os.getpid(), "troubles": [], "families": {}}
        masq.configure("colour = 1\n")
        with store.instance():
            store.write_status(status)
            done = masq("status")
            assert (done.status, done.err) == (2, "")
            assert [line.split(";")[0] for line in done.out.splitlines()] == lines
            refused = f"{masq('plan').err.partition(': ')[2].strip()}; the running settings stay"
            store.write_status({**status, "troubles": [refused]})
            assert masq("status").out.splitlines()[1:] == [f"  trouble: {refused}"], "it is not said twice"
            assert masq("status --json").json["troubles"] == [refused]

    def test_a_wrong_configuration_and_no_daemon(self, masq: Program, store: StateDirectory) -> None:
        masq.configure("colour = 1\n")
        done = masq("status")
        assert (done.status, done.err, done.out.splitlines()[0]) == (2, "", "flanneld-masq: stopped")
        assert f"  trouble: {masq.config_file}: colour: unknown key" in done.out

    def test_a_wrong_command_line_is_no_trouble_of_the_daemon(self, masq: Program) -> None:
        done = masq("status --backend ipfw")
        assert (done.status, done.out) == (2, "")

    def test_doctor_goes_on_with_the_daemon(self, masq: Program, store: StateDirectory) -> None:
        family = {"ipv4": {"state": "degraded", "last_error": "nft said no"}}
        masq.configure("colour = 1\n")
        with store.instance():
            store.write_status({"state": "degraded", "pid": os.getpid(), "families": family})
            done = masq("doctor --json")
        assert (done.status, done.err) == (2, "")
        said = [(found["what"], found["evidence"]) for found in done.json["findings"]]
        assert said[0][0].startswith("the configuration is wrong")
        assert said[0][1].startswith(f"{masq.config_file}: colour: unknown key")
        assert said[1] == ("the daemon is degraded", "nft said no")

    def test_what_a_daemon_did_is_told_after_its_end(self, masq: Program, store: StateDirectory) -> None:
        culprit = {"name": "nft", "pid": 8426, "command": "nft flush ruleset", "unit": "nftables.service"}
        last = {"time": "then", "backend": "nft", "reason": "ruleset changed", "drift": True, "duration_us": 1000}
        family = {"state": "synced", "last_error": "", "groups": {}, "repairs": 3}
        family["last_repair"] = {**last, "changes": [], "culprits": [culprit]}
        store.write_status({"state": "synced", "pid": 99999999, "families": {"ipv4": family}})  # it was killed
        done = masq("status")
        assert done.status == 0
        assert (
            "ipv4: stopped\n  repairs: 3\n  last write: then, drift repaired in 1.0 ms (ruleset changed)\n" in done.out
        )
        assert "    changed by nft (pid 8426) nftables.service\n" in done.out
        assert masq("status --json").json["families"]["ipv4"]["last_repair"] == family["last_repair"]


class TestEnds:
    """What `main` makes of what a command raises."""

    def ends(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
        def fail(options: object) -> int:
            raise error

        monkeypatch.setattr(commands, "status", fail)
        return main.main(["status"])

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ends(KeyboardInterrupt(), monkeypatch) == 130

    def test_a_bug_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ZeroDivisionError):
            self.ends(ZeroDivisionError(), monkeypatch)

    def test_a_reader_that_went_away(self, masq: Program) -> None:
        argv = (sys.executable, "-m", "flanneld_masq", "--config", str(masq.config_file), "render", "--json")
        root = str(Path(main.__file__).parents[2])
        reader, writer = os.pipe()
        os.close(reader)
        try:
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
            done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30, env=environ)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (1, "")


class Entries(logging.Handler):
    """What would go to the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.levelno, vars(record)["MESSAGE_ID"], self.format(record)))


class TestTheDaemonEnds:
    """Under the journal, by one entry that people alert on; at a terminal, by one line as every command."""

    @pytest.fixture(autouse=True)
    def no_file_behind_stderr(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("faulthandler.enable", lambda: None)

    @pytest.fixture
    def entries(self, monkeypatch: pytest.MonkeyPatch) -> Entries:
        found = Entries()
        monkeypatch.setattr(journal, "_stderr_is_journal", lambda environ: True)
        monkeypatch.setattr(journal, "_journal_handler", lambda: found)
        return found

    def test_by_a_wrong_configuration(self, masq: Program, entries: Entries) -> None:
        masq.configure("colour = 1\n[log]\nlevel = 'error'\n")
        assert masq("run") == Done(2, "", "")
        ((level, message_id, message),) = entries.found
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert message.startswith(f"{masq.config_file}: colour: ")

    def test_by_another_instance(self, masq: Program, entries: Entries) -> None:
        with StateDirectory(masq.directory / "state").instance():
            assert masq("run") == Done(1, "", "")
        ((level, message_id, message),) = entries.found
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert f"pid {os.getpid()}" in message

    def test_by_a_state_directory_that_it_may_not_use(self, masq: Program, entries: Entries) -> None:
        (masq.directory / "state").write_text("")
        assert masq("run") == Done(2, "", "")
        ((_, _, message),) = entries.found
        assert message.startswith(f"{masq.config_file}: state_directory: state directory {masq.directory}/state cannot")

    def test_by_a_bug(self, masq: Program, entries: Entries, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands.plugin_loader, "load", lambda: 1 / 0)
        assert masq("run") == Done(1, "", "")
        ((level, message_id, message),) = entries.found
        assert (level, message_id) == (logging.ERROR, journal.MESSAGE_IDS["failed"])
        assert message.startswith("internal error: ZeroDivisionError('division by zero')\nTraceback (most recent")

    def test_at_a_terminal(self, masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        with StateDirectory(masq.directory / "state").instance():
            done = masq("run")
        assert (done.status, done.err.count("another flanneld-masq runs")) == (1, 1)
        monkeypatch.setattr(commands.plugin_loader, "load", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masq("run")


def test_the_default_configuration_is_the_documented_one() -> None:
    options = main.parser().parse_args(["status"])
    assert options.config == "/etc/flanneld-masq/config.toml"
    assert (options.backend, options.subnet_file) == (None, None)
    assert config.with_overrides(config.parse("", "x"), options.backend, options.subnet_file or ()) == config.parse(
        "", "x"
    )
