"""The daemon process, from outside: files, signals and the kernel in; rules, log lines and its status out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.kernel.nfnetlink import Nfnetlink
from flanneld_masq.model import BackendName, Family

from ..common import eventually, patience
from .conftest import SUBNET_ENV, Daemon, Node
from .mutations import Nft, legacy_snapshot

OTHER_SUBNET = SUBNET_ENV.replace("10.244.1.", "10.244.9.").replace("244:1::", "244:9::")
CONFIGURATION_READ = "configuration reloaded"


@contextmanager
def in_sync(node: Node, backend: str = "nft", text: str = "") -> Iterator[Daemon]:
    node.configure(text, backend=backend)
    with node.running() as daemon:
        daemon.reached("synced")
        yield daemon


def ours(node: Node, family: Family) -> tuple[str, ...]:
    """Our rules in both interfaces, by what they are."""
    with node.entered():
        return (*Nft(family).snapshot().ours, *legacy_snapshot(family, node.run).ours)


def rules(node: Node) -> tuple[str, ...]:
    return tuple(rule for family in Family for rule in ours(node, family))


def generation(node: Node) -> int:
    with node.entered():
        return Nfnetlink().generation()


def damage(node: Node, family: Family, name: BackendName) -> None:
    if name == "nft":
        node.tool("nft", "flush", "chain", family.data.nft, "flanneld-masq", "postrouting")
    else:
        node.tool(f"{family.data.tools}-{name.partition('-')[2]}", "-w", "-t", "nat", "-F", "FLANNELD-MASQ")


# ---- the subnet file


@pytest.mark.parametrize("entry", ["", "/*.env", "/[a-z]*.env"])
def test_files_of_a_directory_are_followed(node: Node, entry: str) -> None:
    node.configure("[reconcile]\nresync_seconds = 3600\n", backend="nft")
    directory = node.subnet_file.parent
    text = node.config_file.read_text()
    node.config_file.write_text(text.replace(f'["{node.subnet_file}"]', f'["{directory}{entry}"]'))
    with node.running() as daemon:
        daemon.reached("synced")
        second = directory / "vxlan.env"
        (directory / ".vxlan.env").write_text(OTHER_SUBNET)
        (directory / ".vxlan.env").rename(second)
        eventually(lambda: "10.244.9.0/24" in str(rules(node)) and "fd00:10:244:9::/64" in str(rules(node)))
        assert "10.244.1.0/24" in str(rules(node))
        second.unlink()
        eventually(lambda: "10.244.9.0/24" not in str(rules(node)))
        shutil.rmtree(directory)
        daemon.logged("no file matches", "the rules of the last good state stay")
        assert "10.244.1.0/24" in str(rules(node))
        directory.mkdir()
        (directory / "other.env").write_text(OTHER_SUBNET)
        eventually(lambda: "10.244.9.0/24" in str(rules(node)))
        daemon.reached("synced")
        assert node.masq("plan").returncode == 0


@pytest.mark.parametrize("missing", ["file", "directory", "directories"])
def test_it_waits_for_the_subnet_file_and_then_acts(node: Node, missing: str) -> None:
    node.subnet_file.unlink()
    if missing != "file":
        node.subnet_file.parent.rmdir()
    if missing == "directories":
        node.subnet_file = node.directory / "deep" / "down" / "subnet.env"
    node.configure("", backend="nft")
    with node.running() as daemon:
        daemon.logged("INFO", f"waiting for {node.subnet_file}")
        daemon.reached("waiting")
        assert not rules(node)
        node.subnet_file.parent.mkdir(parents=True, exist_ok=True)
        node.write_subnet(SUBNET_ENV)
        daemon.reached("synced")
        assert "10.244.1.0/24" in node.ruleset()
        assert not daemon.lines("ERROR")
        assert not daemon.lines("WARNING")


def test_a_renamed_subnet_file_brings_its_rules(node: Node, backend_name: BackendName) -> None:
    with in_sync(node, backend_name) as daemon:
        node.write_subnet(OTHER_SUBNET)
        for subnet in ("10.244.9.0/24", "fd00:10:244:9::/64"):
            eventually(lambda: subnet in node.ruleset())
        eventually(lambda: not any(subnet in node.ruleset() for subnet in ("10.244.1.0/24", "fd00:10:244:1::/64")))
        for family in Family:
            daemon.logged(str(family), "rules applied", "subnet file changed")
        assert not daemon.lines("drift")


def test_a_directory_removed_and_made_again_is_followed(node: Node) -> None:
    with in_sync(node) as daemon:
        before = rules(node)
        for subnet_env, subnet in ((OTHER_SUBNET, "10.244.9.0/24"), (SUBNET_ENV, "10.244.1.0/24")):
            shutil.rmtree(node.subnet_file.parent)
            eventually(lambda: daemon.status()["troubles"])
            node.subnet_file.parent.mkdir()
            node.write_subnet(subnet_env)
            eventually(lambda: subnet in node.ruleset())
            eventually(lambda: not daemon.status()["troubles"])
        eventually(lambda: rules(node) == before)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (SUBNET_ENV.encode()[:40], "cut off"),
        (b"\x7fELF\x00\x01\x02" + bytes(100), "binary"),
        (SUBNET_ENV.replace("10.244.0.0/16", "0.0.0.0/0").encode(), "/0"),
        (SUBNET_ENV.replace("10.244.1.1/24", "fd00::1/64").encode(), "FLANNEL_SUBNET"),
        (SUBNET_ENV.replace("10.244.1.1/24", "10.99.1.1/24").encode(), "10.99.1.1/24 is not within"),
        (None, "is gone"),
    ],
    ids=["empty", "cut-off", "binary", "slash-zero", "wrong-family", "outside-its-network", "vanished"],
)
def test_a_bad_subnet_file_keeps_the_rules_and_is_logged_once(node: Node, content: bytes | None, said: str) -> None:
    with in_sync(node) as daemon:
        before = rules(node)
        if content is None:
            node.subnet_file.unlink()
        else:
            new = node.subnet_file.with_name(".new")
            new.write_bytes(content)
            new.replace(node.subnet_file)
        line = daemon.logged(str(node.subnet_file), "the rules of its last good state stay")
        assert said in line
        assert line.split()[2] == ("WARNING" if content is None else "ERROR")
        eventually(lambda: any(said in trouble for trouble in daemon.status()["troubles"]))
        for _ in range(3):
            reload(daemon)
        assert len(daemon.lines("the rules of its last good state stay")) == 1
        assert len(daemon.lines("ERROR")) == (content is not None)
        assert rules(node) == before
        assert daemon.status()["state"] == "synced"
        node.write_subnet(SUBNET_ENV)
        eventually(lambda: not daemon.status()["troubles"])
        assert rules(node) == before


def reload(daemon: Daemon) -> None:
    """SIGHUP, and wait until it is done: all files were read once more."""
    seen = len(daemon.lines(CONFIGURATION_READ))
    daemon.signal(signal.SIGHUP)
    eventually(lambda: len(daemon.lines(CONFIGURATION_READ)) > seen)


def test_that_flannel_masquerades_too_is_said_once(node: Node) -> None:
    node.write_subnet(SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=true"))
    with in_sync(node) as daemon:
        node.write_subnet(OTHER_SUBNET.replace("IPMASQ=false", "IPMASQ=true"))
        eventually(lambda: "10.244.9.0/24" in node.ruleset())
        reload(daemon)
        assert len(daemon.lines("FLANNEL_IPMASQ=true")) == 1


# ---- signals


def test_sighup_with_a_good_configuration_brings_its_rules(node: Node, backend_name: BackendName) -> None:
    with in_sync(node, backend_name) as daemon:
        node.configure('[masquerade]\nnon_masquerade_cidrs = ["192.168.0.0/16", "fd99::/16"]', backend=backend_name)
        daemon.signal(signal.SIGHUP)
        for cidr in ("192.168.0.0/16", "fd99::/16"):
            eventually(lambda: cidr in node.ruleset())
        daemon.reached("synced")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[masquerade]\nrandom_fully = 3", "masquerade.random_fully"),
        ("[masquerade]\nnon_masquerade_cidrs = ['192.168.0.0/33']", "masquerade.non_masquerade_cidrs"),
        ("[masquerade]\nno_such_key = 1", "no_such_key"),
        ("[forward]\nbackend = 'no-such-backend'", "forward.backend"),
        ("[masquerade\n", "line"),
    ],
    ids=["wrong-type", "bad-value", "unknown-key", "unknown-backend", "no-toml"],
)
def test_sighup_with_a_bad_configuration_only_logs_the_error(node: Node, text: str, said: str) -> None:
    with in_sync(node) as daemon:
        before = rules(node)
        good = node.config_file.read_text()
        node.config_file.write_text(f"{good}\n{text}\n")
        daemon.signal(signal.SIGHUP)
        line = daemon.logged("ERROR", said, "the running settings stay")
        assert str(node.config_file) in line or said == "forward.backend"
        assert rules(node) == before
        assert daemon.status()["state"] == "synced"
        asked = node.masq("status")
        assert (asked.returncode, asked.stderr) == (2, "")
        assert asked.stdout.startswith(f"flanneld-masq: synced, pid {daemon.process.pid}\n  trouble: ")
        assert (asked.stdout.count(said), asked.stdout.count("trouble")) == (1, 1)
        assert "the daemon does not run" not in node.masq("doctor").stdout
        node.config_file.write_text(good)
        reload(daemon)
        eventually(lambda: not daemon.status()["troubles"])
        assert node.masq("status").returncode == 0
        assert len(daemon.lines("ERROR")) == 1


def test_sigterm_ends_it_within_a_second_and_the_rules_stay(node: Node, backend_name: BackendName) -> None:
    with in_sync(node, backend_name) as daemon:
        before = rules(node)
        assert before
        assert daemon.stop() == 0
        assert rules(node) == before
        assert daemon.status()["state"] == "stopped"
        assert daemon.lines("stopped", "rules stay in place")


def test_sigterm_removes_the_rules_where_that_is_configured(node: Node, backend_name: BackendName) -> None:
    with in_sync(node, backend_name, "[stop]\nremove_rules = true") as daemon:
        assert rules(node)
        assert daemon.stop() == 0
        assert not rules(node)
        assert daemon.lines("stopped", "rules removed")


HANGING_BACKEND = """
import pathlib, time
from flanneld_masq.hookspecs import BackendType, hookimpl

