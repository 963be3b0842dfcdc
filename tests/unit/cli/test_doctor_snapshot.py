"""`doctor --snapshot` on an archive and on a snapshot, without this machine's rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flanneld_masq.packet_path.snapshot import to_json

from ..packet_path.nodes import DROP, chain, match, meta, rule, snapshot, table
from ..report.test_saved_node import archive
from .program import SUBNET, Program

OWN = [
    table("flanneld-masq"),
    chain("p", "postrouting", "nat", prio=100, table="flanneld-masq"),
    rule("p", match(meta("oifname"), "eth0"), {"masquerade": None}, table="flanneld-masq"),
]
BROKEN = [
    *OWN,
    table("firewalld", "inet"),
    chain("f", "forward", table="firewalld", family="inet"),
    rule("f", DROP, table="firewalld", family="inet"),
]
IPV4 = "".join(line for line in SUBNET.splitlines(keepends=True) if "IPV6" not in line)
LEASE = {"subnet-files/1.env": f"# /run/flannel/subnet.env\n{IPV4}"}


@pytest.fixture(autouse=True)
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)


def saved(masq: Program, objects: Sequence[object], files: dict[str, str]) -> Path:
    path = masq.directory / "report.tar.gz"
    path.write_bytes(archive({"snapshot.json": to_json(snapshot(objects)), **files}).getvalue())
    return path


def test_a_healthy_node(masq: Program) -> None:
    done = masq(f"doctor --snapshot {saved(masq, OWN, LEASE)}")
    assert (done.status, done.out, done.err) == (0, "nothing found that breaks masquerading\n", "")


def test_a_rule_that_drops(masq: Program) -> None:
    done = masq(f"doctor --json --snapshot {saved(masq, BROKEN, LEASE)}")
    (found,) = done.json["findings"]
    assert (done.status, found["id"], found["owner"]) == (1, "flow-dropped", "firewalld")


def test_the_settings_are_those_of_the_node(masq: Program) -> None:
    files = {
        **LEASE,
        "config.toml": "[masquerade]\nenabled = true\n",
        "config.d/1.toml": "[masquerade]\nenabled = false\n",
    }
    assert masq(f"doctor --snapshot {saved(masq, [], LEASE)}").status == 1
    assert masq(f"doctor --snapshot {saved(masq, [], files)}").status == 0


def test_a_subnet_file_that_cannot_be_used_is_a_finding_beside_the_others(masq: Program) -> None:
    files = {**LEASE, "subnet-files/2.env": "# /run/flannel/other.env\n"}
    done = masq(f"doctor --json --snapshot {saved(masq, OWN, files)}")
    (found,) = done.json["findings"]
    assert (done.status, found["id"]) == (1, "subnet-unknown")
    assert "subnet-files/2.env" in found["seen"]


def test_without_a_subnet_file_that_can_be_used_there_is_no_answer(masq: Program) -> None:
    done = masq(f"doctor --snapshot {saved(masq, OWN, {'subnet-files/1.env': '# /run/flannel/subnet.env'})}")
    assert (done.status, done.out) == (2, "")
    assert "subnet-files/1.env" in done.err and "name that of its node" in done.err


def test_a_subnet_file_can_be_named(masq: Program) -> None:
    path = masq.directory / "snapshot.json"
    path.write_text(to_json(snapshot(BROKEN)))
    done = masq(f"doctor --snapshot {path}")
    assert (done.status, done.out) == (2, "")
    assert "holds no subnet file; name that of its node" in done.err
    masq.subnet_file.write_text(IPV4)
    assert masq(f"doctor --snapshot {path} --subnet-file {masq.subnet_file}").status == 1
    assert masq(f"doctor --snapshot {path} --subnet-file {masq.directory}/none").status == 2


def test_what_was_not_read_cannot_be_told(masq: Program) -> None:
    path = masq.directory / "report.tar.gz"
    lacking = snapshot(OWN, unread=("`nft -j list ruleset` failed",))
    path.write_bytes(archive({"snapshot.json": to_json(lacking), **LEASE}).getvalue())
    done = masq(f"doctor --json --snapshot {path}")
    assert (done.status, [found["id"] for found in done.json["findings"]]) == (2, ["flows-unknown"])


def test_another_file_is_refused(masq: Program) -> None:
    done = masq(f"doctor --snapshot {masq.config_file}")
    assert (done.status, "no snapshot of a node" in done.err) == (1, True)
