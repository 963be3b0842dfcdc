"""`report` on a real node: the archive can be evaluated elsewhere, and holds no secret."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from flanneld_masq.packet_path.evaluate import Node as PathNode
from flanneld_masq.packet_path.flows import Judgement, flows
from flanneld_masq.packet_path.snapshot import from_json

from .conftest import Node

REJECTING = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ip daddr 10.244.2.0/24 reject comment "</td><script>alert(1)</script>"
  }
}
"""


def parts_of(path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(path) as read:
        for member in read.getmembers():
            content = read.extractfile(member)
            assert content is not None
            found[member.name.split("/", 1)[1]] = content.read().decode()
    return found


def test_a_report_can_be_evaluated_elsewhere(lab_node: Node, tmp_path: Path) -> None:
    net_conf = tmp_path / "net-conf.json"
    net_conf.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard", "PSK": "hunter2"}}')
    lab_node.configure("", backend="nft", net_conf=str(net_conf))
    assert lab_node.masq("apply").returncode == 0
    lab_node.tool("nft", "-f", "-", stdin=REJECTING)
    before = lab_node.ruleset()
    path = tmp_path / "report.tar.gz"
    done = lab_node.masq("report", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert lab_node.ruleset() == before

    parts = parts_of(path)
    assert "hunter2" not in "".join(parts.values())
    assert "10.244.0.0/16" in parts["net-conf.json"]
    found = flows(PathNode(from_json(parts["snapshot.json"])), lab_node.lease(), lab_node.settings)
    written = json.loads(parts["flows.json"])
    assert [one["judgement"] for one in written] == [one.judgement.value for one in found]
    wrong = [one for one in written if one["judgement"] == Judgement.WRONG.value]
    assert {cause["owner"] for one in wrong for cause in one["causes"]} == {"firewalld"}
    assert "rejected by firewalld" in parts["node.html"]
    assert "<script" not in parts["node.html"]
    for name in ("status.json", "doctor.json", "backends.json"):
        assert json.loads(parts[name])
    assert "10.244.1.0/24 dev" in parts["routes.txt"]


def test_doctor_reads_the_archive_of_a_node(lab_node: Node, tmp_path: Path) -> None:
    lab_node.configure("", backend="nft")
    assert lab_node.masq("apply").returncode == 0
    healthy, broken = tmp_path / "healthy.tar.gz", tmp_path / "broken.tar.gz"
    assert lab_node.masq("report", str(healthy)).returncode == 0
    lab_node.tool("nft", "-f", "-", stdin=REJECTING)
    assert lab_node.masq("report", str(broken)).returncode == 0
    lab_node.subnet_file.unlink()  # what follows is another machine

    def findings(path: Path) -> set[tuple[str, str]]:
        done = lab_node.masq("doctor", "--json", "--snapshot", str(path))
        assert done.stderr == ""
        return {(one["id"], one["owner"]) for one in json.loads(done.stdout)["findings"]}

    found = {("daemon-not-running", "")}  # as the node said
    assert findings(healthy) == found
    assert findings(broken) == found | {("flow-dropped", "firewalld")}


def test_explain_html_shows_the_rule_that_decides(lab_node: Node, tmp_path: Path) -> None:
    lab_node.configure("", backend="nft")
    assert lab_node.masq("apply").returncode == 0
    lab_node.tool("nft", "-f", "-", stdin=REJECTING)
    path = tmp_path / "one.html"
    done = lab_node.masq("explain", "--src", "10.244.1.5", "--dst", "10.244.2.5", "--html", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "rejected by rule 1 of filter_FORWARD in inet firewalld" in path.read_text()