def create(family, host):
    pathlib.Path({place!r}).touch()
    time.sleep(3600)

@hookimpl
def flanneld_masq_backends():
    return [BackendType("nft", "hangs in the thread that touches the kernel", create, preference=10)]
"""


def test_a_second_sigterm_ends_it_though_a_pass_hangs(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = tmp_path / "hanging"
    (tmp_path / "flanneld_masq_nft.py").write_text(HANGING_BACKEND.format(place=str(hanging)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    node.configure("", backend="nft")
    with node.running() as daemon:
        eventually(hanging.exists)
        daemon.signal(signal.SIGTERM)
        daemon.logged("stopped in")
        assert daemon.process.poll() is None

        def ended() -> bool:
            daemon.signal(signal.SIGTERM)
            return daemon.process.poll() is not None

        eventually(ended)
        assert daemon.process.returncode == -signal.SIGTERM


def test_sigterm_while_it_waits_ends_it_too(node: Node) -> None:
    node.subnet_file.unlink()
    with node.running() as daemon:
        daemon.reached("waiting")
        assert daemon.stop() == 0


# ---- the kernel


def test_a_restart_with_nothing_changed_writes_nothing(node: Node, backend_name: BackendName) -> None:
    def written() -> list[tuple[str, int, int]]:
        """Return name, inode and time of each read-back on disk; every write replaces its file."""
        files = [path for path in node.state.glob("*.json") if path.name not in ("status.json", "authors.json")]
        return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(files)]

    with in_sync(node, backend_name) as daemon:
        assert daemon.stop() == 0
    before, texts, files = generation(node), rules(node), written()
    with in_sync(node, backend_name) as daemon:
        for family in Family:
            daemon.logged(str(family), "the kernel already holds the right rules; nothing written")
        assert daemon.stop() == 0
    assert generation(node) == before
    assert rules(node) == texts
    assert written() == files


@pytest.mark.parametrize(
    ("backend_name", "reason"),
    [
        ("nft", "ruleset changed"),
        ("iptables-nft", "ruleset changed"),
        ("iptables-legacy", "legacy tables changed"),
    ],
    indirect=["backend_name"],
)
def test_drift_is_repaired_and_told_once(node: Node, family: Family, backend_name: BackendName, reason: str) -> None:
    with in_sync(node, backend_name, "[reconcile]\nresync_seconds = 3600\nlegacy_poll_seconds = 60") as daemon:
        before = rules(node)
        damage(node, family, backend_name)
        line = daemon.logged("WARNING", "drift repaired")
        assert str(family) in line
        assert f"({reason})" in line
        assert rules(node) == before
        eventually(lambda: daemon.status()["families"][str(family)]["repairs"] == 1)
        assert len(daemon.lines("drift repaired")) == 1
        assert daemon.status()["families"][str(family)]["last_repair"]["changes"]
        assert daemon.status()["state"] == "synced"


@pytest.mark.parametrize("backend_name", ["iptables-nft"], indirect=True)
def test_one_family_in_trouble_holds_up_no_other_and_recovers(
    node: Node, family: Family, backend_name: BackendName
) -> None:
    other = next(found for found in Family if found is not family)
    node.tool("nft", f"add table {family.data.nft} nat {{ flags dormant; }}")
    node.configure("", backend=backend_name)
    with node.running() as daemon:
        daemon.reached("degraded", family)
        daemon.reached("synced", other)
        assert daemon.status()["state"] == "degraded"
        assert "dormant" in daemon.status()["families"][str(family)]["last_error"]
        assert ours(node, other)
        damage(node, other, backend_name)
        daemon.logged(str(other), "drift repaired")
        assert not ours(node, family)
        node.tool("nft", "add", "table", family.data.nft, "nat")
        daemon.reached("synced")
        assert ours(node, family)
        assert len(daemon.lines("ERROR")) == 1
        assert daemon.lines("ERROR", str(family), "dormant", "next try in")
        assert daemon.logged(str(family), "in sync again")  # which comes behind the status


def unverified(daemon: Daemon) -> dict[str, Any]:
    """Return its status without the times of verification."""
    status = daemon.status()
    for found in status["families"].values():
        del found["verified"]
    return status


def test_it_is_silent_and_writes_nothing_while_nothing_changes(
    node: Node, backend_name: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin of the test counts the resyncs: it is asked for networks at each."""
    count = install_counter(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    with in_sync(node, backend_name, "[reconcile]\nresync_seconds = 1\nlegacy_poll_seconds = 0.1") as daemon:
        started = len(count.read_text())
        eventually(lambda: len(count.read_text()) >= started + 2)
        lines, status, ruleset, commits = daemon.lines(), unverified(daemon), rules(node), generation(node)
        eventually(lambda: len(count.read_text()) >= started + 6)
        assert daemon.lines() == lines
        assert unverified(daemon) == status, "it says nothing new but when it looked"
        assert generation(node) == commits
        assert rules(node) == ruleset


def install_counter(site: Path) -> Path:
    """A distribution with a plugin that adds a character to a file whenever it is asked. The file."""
    count = site / "count"
    site.mkdir()
    count.write_text("")
    (site / "resync_counter.py").write_text(
        "from flanneld_masq.hookspecs import hookimpl\n\n\n"
        "@hookimpl\n"
        "def flanneld_masq_non_masquerade_cidrs():\n"
        f"    with open({str(count)!r}, 'a') as file:\n"
        "        file.write('.')\n"
        "    return ()\n"
    )
    metadata = site / "resync_counter-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: resync-counter\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[flanneld_masq]\nresync-counter = resync_counter\n")
    return count


