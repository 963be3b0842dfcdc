"""Configurations that are accepted, and those that are refused."""

from __future__ import annotations

import dataclasses
import os
import stat
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import config, config_files
from flanneld_masq.model import BackendName, Family, Mark, Position, Settings

SOURCE = "/etc/flanneld-masq/config.toml"
DEFAULTS = """
backend = "auto"
subnet_files = ["/run/flannel/subnet.env"]
net_conf = "/etc/kube-flannel/net-conf.json"
state_directory = "/run/flanneld-masq"

[masquerade]
enabled = true
families = ["ipv4", "ipv6"]
to_remote_pods = true
random_fully = true
non_masquerade_cidrs = []
masquerade_link_local = true
ip_masq_agent_files = []
kube_proxy_mark = "auto"
position = "last"
[forward]
enabled = true
backend = "auto"
position = "auto"
[conntrack]
heal = true
[reconcile]
resync_seconds = 60
legacy_poll_seconds = 5
[takeover]
remove_flannel_rules = false
[stop]
remove_rules = false
[dbus]
enabled = true
[metrics]
textfile = ""
address = "127.0.0.1"
port = 0
[log]
level = "info"
"""


def parse(text: str) -> Settings:
    return config.parse(text, SOURCE)


def flat(settings: object) -> dict[str, Any]:
    """The fields of settings by dotted name, those of nested classes included."""
    fields = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if field.name in ("masquerade", "forward", "reconcile"):
            fields.update({f"{field.name}.{name}": inner for name, inner in flat(value).items()})
        else:
            fields[field.name] = value
    return fields


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "[masquerade]\n[log]\n", DEFAULTS])
def test_everything_has_a_default(text: str) -> None:
    assert parse(text) == Settings()


def test_seconds_are_floats_however_written() -> None:
    assert isinstance(parse("[reconcile]\nresync_seconds = 5\n").reconcile.resync_seconds, float)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ('backend = "nft"', "backend", "nft"),
        ('backend = "iptables-legacy"', "backend", "iptables-legacy"),
        ('backend = "x2"', "backend", "x2"),
        ('subnet_files = ["/a", "/b c"]', "subnet_files", ("/a", "/b c")),
        ('subnet_files = ["//run//./flannel/x/"]', "subnet_files", ("/run/flannel/x",)),
        ('subnet_files = ["/run/../x"]', "subnet_files", ("/run/../x",)),
        ('net_conf = "/x"', "net_conf", "/x"),
        ('state_directory = "/run/x/"', "state_directory", "/run/x"),
        ("masquerade.enabled = false", "masquerade.enabled", False),
        ("masquerade.random_fully = false", "masquerade.random_fully", False),
        ("masquerade.masquerade_link_local = false", "masquerade.masquerade_link_local", False),
        (
            'masquerade.non_masquerade_cidrs = ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8", "192.0.2.1/32"]',
            "masquerade.non_masquerade_cidrs",
            (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.0.2.1/32")),
        ),
        ('masquerade.kube_proxy_mark = ""', "masquerade.kube_proxy_mark", None),
        ('masquerade.kube_proxy_mark = "auto"', "masquerade.kube_proxy_mark", "auto"),
        ("nft.protect = true", "nft_protect", True),
        ("nft.protect = false", "nft_protect", False),
        ('nft.protect = "auto"', "nft_protect", "auto"),
        ('masquerade.families = ["ipv6"]', "masquerade.families", (Family.IPV6,)),
        ('masquerade.families = ["ipv6", "ipv4", "ipv6"]', "masquerade.families", (Family.IPV4, Family.IPV6)),
        ("masquerade.to_remote_pods = false", "masquerade.to_remote_pods", False),
        ('subnet_files = ["/run/flannel/*.env", "/run/k3s/"]', "subnet_files", ("/run/flannel/*.env", "/run/k3s")),
        ('masquerade.kube_proxy_mark = "0x8000"', "masquerade.kube_proxy_mark", Mark(0x8000, 0xFFFFFFFF)),
        ('masquerade.kube_proxy_mark = "16384/0XC000"', "masquerade.kube_proxy_mark", Mark(0x4000, 0xC000)),
        (
            'masquerade.kube_proxy_mark = "0x0000000080000000/4294967295"',
            "masquerade.kube_proxy_mark",
            Mark(0x80000000, 0xFFFFFFFF),
        ),
        ('masquerade.position = "first"', "masquerade.position", Position.FIRST),
        *(
            (f'forward.position = "{position.value}"', "forward.position", position)
            for position in (Position.AUTO, Position.FIRST, Position.LAST)
        ),
        ("forward.enabled = false", "forward.enabled", False),
        ('forward.backend = "iptables-nft"', "forward.backend", "iptables-nft"),
        ("forward.drop_invalid = true", "forward.drop_invalid", True),
        ("reconcile.resync_seconds = 1", "reconcile.resync_seconds", 1.0),
        ("reconcile.resync_seconds = 86400.0", "reconcile.resync_seconds", 86400.0),
        ("reconcile.legacy_poll_seconds = 0.05", "reconcile.legacy_poll_seconds", 0.05),
        ("reconcile.legacy_poll_seconds = 6e1", "reconcile.legacy_poll_seconds", 60.0),
        ("conntrack.heal = false", "conntrack_heal", False),
        ("takeover.remove_flannel_rules = true", "takeover_remove_flannel_rules", True),
        ("stop.remove_rules = true", "stop_remove_rules", True),
        ("dbus.enabled = false", "dbus_enabled", False),
        ('metrics.textfile = "/var/lib/node/x.prom"', "metrics_textfile", "/var/lib/node/x.prom"),
        ('metrics.address = "::"', "metrics_address", ip_address("::")),
        ("metrics.port = 9817", "metrics_port", 9817),
        ('log.level = "debug"', "log_level", "debug"),
    ],
)
def test_a_key_sets_its_field_and_no_other(text: str, field: str, value: object) -> None:
    assert flat(parse(text)) == {**flat(Settings()), field: value}


