"""How a command starts: a configuration or a subnet file that cannot be used ends it with one line."""

from __future__ import annotations

import stat

import pytest

from .program import Program


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


class TestNetConf:
    @pytest.mark.parametrize("text", ["{", '{"enableNFTables": "true"}', "[]"])
    @pytest.mark.parametrize(
        "command", ["render --backend nft", "explain --ours --src 10.244.1.5 --dst 1.1.1.1", "backends"]
    )
    def test_a_bad_one_is_a_warning_and_taken_as_missing(self, command: str, text: str, masq: Program) -> None:
        without = masq(command)
        net_conf = masq.directory / "net-conf.json"
        net_conf.write_text(text)
        masq.config_file.write_text(masq.config_file.read_text().replace("/none", str(net_conf)))
        done = masq(command)
        assert (done.status, done.out) == (0, without.out)
        (line,) = done.err.splitlines()
        assert line.startswith(f"flanneld-masq: {net_conf}: ") and line.endswith("; taken as if it were not there")


class TestSubnetFile:
    @pytest.mark.parametrize("command", ["render", "explain --ours --src 10.244.1.5 --dst 1.1.1.1"])
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
