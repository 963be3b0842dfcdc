"""One builder of the desired state: what it reads, and what becomes of an input that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest

from flanneld_masq import plugin_loader
from flanneld_masq.errors import MasqError, SubnetFileError
from flanneld_masq.hookspecs import hookimpl
from flanneld_masq.model import Network, Settings
from flanneld_masq.service.desired_state import DesiredStateBuilder, OnError
from flanneld_masq.service.input_log import input_entries, plugin_entries

SUBNET = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
RANGE = ip_network("192.0.2.0/24")


class Plugin:
    def __init__(self) -> None:
        self.fails = False
        self.ranges = [RANGE]
        self.files: list[str] = []

    @hookimpl
    def flanneld_masq_non_masquerade_cidrs(self) -> Sequence[Network]:
        if self.fails:
            raise ValueError("no file")
        return self.ranges

    @hookimpl
    def flanneld_masq_watched_files(self) -> Sequence[str]:
        return self.files


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(subnet_files=(str(tmp_path / "subnet.env"),), net_conf=str(tmp_path / "net-conf.json"))


def build(settings: Settings, plugin: Plugin, on_error: OnError = OnError.KEEP) -> DesiredStateBuilder:
    return DesiredStateBuilder(settings, plugin_loader.load({"mine": plugin}), on_error)


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def messages(builder: DesiredStateBuilder) -> list[tuple[str, int]]:
    entries = input_entries(builder.refresh(), builder.leases.good)
    return [(entry.event.kind, entry.level) for entry in entries]


def test_all_inputs_are_in_the_desired_state(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET)
    write(settings.net_conf, '{"EnableNFTables": true}')
    builder = build(settings, plugin)
    assert builder.current() is None
    assert builder.ask_plugins() == ()
    assert builder.refresh().changed
    desired = builder.required()
    assert (desired.settings, desired.exceptions, desired.flannel_uses_nftables) == (settings, (RANGE,), True)
    assert [str(lease.ipv4.subnet) for lease in desired.leases if lease.ipv4] == ["10.244.1.0/24"]
    assert not builder.refresh().changed


def test_kept_inputs_are_the_last_good_ones(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET)
    builder = build(settings, plugin)
    builder.ask_plugins()
    assert messages(builder) == [("lease-changed", logging.INFO)]
    before = builder.required()
    write(settings.subnet_files[0], "nonsense")
    write(settings.net_conf, "{")
    plugin.fails = True
    assert [entry.event.kind for entry in plugin_entries(builder.ask_plugins())] == ["plugin-failed"]
    assert messages(builder) == [("notice", logging.WARNING), ("lease-refused", logging.ERROR)]
    assert builder.required() == before
    assert [trouble.split(": ")[0] for trouble in builder.troubles] == [
        f"{settings.subnet_files[0]}, line 1",
        settings.net_conf,
        "plugin mine failed in flanneld_masq_non_masquerade_cidrs",
    ]
    plugin.fails = False
    assert builder.ask_plugins() == ()
    assert len(builder.troubles) == 2


def test_new_networks_of_a_plugin_change_the_desired_state(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET)
    builder = build(settings, plugin)
    builder.ask_plugins()
    assert builder.refresh().changed
    plugin.ranges = []
    builder.ask_plugins()
    refreshed = builder.refresh()
    assert (refreshed.changed, refreshed.because) == (True, "networks of plugins changed")
    assert builder.required().exceptions == ()
    assert not builder.refresh().changed


def test_files_of_plugins_are_watched(settings: Settings, plugin: Plugin) -> None:
    builder = build(settings, plugin)
    assert builder.watched_files() == settings.subnet_files
    plugin.fails = True
    assert builder.file_changed() == (), "no plugin is asked"
    plugin.files = ["/etc/mine"]
    assert builder.watched_files() == (*settings.subnet_files, "/etc/mine")
    assert [failure.hook for failure in builder.file_changed()] == ["flanneld_masq_non_masquerade_cidrs"]
    plugin.fails = False
    plugin.files = ["mine"]
    assert [failure.hook for failure in builder.ask_plugins()] == ["flanneld_masq_watched_files"]


def test_a_missing_file_is_waited_for_and_then_missed(settings: Settings, plugin: Plugin) -> None:
    builder = build(settings, plugin)
    assert messages(builder) == [("waiting", logging.INFO)]
    write(settings.subnet_files[0], SUBNET)
    assert messages(builder) == [("lease-changed", logging.INFO)]
    Path(settings.subnet_files[0]).unlink()
    assert messages(builder) == [("waiting", logging.WARNING)]
    assert builder.current() is not None


def test_a_masquerading_flanneld_is_noted_once(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET + "FLANNEL_IPMASQ=true\n")
    builder = build(settings, plugin)
    _, note = input_entries(builder.refresh(), builder.leases.good)
    assert note.once and "FLANNEL_IPMASQ=true" in note.event.message


def test_a_command_is_stopped_by_a_bad_subnet_file(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], "nonsense")
    with pytest.raises(SubnetFileError):
        build(settings, plugin, OnError.RAISE).refresh()


@pytest.mark.parametrize("on_error", OnError)
@pytest.mark.parametrize("text", ["nonsense", '{"EnableNFTables": "true"}'])
def test_a_bad_net_conf_counts_as_missing(text: str, on_error: OnError, settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET)
    write(settings.net_conf, '{"EnableNFTables": true}')
    builder = build(settings, plugin, on_error)
    assert builder.refresh().net_conf == ""
    write(settings.net_conf, text)
    refreshed = builder.refresh()
    assert refreshed.changed and not builder.required().flannel_uses_nftables
    assert refreshed.net_conf.startswith(f"{settings.net_conf}: ")
    assert builder.troubles == (refreshed.net_conf,)
    write(settings.net_conf, '{"enablenftables": true}')
    assert builder.refresh().changed and builder.required().flannel_uses_nftables
    assert not builder.troubles


def test_leases_alone_need_no_net_conf(settings: Settings, plugin: Plugin) -> None:
    write(settings.subnet_files[0], SUBNET)
    write(settings.net_conf, "nonsense")
    builder = build(settings, plugin, OnError.RAISE)
    builder.read_leases()
    assert builder.required().leases


def test_without_a_lease_the_files_are_named(settings: Settings, plugin: Plugin) -> None:
    builder = build(settings, plugin, OnError.RAISE)
    builder.refresh()
    with pytest.raises(MasqError, match=f"there is no subnet file yet \\({settings.subnet_files[0]}\\)"):
        builder.required()


def test_new_settings_drop_the_leases_of_other_files(settings: Settings, plugin: Plugin, tmp_path: Path) -> None:
    write(settings.subnet_files[0], SUBNET)
    builder = build(settings, plugin)
    builder.refresh()
    builder.follow(Settings(subnet_files=(str(tmp_path / "other.env"),)))
    assert builder.current() is None
