"""ip-masq-agent's configuration: what its documents say, what it refuses, and several files together."""

from __future__ import annotations

import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest
from flanneld_masq_ipmasqagent import agent_config, files
from flanneld_masq_ipmasqagent.agent_config import DEFAULT_CIDRS

from flanneld_masq import plugin_loader
from flanneld_masq.errors import ConfigError
from flanneld_masq.model import MasqueradeSettings, Network, Settings

SOURCE = "/etc/config/ip-masq-agent"
LINK_LOCAL = ("169.254.0.0/16", "fe80::/10")


def networks(*texts: str) -> list[str]:
    return list(map(str, agent_config.networks([agent_config.parse(text.encode(), SOURCE) for text in texts])))


DEFAULTS = [*map(str, DEFAULT_CIDRS), *LINK_LOCAL]
TEN = ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DEFAULTS),
        ("# nothing\n", DEFAULTS),
        ("{}", DEFAULTS),
        ("masqLinkLocal: true", [*map(str, DEFAULT_CIDRS), "fe80::/10"]),
        ("nonMasqueradeCIDRs:\n  - 10.0.0.0/8\nresyncInterval: 60s\n", [*TEN, *LINK_LOCAL]),
        ("nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: yes\nmasqLinkLocalIPv6: On\n", TEN),
        ('{"NonMasqueradeCIDRs":["10.0.0.0/8"],"MasqLinkLocal":true,"ResyncInterval":"1m0s"}', [*TEN, "fe80::/10"]),
        ('\n {"nonMasqueradeCIDRs": ["fd00::/8", "fd00::/8"], "cidrLimit": 2}', ["fd00::/8", *LINK_LOCAL]),
        ("nonMasqueradeCIDRs:\nmasqLinkLocal:\ncidrLimit: ~\n", list(LINK_LOCAL)),
        ("nonMasqueradeCIDRs: []", list(LINK_LOCAL)),
        ("nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']", ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1", *LINK_LOCAL]),
        ("nonMasqueradeCIDRs: [10.0.0.0/8]\nnonmasqueradecidrs: [172.16.0.0/12]", ["172.16.0.0/12", *LINK_LOCAL]),
        ("unknown: {a: [1, 2.5]}\nnonMasqueradeCIDRs: &a [10.0.0.0/8]\nother: *a", [*TEN, *LINK_LOCAL]),
        ("\ufeffnonMasqueradeCIDRs: [10.0.0.0/8]\r\n", [*TEN, *LINK_LOCAL]),
    ],
)
def test_one_file(text: str, expected: list[str]) -> None:
    assert networks(text) == expected


@pytest.mark.parametrize("text", ["60s", "1h15m30.918s", "-1.5h", "0", "+5us", "1\u00b5s", ".5m"])
def test_an_interval_is_accepted(text: str) -> None:
    assert networks(f"resyncInterval: '{text}'") == DEFAULTS


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs", "expected a list of networks, found the text"),
        ("nonMasqueradeCIDRs: [10]", "nonMasqueradeCIDRs", "expected a network, found a number"),
        ("nonMasqueradeCIDRs: [[10.0.0.0/8]]", "nonMasqueradeCIDRs", "found a value of another kind"),
        ("nonMasqueradeCIDRs: [~]", "nonMasqueradeCIDRs", "expected a network, found nothing"),
        ("nonMasqueradeCIDRs: [10.0.0.0]", "nonMasqueradeCIDRs", "has no prefix length"),
        ("nonMasqueradeCIDRs: [10.0.0.1/8]", "nonMasqueradeCIDRs", "has host bits set; the network is 10.0.0.0/8"),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]\ncidrLimit: 1",
            "nonMasqueradeCIDRs",
            "2 networks are more than",
        ),
        ("cidrLimit: 2", "nonMasqueradeCIDRs", "3 networks are more than cidrLimit, 2"),
        ("cidrLimit: '5'", "cidrLimit", "expected a number, found the text '5'"),
        ("cidrLimit: true", "cidrLimit", "expected a number, found a boolean"),
        ('{"cidrLimit": 5.0}', "cidrLimit", "expected a number, found a value of another kind"),
        ("masqLinkLocal: 'true'", "masqLinkLocal", "expected true or false, found the text 'true'"),
        ("masqLinkLocalIPv6: 1", "masqLinkLocalIPv6", "expected true or false, found a number"),
        ("resyncInterval: 60", "resyncInterval", "expected a duration"),
        ("resyncInterval:", "resyncInterval", "expected a duration"),
        ("resyncInterval: 60 seconds", "resyncInterval", "expected a duration"),
        ("- 10.0.0.0/8", "", "is no mapping"),
        ("10.0.0.0/8", "", "is no mapping"),
        ("a: [", "", "cannot be read as YAML: line 1: "),
        ("a: 1\n---\nb: 2", "", "cannot be read as YAML: line 2: "),
        pytest.param("[" * 1000, "", "nested too deeply", id="deep-yaml"),
        pytest.param('{"a": ' * 90000, "", "cannot be read as JSON", id="deep-json"),
        ("{a: b}", "", "cannot be read as JSON: "),
        ('{"a": NaN}', "", "cannot be read as JSON: NaN is no JSON"),
        ('"\\U00ffffff"', "", "cannot be read as YAML: "),
    ],
)
def test_refusals(text: str, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks(text)
    assert (caught.value.source, caught.value.key) == (SOURCE, key)
    assert reason in caught.value.reason


def test_not_text() -> None:
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        agent_config.parse(b"\xff", SOURCE)


def test_yaml_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", sys.modules), "yaml", None)
    with pytest.raises(ConfigError, match=r"install python3-yaml .* or write JSON"):
        networks("nonMasqueradeCIDRs: []")
    assert networks('{"nonMasqueradeCIDRs": []}') == list(LINK_LOCAL)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), DEFAULTS),
        (
            ("nonMasqueradeCIDRs: [10.0.0.0/8]", "nonMasqueradeCIDRs: [11.0.0.0/8, 10.0.0.0/8]"),
            [*TEN, "11.0.0.0/8", *LINK_LOCAL],
        ),
        (("nonMasqueradeCIDRs: [10.0.0.0/8]", "masqLinkLocal: true"), [*TEN, "fe80::/10"]),
        (("masqLinkLocalIPv6: true", "masqLinkLocal: true\nmasqLinkLocalIPv6: false"), [*map(str, DEFAULT_CIDRS)]),
    ],
)
def test_several_files(texts: tuple[str, ...], expected: list[str]) -> None:
    assert networks(*texts) == expected