def test_every_field_has_a_key() -> None:
    keys = {f"{table}.{key}" if table else key for table, keys in config._TABLES.items() for key in keys}
    assert {key.replace(".", "_") for key in keys} == {name.replace(".", "_") for name in flat(Settings())}


BOOLEANS = [
    "masquerade.enabled",
    "masquerade.random_fully",
    "masquerade.masquerade_link_local",
    "forward.enabled",
    "forward.drop_invalid",
    "conntrack.heal",
    "takeover.remove_flannel_rules",
    "stop.remove_rules",
    "dbus.enabled",
]


@pytest.mark.parametrize("key", BOOLEANS)
@pytest.mark.parametrize(
    ("value", "described"),
    [
        ('"yes"', 'the string "yes"'),
        ("1", "the number 1"),
        ("0.0", "the number 0.0"),
        ("[]", "an array"),
        ("{}", "a table"),
        ("1979-05-27", "a date or a time"),
        ("07:32:00", "a date or a time"),
    ],
)
def test_switches_are_true_or_false(key: str, value: str, described: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{key} = {value}")
    assert (caught.value.key, caught.value.reason) == (key, f"expected true or false, found {described}")


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        # Not TOML
        ("backend", "", "is not valid TOML: "),
        ('backend = "nft"\nbackend = "nft"', "", "is not valid TOML: "),
        ("[log]\n[log]", "", "at line 2"),
        ("backend = " + "[" * 100_000, "", "is not valid TOML: "),
        ("backend = 2000-02-30", "", "is not valid TOML: "),
        ("a." * 100_000 + "a = 1", "", "is not accepted: a key, or a text that looks like one, has more than 16 parts"),
        ("[a" + " . 'b'" * 100_000 + "]", "", "is not accepted: a key, "),
        # Unknown
        (
            'beckend = "nft"',
            "beckend",
            "unknown key, did you mean backend?; accepted in the top of the file: backend, ",
        ),
        ("[masquerad]\nenabled = true", "masquerad", "unknown table, did you mean masquerade?"),
        ("[qqq]", "qqq", "metrics, log"),
        ("masquerade.random = true", "masquerade.random", "accepted in [masquerade]: enabled, families, "),
        ("log.lvl = 1", "log.lvl", "unknown key, did you mean level?; accepted in [log]: level"),
        ('level = "debug"', "level", "unknown key, it belongs in [log]; accepted in the top of the file: "),
        ("enabled = false", "enabled", "it belongs in [masquerade] or [forward] or [dbus]"),
        ('[masquerade]\nbackend = "nft"', "masquerade.backend", "it belongs in the top of the file or [forward]"),
        ("[masquerade.log]", "masquerade.log", "unknown key; accepted in [masquerade]"),
        ('"" = 1', '""', "unknown key; "),
        ('"a b\\n\\u0085" = 1', '"a b\\n\\u0085"', "unknown key; "),
        (f"{'x' * 500} = 1", f'"{"x" * 57}..."', "unknown key; "),
        # Tables
        ("masquerade = true", "masquerade", "expected a table, [masquerade], found true"),
        ("[[log]]\nlevel = 'debug'", "log", "expected a table, [log], found an array"),
        ("[backend]\nx = 1", "backend", "found a table"),
        # Backends
        ("backend = true", "backend", 'expected "auto" or the name of a backend'),
        ('backend = ""', "backend", 'found the string ""'),
        ('backend = "NFT"', "backend", 'found the string "NFT"'),
        ('backend = "2x"', "backend", "a letter first"),
        ('backend = "nft\\n"', "backend", 'found the string "nft\\n"'),
        ('forward.backend = "a_b"', "forward.backend", 'found the string "a_b"'),
        # Paths
        ('subnet_files = "/run/flannel/subnet.env"', "subnet_files", "expected an array of absolute paths, found the"),
        ("subnet_files = []", "subnet_files", "expected at least one path"),
        ('subnet_files = ["/a", 5]', "subnet_files", "entry 2: expected an absolute path, found the number 5"),
        ('subnet_files = ["a"]', "subnet_files", 'expected an absolute path, found the string "a"'),
        ('subnet_files = ["/a", "/b", "//a/."]', "subnet_files", '"/a" is named twice'),
        ('subnet_files = ["/a\\u0000"]', "subnet_files", "without NUL"),
        ('subnet_files = ["/"]', "subnet_files", "other than /"),
        ('net_conf = ""', "net_conf", "expected an absolute path"),
        ("net_conf = true", "net_conf", "expected an absolute path, found true"),
        ('state_directory = "run"', "state_directory", "expected an absolute path"),
        ('state_directory = "//"', "state_directory", "other than /"),
        ("metrics.port = 65536", "metrics.port", "expected a port from 1 to 65535, or 0 for none, found"),
        ("metrics.port = -1", "metrics.port", "expected a port"),
        ("metrics.port = true", "metrics.port", "expected a port from 1 to 65535, or 0 for none, found true"),
        ('metrics.port = "9817"', "metrics.port", "expected a port"),
        ('metrics.address = ""', "metrics.address", "expected an IP address"),
        ('metrics.address = "localhost"', "metrics.address", 'expected an IP address such as "127.0.0.1" or "::1"'),
        ('metrics.address = "fe80::1%eth0"', "metrics.address", "expected an IP address"),
        ("metrics.address = 1", "metrics.address", "expected an IP address"),
        ("metrics.textfile = false", "metrics.textfile", 'expected an absolute path, or "" for none, found false'),
        ('metrics.textfile = "x.prom"', "metrics.textfile", 'expected an absolute path, or "" for none'),
        # Networks
        ('masquerade.non_masquerade_cidrs = "10.0.0.0/8"', "masquerade.non_masquerade_cidrs", "expected an array of"),
        ("masquerade.non_masquerade_cidrs = [10]", "masquerade.non_masquerade_cidrs", "expected a network such as"),
        (
            'masquerade.non_masquerade_cidrs = ["fd00::/8", "10.1.2.3/8"]',
            "masquerade.non_masquerade_cidrs",
            'entry 2: "10.1.2.3/8" has host bits set; the network is "10.0.0.0/8"',
        ),
        ('masquerade.non_masquerade_cidrs = ["10.0.0.1"]', "masquerade.non_masquerade_cidrs", "has no prefix length"),
        ('masquerade.non_masquerade_cidrs = ["10.0.0.0/255.0.0.0"]', "masquerade.non_masquerade_cidrs", "0 to 32"),
        (
            'masquerade.non_masquerade_cidrs = ["0.0.0.0/0"]',
            "masquerade.non_masquerade_cidrs",
            "covers every address",
        ),
        ('masquerade.non_masquerade_cidrs = ["::/0"]', "masquerade.non_masquerade_cidrs", "masquerade.enabled = false"),
        ('masquerade.non_masquerade_cidrs = ["fe80::%e/64"]', "masquerade.non_masquerade_cidrs", "names a zone"),
        ('masquerade.non_masquerade_cidrs = ["x/8"]', "masquerade.non_masquerade_cidrs", "with an IP address"),
        # Marks
        ('nft.protect = "yes"', "nft.protect", 'expected true, false or "auto", found the string "yes"'),
        ("nft.protect = 1", "nft.protect", 'expected true, false or "auto", found'),
        ("masquerade.families = []", "masquerade.families", "at least one family; try masquerade.enabled = false"),
        ('masquerade.families = ["ipv5"]', "masquerade.families", 'one of "ipv4", "ipv6", found the string "ipv5"'),
        ('masquerade.families = "ipv4"', "masquerade.families", "expected an array of families"),
        ('masquerade.kube_proxy_mark = "Auto"', "masquerade.kube_proxy_mark", 'expected "auto", a string'),
        ("masquerade.kube_proxy_mark = 0x4000", "masquerade.kube_proxy_mark", "found the number 16384"),
        ("masquerade.kube_proxy_mark = false", "masquerade.kube_proxy_mark", 'or "" for none, found false'),
        (
            'masquerade.kube_proxy_mark = "0x4000/"',
            "masquerade.kube_proxy_mark",
            'a string "VALUE/MASK"',
        ),
        (
            'masquerade.kube_proxy_mark = "0x4000 /1"',
            "masquerade.kube_proxy_mark",
            'a string "VALUE/MASK"',
        ),
        ('masquerade.kube_proxy_mark = "-1"', "masquerade.kube_proxy_mark", 'a string "VALUE/MASK"'),
        (
            'masquerade.kube_proxy_mark = "040000"',
            "masquerade.kube_proxy_mark",
            'a string "VALUE/MASK"',
        ),
        (
            'masquerade.kube_proxy_mark = "\u0661"',
            "masquerade.kube_proxy_mark",
            'a string "VALUE/MASK"',
        ),
        ('masquerade.kube_proxy_mark = "0x100000000"', "masquerade.kube_proxy_mark", "have 32 bits"),
        ('masquerade.kube_proxy_mark = "1/4294967296"', "masquerade.kube_proxy_mark", "have 32 bits"),
        (f'masquerade.kube_proxy_mark = "{"9" * 5000}"', "masquerade.kube_proxy_mark", "have 32 bits"),
        ('masquerade.kube_proxy_mark = "0x4000/0x8000"', "masquerade.kube_proxy_mark", "no packet has it"),
        ('masquerade.kube_proxy_mark = "1/0"', "masquerade.kube_proxy_mark", "a mask of 0"),
        ('masquerade.kube_proxy_mark = "0"', "masquerade.kube_proxy_mark", "a mark of 0"),
        ('masquerade.kube_proxy_mark = "0/0x4000"', "masquerade.kube_proxy_mark", "a mark of 0"),
        # Choices
        ('masquerade.position = "middle"', "masquerade.position", 'expected one of "first", "last", found the string'),
        ("masquerade.position = 0", "masquerade.position", "found the number 0"),
        ('masquerade.position = "auto"', "masquerade.position", 'expected one of "first", "last", found the string'),
        ('forward.position = "before"', "forward.position", 'expected one of "auto", "first", "last", found the'),
        ('log.level = "DEBUG"', "log.level", 'found the string "DEBUG", did you mean debug?'),
        ("log.level = 10", "log.level", 'expected one of "debug", "info", "warning", "error", found the number 10'),
        # Numbers
        ("reconcile.resync_seconds = true", "reconcile.resync_seconds", "seconds from 1 to 86400, found true"),
        ('reconcile.resync_seconds = "60"', "reconcile.resync_seconds", 'found the string "60"'),
        ("reconcile.resync_seconds = 0.5", "reconcile.resync_seconds", "found the number 0.5"),
        ("reconcile.resync_seconds = 86401", "reconcile.resync_seconds", "found the number 86401"),
        ("reconcile.resync_seconds = nan", "reconcile.resync_seconds", "found the number nan"),
        ("reconcile.resync_seconds = inf", "reconcile.resync_seconds", "found the number inf"),
        (f"reconcile.resync_seconds = 0x{'f' * 9999}", "reconcile.resync_seconds", "found a number of 39996 bits"),
        ("reconcile.resync_seconds = -60", "reconcile.resync_seconds", "found the number -60"),
        ("reconcile.legacy_poll_seconds = 0.04", "reconcile.legacy_poll_seconds", "seconds from 0.05 to 60, found"),
        ("reconcile.legacy_poll_seconds = 61", "reconcile.legacy_poll_seconds", "seconds from 0.05 to 60, found"),
        # The first of several
        ("log.level = 1\nbackend = 1", "log.level", ""),
    ],
)
def test_refusals(text: str, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert (caught.value.source, caught.value.key) == (SOURCE, key)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{SOURCE}: {key}: " if key else f"{SOURCE}: ")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_number_that_no_version_of_python_need_read() -> None:
    with pytest.raises(ConfigError):
        parse(f"backend = {'9' * 5000}")


class TestLoad:
    def file(self, directory: Path, data: bytes = b"", mode: int = 0o644) -> Path:
        file = directory / "config.toml"
        file.write_bytes(data)
        file.chmod(mode)
        return file

    def test_none(self, tmp_path: Path) -> None:
        assert config.load(tmp_path / "missing" / "config.toml") == Settings()

    @pytest.mark.parametrize(
        "data", [b"", b"\n", b"\xef\xbb\xbf", DEFAULTS.encode(), DEFAULTS.replace("\n", "\r\n").encode()]
    )
    def test_defaults(self, data: bytes, tmp_path: Path) -> None:
        assert config.load(self.file(tmp_path, data)) == Settings()

    def test_a_setting(self, tmp_path: Path) -> None:
        assert config.load(self.file(tmp_path, b"\xef\xbb\xbfbackend = 'nft'")).backend == "nft"

    def test_a_refusal_names_the_file(self, tmp_path: Path) -> None:
        file = self.file(tmp_path, b"log.level = 1")
        with pytest.raises(ConfigError) as caught:
            config.load(file)
        assert (caught.value.source, caught.value.key) == (str(file), "log.level")

    @pytest.mark.parametrize("data", [b"\xff", "backend = 'nft'".encode("utf-16")])
    def test_not_text(self, data: bytes, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is not UTF-8 text"):
            config.load(self.file(tmp_path, data))

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: is a directory"):
            config.load(tmp_path)

    def test_a_fifo_does_not_stop_the_daemon(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "config.toml")
        with pytest.raises(ConfigError, match="is not a regular file"):
            config.load(tmp_path / "config.toml")

    def test_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is larger than 1024 KiB"):
            config.load(self.file(tmp_path, b"#" * (config_files.MAX_BYTES + 1)))

    def test_a_name_that_no_file_can_have(self) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            config.load(Path("/etc/\0"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            config.load(self.file(tmp_path, mode=0))

    @pytest.mark.parametrize("mode", [0o400, 0o444, 0o600, 0o644, 0o755])
    def test_nobody_else_may_write(self, mode: int, tmp_path: Path) -> None:
        assert config.load(self.file(tmp_path, mode=mode)) == Settings()

    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
    def test_others_may_write(self, mode: int, tmp_path: Path) -> None:
        file = self.file(tmp_path, mode=mode)
        with pytest.raises(ConfigError) as caught:
            config.load(file)
        assert caught.value.reason == f"can be written by others than its owner; try `chmod go-w {file}`"

    def test_a_remedy_can_be_pasted(self, tmp_path: Path) -> None:
        (tmp_path / "a b").mkdir()
        with pytest.raises(ConfigError, match=r"`chmod go-w '/.*/a b/config.toml'`"):
            config.load(self.file(tmp_path / "a b", mode=0o666))

    @pytest.mark.parametrize(("uid", "accepted"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
    def test_whose_file_it_may_be(self, uid: int, accepted: bool) -> None:
        status = os.stat_result((stat.S_IFREG | 0o644, 1, 1, 1, uid, 0, 0, 0, 0, 0))
        if accepted:
            config_files._check_owner(Path(SOURCE), status)
            return
        with pytest.raises(ConfigError, match=f"belongs to uid {uid}, .* try `chown root {SOURCE}`"):
            config_files._check_owner(Path(SOURCE), status)


class TestDropIns:
    @pytest.fixture
    def main(self, tmp_path: Path) -> Path:
        (tmp_path / "config.d").mkdir()
        return tmp_path / "config.toml"

    def write(self, main: Path, name: str, text: str) -> Path:
        file = main.parent / "config.d" / name
        file.write_text(text)
        return file

    def test_none(self, main: Path) -> None:
        assert config.load(main) == Settings()

    def test_without_a_main_file(self, main: Path) -> None:
        self.write(main, "a.toml", "backend = 'nft'")
        assert config.load(main).backend == "nft"

    def test_later_files_replace_single_keys(self, main: Path) -> None:
        main.write_text("backend = 'nft'\n[masquerade]\nrandom_fully = false\nposition = 'first'\n")
        self.write(main, "20-b.toml", "[masquerade]\nposition = 'last'\nnon_masquerade_cidrs = ['192.0.2.0/24']\n")
        self.write(
            main, "10-a.toml", "masquerade.position = 'first'\nmasquerade.non_masquerade_cidrs = ['10.0.0.0/8']\n"
        )
        settings = config.load(main)
        assert (settings.backend, settings.masquerade.random_fully) == ("nft", False)
        assert settings.masquerade.position is Position.LAST
        assert settings.masquerade.non_masquerade_cidrs == (ip_network("192.0.2.0/24"),), (
            "a list is replaced as a whole"
        )

    def test_other_names_are_not_read(self, main: Path) -> None:
        for name in ("a.conf", "a.toml.dpkg-new", ".a.toml", "a.toml~"):
            self.write(main, name, "no toml at all")
        assert config.load(main) == Settings()

    def test_an_error_names_file_and_key(self, main: Path) -> None:
        self.write(main, "a.toml", "log.level = 'debug'")
        wrong = self.write(main, "b.toml", "[log]\nlevel = 1")
        self.write(main, "c.toml", "log.level = 'info'")
        with pytest.raises(ConfigError) as caught:
            config.load(main)
        assert (caught.value.source, caught.value.key) == (str(wrong), "log.level")

    def test_others_may_write_a_file(self, main: Path) -> None:
        self.write(main, "a.toml", "").chmod(0o666)
        with pytest.raises(ConfigError, match=r"config\.d/a\.toml: can be written by others"):
            config.load(main)

    def test_others_may_write_the_directory(self, main: Path) -> None:
        (main.parent / "config.d").chmod(0o777)
        with pytest.raises(ConfigError, match=r"/config\.d: can be written by others"):
            config.load(main)

    def test_the_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.d").touch()
        with pytest.raises(ConfigError, match=r"/config\.d: cannot be listed: Not a directory"):
            config.load(tmp_path / "config.toml")

    def test_a_link_that_leads_nowhere(self, main: Path) -> None:
        (main.parent / "config.d" / "a.toml").symlink_to("/nonexistent")
        with pytest.raises(ConfigError, match=r"a\.toml: cannot be read: No such file"):
            config.load(main)

    def test_too_many(self, main: Path) -> None:
        for number in range(config_files.MAX_DROP_INS + 1):
            self.write(main, f"{number}.toml", "")
        with pytest.raises(ConfigError, match="has more than 256 files"):
            config.load(main)

    def test_the_last_state_directory_counts(self, main: Path) -> None:
        main.write_text("state_directory = '/a'")
        self.write(main, "a.toml", "state_directory = '/b'\ncolour = 1")
        self.write(main, "b.toml", "state_directory = 5")
        assert config.state_directory(main) == "/b"


class TestStateDirectory:
    """The state directory is found in a file that is wrong elsewhere."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("state_directory = '/x'\ncolour = 1", "/x"),
            ("state_directory = '/x'\n[masquerade]\nenabled = 5", "/x"),
            ("colour = 1", "/run/flanneld-masq"),
            ("state_directory = 'x'", "/run/flanneld-masq"),
            ("backend = \n state_directory = '/x'  # there\n[", "/x"),
            ("state_directory = [", "/run/flanneld-masq"),
        ],
    )
    def test_as_far_as_it_can_be_read(self, text: str, expected: str, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text(text)
        assert config.state_directory(tmp_path / "config.toml") == expected

    def test_of_none(self, tmp_path: Path) -> None:
        assert config.state_directory(tmp_path / "config.toml") == "/run/flanneld-masq"


class TestOverrides:
    settings = parse('backend = "nft"\nforward.backend = "nft"\nsubnet_files = ["/a"]')

    def test_none(self) -> None:
        assert config.with_overrides(self.settings, None, ()) == self.settings

    def test_backend(self) -> None:
        changed = config.with_overrides(self.settings, "iptables-nft", ())
        assert changed == dataclasses.replace(self.settings, backend=BackendName("iptables-nft"))

    def test_subnet_files_replace_those_of_the_file(self) -> None:
        assert config.with_overrides(self.settings, None, ["/b", "/c"]).subnet_files == ("/b", "/c")

    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        files = config.with_overrides(self.settings, None, ["x", "./y/../z"]).subnet_files
        assert files == (f"{tmp_path}/x", f"{tmp_path}/y/../z")

    @pytest.mark.parametrize(
        ("backend", "files", "key", "reason"),
        [
            ("", [], "--backend", "the name of a backend"),
            ("No", [], "--backend", 'found the string "No"'),
            (None, [""], "--subnet-file", 'expected an absolute path, found the string ""'),
            (None, ["/a", "/a"], "--subnet-file", '"/a" is named twice'),
            (None, ["/a\0"], "--subnet-file", "without NUL"),
            (None, ["/\udcff"], "--subnet-file", 'expected a path in UTF-8, found the string "/\\udcff"'),
        ],
    )
    def test_refusals(self, backend: str | None, files: list[str], key: str, reason: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config.with_overrides(self.settings, backend, files)
        assert (caught.value.source, caught.value.key) == ("command line", key)
        assert reason in caught.value.reason

    def test_no_current_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        with pytest.raises(ConfigError, match="no current directory"):
            config.with_overrides(self.settings, None, ["x"])


KEYS = [f"{table}.{key}" if table else key for table, keys in config._TABLES.items() for key in keys]
VALUES = [
    *("true", "false", "0", "1", "-1", "60", "0.5", "nan", "inf", '""', '"/x"', '"auto"', '"first"', '"debug"', "[]"),
    *('["/x"]', '["10.0.0.0/8"]', '["::/0"]', '"0x4000/0x4000"', '"1/0"', "{}", "{a=1}", "1979-05-27", "07:32:00"),
    *("[1, [2]]", '["/x", "/x"]', '"\\u0000"', '"""\n"""'),
]
ASSIGNMENTS = st.builds(
    "{} = {}\n".format, st.sampled_from([*KEYS, "x", "log", "masquerade", '"a.b"']), st.sampled_from(VALUES)
)


@given(st.text() | st.lists(ASSIGNMENTS | st.text(max_size=5), max_size=6).map("".join))
@example("\ud800")
def test_whatever_the_text_settings_or_a_refusal(text: str) -> None:
    try:
        settings = parse(text)
    except ConfigError as error:
        assert error.source == SOURCE
    else:
        assert isinstance(settings, Settings)


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_mark_survives_writing_and_reading(value: int, more: int) -> None:
    mark = Mark(value, value | more)
    for text in (str(mark), f"{mark.value}/{mark.mask}", f"{mark.value:#X}/{mark.mask}"):
        assert parse(f'masquerade.kube_proxy_mark = "{text}"').masquerade.kube_proxy_mark == mark
