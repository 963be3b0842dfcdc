"""Every error that is raised on purpose ends a command with one line and an exit status."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import flanneld_masq
from flanneld_masq import errors
from flanneld_masq.cli import main, status
from flanneld_masq.errors import MasqError

SAMPLES = {"str": "some text", "int": 7, "bool": True, "tuple[str, ...]": ("iptables", "-v"), "int | None": 3}


def subclasses(base: type[MasqError]) -> Iterator[type[MasqError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


def everything() -> list[type[MasqError]]:
    """All classes of errors of all modules, those that a test made left out."""
    for module in pkgutil.walk_packages(flanneld_masq.__path__, "flanneld_masq."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [kind for kind in subclasses(MasqError) if kind.__module__.startswith("flanneld_masq.")]


def make(kind: type[MasqError]) -> MasqError:
    if kind.__init__ is MasqError.__init__:
        return kind("some text")
    arguments: dict[str, Any]
    parameters = inspect.signature(kind).parameters.values()
    arguments = {parameter.name: SAMPLES[str(parameter.annotation)] for parameter in parameters}
    return kind(**arguments)


ALL = everything()


def test_there_are_some() -> None:
    assert len(ALL) >= 9


@pytest.mark.parametrize("kind", [MasqError, *ALL], ids=lambda kind: kind.__name__)
def test_each_has_an_exit_status_and_a_line(
    kind: type[MasqError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = make(kind)
    assert error.exit_code in (1, 2), "0 and 3 say something else"
    assert "some text" in str(error)
    assert repr(error)

    def fail(options: object) -> int:
        raise error

    monkeypatch.setattr(status, "status", fail)
    assert main.main(["status"]) == error.exit_code
    assert capsys.readouterr() == ("", f"flanneld-masq: {error}\n")


@pytest.mark.parametrize("kind", [kind for kind in ALL if "__init__" in vars(kind)], ids=lambda kind: kind.__name__)
def test_each_keeps_what_it_was_told(kind: type[MasqError]) -> None:
    error = make(kind)
    for name, parameter in inspect.signature(kind).parameters.items():
        assert getattr(error, name) == SAMPLES[str(parameter.annotation)]


def test_only_what_the_user_wrote_is_the_user_s_fault() -> None:
    assert [kind.__name__ for kind in ALL if errors.outside(kind).exit_code == 2] == ["ConfigError"]


def test_each_has_a_place_in_the_table() -> None:
    """But those of the selftest, which never meet the bus, and are plain failures."""
    plain = [kind.__name__ for kind in ALL if errors.outside(kind) is errors.OUTSIDE[MasqError]]
    assert sorted(plain) == ["InjectionError", "NamespaceError", "PacketError", "SelftestError"]


def test_each_has_a_d_bus_name_of_its_own() -> None:
    names = [names.dbus_name for names in errors.OUTSIDE.values()]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch("[A-Z][A-Za-z]+", name), "an element of a D-Bus name"


def test_who_calls_the_daemon_gets_the_error_that_the_daemon_met() -> None:
    for kind, outside in errors.OUTSIDE.items():
        if kind is not errors.BusError:
            met = make(kind)
            came = errors.BusError("the daemon", str(met), met.dbus_name)
            assert (came.exit_code, came.dbus_name) == (outside.exit_code, met.dbus_name)


def test_the_drawing_shows_them_all() -> None:
    drawn = re.findall(r"\+-- (\w+)", errors.__doc__ or "")
    there = [kind.__name__ for kind in MasqError.__subclasses__() if kind.__module__ == "flanneld_masq.errors"]
    assert drawn == there


class TestMessages:
    def test_config(self) -> None:
        assert str(errors.ConfigError("/etc/x", "log.level", "no")) == "/etc/x: log.level: no"
        assert str(errors.ConfigError("/etc/x", "", "no")) == "/etc/x: no"

    def test_subnet_file(self) -> None:
        assert str(errors.SubnetFileError("/run/x", 3, "no")) == "/run/x, line 3: no"
        assert str(errors.SubnetFileError("/run/x", 0, "no")) == "/run/x: no"

    def test_backend(self) -> None:
        assert str(errors.BackendUnavailable("nft", "no", "do")) == "backend nft cannot be used: no; do"
        assert str(errors.BackendUnavailable("nft", "no")) == "backend nft cannot be used: no"

    def test_command(self) -> None:
        assert str(errors.CommandError(("a", "b"), "failed", stderr="no")) == "`a b` failed: no"
        assert str(errors.CommandError(("a", "b"), "failed")) == "`a b` failed"

    def test_bus(self) -> None:
        assert str(errors.BusError("calling", "no", "org.example.No")) == "calling: no"
        assert errors.BusError("calling", "no").dbus_name == "io.github.flanneld_masq.Error.BusUnusable"
