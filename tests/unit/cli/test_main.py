"""The command line: usage, options, and the exit status after an exception."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flanneld_masq import __version__
from flanneld_masq.cli import main, status
from flanneld_masq.inputs import config

from .program import COMMANDS, Done, Program


class TestUsage:
    def test_every_command_is_tried_here(self, masq: Program) -> None:
        listed = masq("--help", options=False).out
        names = [line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
        assert tuple(names) == COMMANDS

    def test_every_command_is_in_the_readme(self) -> None:
        table = (Path(__file__).parents[3] / "README.md").read_text().split("\n| command |")[1].split("\n\n")[0]
        assert sorted(re.findall(r"^\| `(\w+)", table, re.MULTILINE)) == sorted(COMMANDS)

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
        assert ("--json" in done.out) == (command not in ("run", "metrics"))

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
            ("trace", "--src, --dst"),
            ("trace --src x --dst 10.0.0.1", "'x' is not an IPv4 or IPv6 address"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --proto gre", "'gre' is not one of icmp, tcp"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --proto 256", "nor a number from 1 to 255"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --dport 65536", "is not a port from 1 to 65535"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --seconds 0", "is not a number of seconds up to 3600"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --seconds nan", "is not a number of seconds up to 3600"),
            ("trace --src 10.0.0.1 --dst 10.0.0.2 --packets 1001", "is not a number from 1 to 1000"),
            ("probe --dst moon", "invalid choice: 'moon'"),
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


class TestEnds:
    """The exit status after an exception of a command."""

    def ends(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
        def fail(options: object) -> int:
            raise error

        monkeypatch.setattr(status, "status", fail)
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


def test_the_default_configuration_is_the_documented_one() -> None:
    options = main.parser().parse_args(["status"])
    assert options.config == "/etc/flanneld-masq/config.toml"
    assert (options.backend, options.subnet_file) == (None, None)
    assert config.with_overrides(config.parse("", "x"), options.backend, options.subnet_file or ()) == config.parse(
        "", "x"
    )