def test_an_unwritable_metrics_file_and_its_end_are_logged_once(node: Node) -> None:
    metrics = node.directory / "collector" / "metrics.prom"
    text = f'[reconcile]\nresync_seconds = 1\n[metrics]\ntextfile = "{metrics}"'
    with in_sync(node, "nft", text) as daemon:
        daemon.logged("ERROR", f"{metrics} cannot be written: No such file or directory")
        for count in (1, 2):
            metrics.parent.mkdir()
            eventually(lambda: len(daemon.lines("INFO", "written again")) == count)
            assert metrics.exists()
            assert daemon.status()["troubles"] == []
            eventually((metrics.parent / ".metrics.prom.stopped").exists)  # the last file of a write
            shutil.rmtree(metrics.parent)
            damage(node, Family.IPV4, BackendName("nft"))  # so that there is something new to write
            eventually(lambda: len(daemon.lines("ERROR")) == count + 1)
            (trouble,) = eventually(lambda: daemon.status()["troubles"])
            assert trouble == f"{metrics} cannot be written: No such file or directory"
        assert daemon.status()["state"] == "synced"


# ---- another instance


def test_the_end_of_another_instance_is_waited_for_by_a_service(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a terminal it ends at once. A service would be started again every few seconds."""
    with in_sync(node) as first:
        with node.running() as second:
            assert second.process.wait(patience(10)) == 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.settimeout(patience(10))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            with node.running() as third:
                said = systemd.recv(4096).decode()
                assert said.startswith("STATUS=waiting for the other instance to exit: another flanneld-masq runs")
                assert f"pid {first.process.pid}" in said
                assert first.stop() == 0
                third.reached("synced")


# ---- what it says of itself


def test_a_reload_that_only_adds_a_metrics_file_writes_it(node: Node) -> None:
    metrics = node.directory / "metrics.prom"
    with in_sync(node) as daemon:
        node.configure(f'[metrics]\ntextfile = "{metrics}"', backend="nft")
        reload(daemon)
        assert 'flanneld_masq_state{state="synced"} 1' in eventually(
            lambda: metrics.read_text() if metrics.exists() else ""
        )


def test_status_tells_state_lease_backend_and_rules(node: Node, backend_name: BackendName) -> None:
    with in_sync(node, backend_name) as daemon:
        printed = json.loads(node.masq("status", "--json").stdout)
        assert printed == daemon.status()
        assert printed["state"] == "synced"
        assert printed["pid"] == daemon.process.pid
        assert printed["leases"][0]["ipv4"] == {"networks": ["10.244.0.0/16"], "subnet": "10.244.1.0/24"}
        assert printed["leases"][0]["ipv6"] == {"networks": ["fd00:10:244::/56"], "subnet": "fd00:10:244:1::/64"}
        for family in Family:
            found = printed["families"][str(family)]
            assert (found["state"], found["last_error"], found["repairs"]) == ("synced", "", 0)
            assert {group: (each["backend"], each["rules"]) for group, each in found["groups"].items()} == {
                "masquerade": (backend_name, 5),
                "forward": (backend_name, 2),
            }
        assert daemon.stop() == 0
    stopped = json.loads(node.masq("status", "--json").stdout)
    assert (stopped["state"], stopped["pid"]) == ("stopped", None)
    for family in Family:
        before, after = (found["families"][str(family)] for found in (printed, stopped))
        assert (after["state"], after["kernel"]) == ("stopped", "holds what is wanted")
        assert (after["repairs"], after["last_repair"]) == (0, None)
        assert (after["last_write"], after["verified"]) == (before["last_write"], before["verified"])
