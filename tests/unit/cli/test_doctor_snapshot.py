"""`doctor --snapshot` on an archive and on a snapshot, without this machine's rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
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
VXLAN = {"local": "192.0.2.1", "link": "eth0", "port": 8472}
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
    healthy, lacking = done.out.splitlines()
    assert (done.status, healthy, done.err) == (0, "nothing found that breaks masquerading", "")
    assert lacking.startswith("not in the archive: doctor.json,")


def finding(kind: str, **more: str) -> dict[str, str]:
    texts = dict.fromkeys(("what", "seen", "why", "remedy", "persist", "family", "owner"), "")
    return {"id": kind, "severity": "problem", **texts, **more}


def test_findings_on_what_is_not_saved_are_those_of_the_node(masq: Program) -> None:
    """doctor examines again what the snapshot holds. The saved finding says off, the snapshot says on."""
    said = [finding("service-failed", seen="exit status 1"), finding("forwarding-off"), finding("of-a-later-release")]
    files = {**LEASE, "doctor.json": json.dumps({"findings": said, "plugin_failures": []})}
    done = masq(f"doctor --json --snapshot {saved(masq, OWN, files)}")
    (found,) = done.json["findings"]
    assert (done.status, found["id"], found["seen"]) == (1, "service-failed", "exit status 1")
    assert "not_in_archive" not in done.json


def test_a_field_of_a_later_release_is_left_out(masq: Program) -> None:
    files = {**LEASE, "doctor.json": json.dumps({"findings": [finding("service-failed", of_a_later_release="x")]})}
    done = masq(f"doctor --json --snapshot {saved(masq, OWN, files)}")
    assert [one["id"] for one in done.json["findings"]] == ["service-failed"]
    assert "not_in_archive" not in done.json


def test_rules_that_the_daemon_lacks_explain_the_packets(masq: Program) -> None:
    files = {**LEASE, "doctor.json": json.dumps({"findings": [finding("rules-differ", family="ipv4")]})}
    assert [one["id"] for one in masq(f"doctor --json --snapshot {saved(masq, [], files)}").json["findings"]] == [
        "rules-differ"
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"findings": [{}]}', '{"findings": [{"id": "rules-differ"}]}'])
def test_findings_that_cannot_be_read_are_lacking(text: str, masq: Program) -> None:
    done = masq(f"doctor --json --snapshot {saved(masq, OWN, {**LEASE, 'doctor.json': text})}")
    assert (done.status, done.json["findings"]) == (0, [])
    assert done.json["not_in_archive"].startswith("doctor.json, so nothing is known")


def test_interfaces_routes_and_switches_are_examined(masq: Program) -> None:
    links = [{"ifname": "cni0", "mtu": 1450, "addr_info": [_inet("10.244.9.1", 24)], "flags": []}]
    links += [{"ifname": "flannel.1", "mtu": 1450, "linkinfo": {"info_kind": "vxlan", "info_data": VXLAN}}]
    links[1]["addr_info"] = [_inet("10.244.1.0", 32)]
    node = replace(
        snapshot(OWN, sysctls={"net.netfilter.nf_conntrack_count": "95", "net.netfilter.nf_conntrack_max": "100"}),
        addresses=json.dumps([*links, {"ifname": "eth0", "mtu": 1500, "addr_info": [_inet("192.0.2.1", 24)]}]),
        ends=json.dumps([{"ifname": "flannel.1", "dst": "192.0.2.1"}, {"ifname": "vxlan9", "dst": "192.0.2.1"}]),
        neighbours=json.dumps([{"dst": "10.244.7.0", "dev": "flannel.1"}]),
    )
    path = masq.directory / "report.tar.gz"
    path.write_bytes(archive({"snapshot.json": to_json(node), **LEASE}).getvalue())
    found = {one["id"] for one in masq(f"doctor --json --snapshot {path}").json["findings"]}
    assert {
        "conntrack-nearly-full",
        "pod-route-missing",
        "subnet-file-of-another-node",
        "tunnel-to-itself",
    } <= found


def _inet(address: str, length: int) -> dict[str, object]:
    return {"family": "inet", "local": address, "prefixlen": length, "scope": "global"}


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


def test_an_unusable_subnet_file_is_one_more_finding(masq: Program) -> None:
    files = {**LEASE, "subnet-files/2.env": "# /run/flannel/other.env\n"}
    done = masq(f"doctor --json --snapshot {saved(masq, OWN, files)}")
    (found,) = done.json["findings"]
    assert (done.status, found["id"]) == (1, "subnet-unknown")
    assert "subnet-files/2.env" in found["seen"]


def test_without_a_usable_subnet_file_there_is_no_answer(masq: Program) -> None:
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


def test_interfaces_are_examined_where_rules_cannot_be_read(masq: Program) -> None:
    path = masq.directory / "report.tar.gz"
    broken = replace(snapshot(OWN, sysctls={"net.ipv4.ip_forward": "0"}), ruleset="cut")
    path.write_bytes(archive({"snapshot.json": to_json(broken), **LEASE}).getvalue())
    done = masq(f"doctor --json --snapshot {path}")
    assert [found["id"] for found in done.json["findings"]] == ["forwarding-off", "flows-unknown"]


def test_another_file_is_refused(masq: Program) -> None:
    done = masq(f"doctor --snapshot {masq.config_file}")
    assert (done.status, "no snapshot of a node" in done.err) == (1, True)
