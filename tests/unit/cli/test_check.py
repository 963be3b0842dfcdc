"""The command `check`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.cli import check
from flanneld_masq.model import AUTO

from .program import Program


@pytest.fixture(autouse=True)
def no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if plugins are loaded: their code is foreign."""

    def load() -> None:
        raise AssertionError("plugins are loaded")

    monkeypatch.setattr(plugin_loader, "load", load)


def test_the_built_in_backends_are_those_of_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {AUTO, *plugin_loader.load().backends} == check.BUILT_IN


class TestInForce:
    def test_valid(self, masq: Program) -> None:
        done = masq("check")
        assert (done.status, done.out, done.err) == (0, f"{masq.config_file}: valid\n", "")

    def test_there_is_none(self, masq: Program) -> None:
        masq.config_file.unlink()
        assert masq("check").out == f"{masq.config_file}: missing, so every key has its default\n"
        assert masq("check --json").json == {"valid": True, "files": [], "error": None}

    def test_drop_ins_are_read(self, masq: Program) -> None:
        drop_in = masq.directory / "config.d" / "a.toml"
        drop_in.parent.mkdir()
        drop_in.write_text("log.level = 'debug'")
        assert masq("check").out == f"{masq.config_file}: valid\n{drop_in}: valid\n"
        drop_in.write_text("log.level = 1")
        done = masq("check")
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith(f"flanneld-masq: {drop_in}: log.level: expected one of ")

    def test_an_error_as_data(self, masq: Program) -> None:
        masq.configure("[masquerade]\nenabled = 5\n")
        done = masq("check --json")
        error = {"file": str(masq.config_file), "key": "masquerade.enabled"}
        error["reason"] = "expected true or false, found the number 5"
        assert (done.status, done.err) == (2, "")
        assert done.json == {"valid": False, "files": [str(masq.config_file)], "error": error}

    def test_others_may_write_it(self, masq: Program) -> None:
        masq.config_file.chmod(0o666)
        assert "can be written by others" in masq("check").err

    def test_options_are_validated_too(self, masq: Program) -> None:
        assert masq("check --backend Nft").status == 2


class TestFile:
    def test_valid(self, masq: Program, tmp_path: Path) -> None:
        masq.configure("nonsense = 1\n")
        new = tmp_path / "new"
        new.write_text("log.level = 'debug'")
        new.chmod(0o666)
        if os.geteuid() == 0:
            os.chown(new, 1234, 1234)  # where Ansible writes it before it is put in place
        done = masq(f"check {new}")
        assert (done.status, done.out) == (0, f"{new}: valid\n")

    @pytest.mark.parametrize(
        ("text", "problem"),
        [("log.level = 1", "log.level: expected"), ("[", "is not valid TOML"), (None, "No such file")],
    )
    def test_invalid(self, text: str | None, problem: str, masq: Program, tmp_path: Path) -> None:
        new = tmp_path / "new"
        if text is not None:
            new.write_text(text)
        done = masq(f"check {new}")
        assert (done.status, done.out) == (2, "")
        assert f"flanneld-masq: {new}: " in done.err
        assert problem in done.err


def test_a_backend_of_a_plugin(masq: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    masq.configure("[forward]\nbackend = 'ipfw'\n")
    done = masq("check")
    assert done.status == 2
    assert "forward.backend: " in done.err and '"ipfw"' in done.err and '"iptables-nft"' in done.err