class TestPlugin:
    @staticmethod
    def answer(plugins: plugin_loader.Plugins, *entries: str) -> tuple[tuple[Network, ...], list[str]]:
        settings = Settings(masquerade=MasqueradeSettings(ip_masq_agent_files=entries))
        found, failures = plugins.non_masquerade_cidrs(settings)
        return found, [failure.reason for failure in failures]

    @pytest.fixture
    def plugins(self) -> plugin_loader.Plugins:
        import flanneld_masq_ipmasqagent

        return plugin_loader.load({"agent": flanneld_masq_ipmasqagent})

    def test_it_is_off_unless_files_are_named(self, plugins: plugin_loader.Plugins) -> None:
        assert self.answer(plugins) == ((), [])
        assert plugins.watched_files(Settings()) == ((), ())

    def test_its_files_are_watched(self, plugins: plugin_loader.Plugins) -> None:
        settings = Settings(masquerade=MasqueradeSettings(ip_masq_agent_files=("/etc/config/ip-masq-*",)))
        assert plugins.watched_files(settings) == (("/etc/config/ip-masq-*",), ())

    def test_a_missing_file_stands_for_the_defaults(self, plugins: plugin_loader.Plugins, tmp_path: Path) -> None:
        found, failures = self.answer(plugins, str(tmp_path / "ip-masq-agent"))
        assert (list(map(str, found)), failures) == (DEFAULTS, [])

    def test_a_bad_file_keeps_the_last_good_answer(self, plugins: plugin_loader.Plugins, tmp_path: Path) -> None:
        one, two = tmp_path / "ip-masq-a", tmp_path / "ip-masq-b"
        entry = f"{tmp_path}/ip-masq-*"
        one.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true\n")
        two.write_text("nonMasqueradeCIDRs: [11.0.0.0/8]\n")
        good = (ip_network("10.0.0.0/8"), ip_network("11.0.0.0/8"))
        assert self.answer(plugins, entry) == (good, [])
        one.unlink()
        two.write_text("nonMasqueradeCIDRs: [11.0.0.1/8]\n")
        found, (failure,) = self.answer(plugins, entry)
        assert found == good
        assert failure.startswith(f"{two}: nonMasqueradeCIDRs: '11.0.0.1/8' has host bits set")
        two.write_text("nonMasqueradeCIDRs: []\n")
        assert self.answer(plugins, entry) == (tuple(map(ip_network, LINK_LOCAL)), [])

    @pytest.mark.parametrize("kind", ["directory", "large", "fifo"])
    def test_what_is_no_file_of_the_agent(self, kind: str, tmp_path: Path) -> None:
        import os

        path = tmp_path / "ip-masq-agent"
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(b"#" * (files.MAX_BYTES + 1))
        with pytest.raises(ConfigError, match=f"{path}: cannot be read: is "):
            files.networks((str(path),))
