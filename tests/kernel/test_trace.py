"""`trace` on real packets: it names each rule that they pass, whatever program wrote it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from flanneld_masq.errors import MasqError
from flanneld_masq.kernel.trace_events import TraceSocket
from flanneld_masq.model import BackendName, Family, Packet
from flanneld_masq.selftest import packets
from flanneld_masq.selftest.topology import Addresses, Topology

from ..common import as_from_a_terminal, eventually, patience
from .conftest import Node

FLAVOURS = ("nft", "iptables-nft", "iptables-legacy")
Send = Callable[[], None]


@pytest.fixture
def of(family: Family, topology: Topology) -> Addresses:
    return next(each for each in topology.addresses if each.family is family)


@pytest.fixture
def send(topology: Topology, of: Addresses) -> Send:
    """Send one packet of the flow that is traced; it may get lost."""

    def send() -> None:
        with suppress(MasqError):
            packets.udp(topology.pod, topology.outside, Packet(of.pod, of.far), deadline=0.5)

    return send


@contextmanager
def tracing(node: Node, of: Addresses, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run `trace` until the end of the block; it listens already."""
    command = node.argv("trace", "--src", str(of.pod), "--dst", str(of.far), *argv)
    with node.entered():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
        )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("tracing ")
        yield process
    finally:
        process.kill()
        process.communicate()


def traced(node: Node, of: Addresses, send: Send, *argv: str) -> dict[str, Any]:
    """Return the first packet that `trace` saw."""
    with tracing(node, of, "--json", "--packets", "1", "--seconds", "20", *argv) as process:
        send()
        out, err = process.communicate(timeout=patience(30))
        assert (process.returncode, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        assert found["seen"] == 1
        packet: dict[str, Any] = found["packets"][0]
        return {**packet, "cannot_tell": found["cannot_tell"], "legacy_counters": found["legacy_counters"]}


def drop(node: Node, family: Family, flavour: str) -> None:
    """Another program drops what pods send."""
    source = str(subnet(node, family))
    if flavour == "nft":
        rule = f"{family.data.nft} saddr {source} drop"
        chain = f"chain filter_FORWARD {{ type filter hook forward priority 10; {rule}; }}"
        node.tool("nft", "-f", "-", stdin=f"table inet firewalld {{\n{chain}\n}}\n")
    else:
        tool = f"{family.data.tools}-{flavour.removeprefix('iptables-')}"
        node.tool(tool, "-N", "ufw-user-forward")
        node.tool(tool, "-A", "FORWARD", "-j", "ufw-user-forward")
        node.tool(tool, "-A", "ufw-user-forward", "-s", source, "-j", "DROP")


def subnet(node: Node, family: Family) -> Any:
    lease = node.lease().of(family)
    assert lease is not None
    return lease.subnet


def trace_tables(node: Node) -> list[str]:
    return [line for line in node.tool("nft", "list", "tables").splitlines() if "flanneld-masq-trace" in line]


def logger(node: Node, family: Family) -> str:
    with node.entered():
        return Path(f"/proc/sys/net/netfilter/nf_log/{2 if family is Family.IPV4 else 10}").read_text().strip()


def test_our_own_masquerade_is_named(lab_node: Node, backend_name: BackendName, of: Addresses, send: Send) -> None:
    lab_node.configure("", backend=backend_name)
    assert lab_node.masq("apply").returncode == 0
    before = lab_node.ruleset()
    found = traced(lab_node, of, send)
    assert (found["fate"], found["to"]["src"], found["device_in"], found["device_out"]) == (
        "translated",
        str(of.node),
        "cni0",
        "eth0",
    )
    (rule,) = found["decided_by"]
    assert rule["owner"] == "flanneld-masq"
    assert "masquerade" in rule["text"].lower()
    assert rule["backend"] == ("legacy" if backend_name == "iptables-legacy" else "nf_tables")
    assert rule["number" if backend_name == "iptables-legacy" else "handle"] > 0
    hooks = list(dict.fromkeys(step["hook"] for step in found["steps"]))
    assert hooks == [hook for hook in ("prerouting", "forward", "postrouting") if hook in hooks]
    assert lab_node.ruleset() == before


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_foreign_drop_is_named(lab_node: Node, flavour: str, of: Addresses, send: Send) -> None:
    drop(lab_node, of.family, flavour)
    before, logged_to = lab_node.ruleset(), logger(lab_node, of.family)
    found = traced(lab_node, of, send)
    assert (found["fate"], found["hook"], found["to"]) == ("dropped", "forward", None)
    (rule,) = found["decided_by"]
    place = ("inet firewalld", "filter_FORWARD") if flavour == "nft" else ("filter", "ufw-user-forward")
    assert (rule["table"].endswith(place[0]), rule["chain"]) == (True, place[1])
    assert rule["owner"] == ("firewalld" if flavour == "nft" else "ufw")
    assert str(subnet(lab_node, of.family)) in rule["text"]
    assert found["cannot_tell"] == []
    assert (lab_node.ruleset(), logger(lab_node, of.family)) == (before, logged_to)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_masquerade_of_another_program_is_named(lab_node: Node, flavour: str, of: Addresses, send: Send) -> None:
    source = str(subnet(lab_node, of.family))
    if flavour == "nft":
        text = f"{of.family.data.nft} saddr {source} oifname != docker0 masquerade"
        chain = f"chain POSTROUTING {{ type nat hook postrouting priority 100; {text}; }}"
        lab_node.tool("nft", "-f", "-", stdin=f"table {of.family.data.nft} mine {{\n{chain}\n}}\n")
    else:
        tool = f"{of.family.data.tools}-{flavour.removeprefix('iptables-')}"
        lab_node.tool(tool, "-t", "nat", *f"-A POSTROUTING -s {source} ! -o docker0 -j MASQUERADE".split())
    found = traced(lab_node, of, send)
    assert (found["fate"], found["to"]["src"]) == ("translated", str(of.node))
    assert [(rule["owner"], rule["chain"]) for rule in found["decided_by"]] == [("docker", "POSTROUTING")]


@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_a_rule_that_drops_everything_is_no_policy(lab_node: Node, flavour: str, of: Addresses, send: Send) -> None:
    tool = f"{of.family.data.tools}-{flavour.removeprefix('iptables-')}"
    lab_node.tool(tool, "-N", "ufw-reject")
    lab_node.tool(tool, "-A", "FORWARD", "-j", "ufw-reject")
    lab_node.tool(tool, "-A", "ufw-reject", "-j", "DROP")
    found = traced(lab_node, of, send)
    (rule,) = found["decided_by"]
    assert (found["fate"], rule["kind"], rule["chain"], rule["owner"]) == ("dropped", "rule", "ufw-reject", "ufw")


@pytest.mark.parametrize("flavour", FLAVOURS[1:])
def test_a_policy_that_drops_is_named(lab_node: Node, flavour: str, of: Addresses, send: Send) -> None:
    lab_node.tool(f"{of.family.data.tools}-{flavour.removeprefix('iptables-')}", "-P", "FORWARD", "DROP")
    found = traced(lab_node, of, send)
    (rule,) = found["decided_by"]
    assert (found["fate"], rule["kind"], rule["chain"], rule["verdict"]) == ("dropped", "policy", "FORWARD", "drop")


def test_a_translated_destination_is_named(lab_node: Node, of: Addresses, send: Send) -> None:
    target = f"[{of.outside}]" if of.family is Family.IPV6 else str(of.outside)
    chain = f"chain services {{ type nat hook prerouting priority -100; meta l4proto udp dnat to {target}:9; }}"
    lab_node.tool("nft", "-f", "-", stdin=f"table {of.family.data.nft} kube-proxy {{\n{chain}\n}}\n")
    found = traced(lab_node, of, send, "--proto", "udp")
    assert (found["fate"], found["to"]["dst"], found["to"]["dport"]) == ("translated", str(of.outside), 9)
    assert [(rule["owner"], rule["chain"]) for rule in found["decided_by"]] == [("kube-proxy", "services")]


def test_a_packet_that_no_rule_stops_is_delivered(lab_node: Node, of: Addresses, send: Send) -> None:
    found = traced(lab_node, of, send)
    assert (found["fate"], found["decided_by"], found["steps"]) == ("delivered", [], [])
    assert found["to"] == found["from"]


def test_forwarding_that_is_off_is_no_rule(lab_node: Node, of: Addresses, send: Send) -> None:
    lab_node.netns.sysctl({of.family.data.forwarding.replace("net/", "", 1): 0})
    with tracing(lab_node, of, "--packets", "1", "--seconds", "20") as process:
        send()
        out, _ = process.communicate(timeout=patience(30))
    assert "lost after the first hook, by no rule that reports it: check forwarding" in out


def test_counters_stand_in_if_the_log_is_taken(lab_node: Node, of: Addresses, send: Send) -> None:
    drop(lab_node, of.family, "iptables-legacy")
    with lab_node.entered():
        other = TraceSocket()
        other.receive_logs()
    try:
        found = traced(lab_node, of, send)
    finally:
        other.close()
    assert found["fate"] == "lost"
    grown = {(rule["table"], rule["chain"], rule["number"]): rule["text"] for rule in found["legacy_counters"]}
    assert grown.keys() == {("filter", "FORWARD", 1), ("filter", "ufw-user-forward", 1)}
    assert "-j DROP" in grown["filter", "ufw-user-forward", 1]
    (blind,) = found["cannot_tell"]
    assert blind.startswith("legacy iptables reports no single packet here")


def test_the_lines_name_the_rule(lab_node: Node, of: Addresses, send: Send) -> None:
    drop(lab_node, of.family, "nft")
    with tracing(lab_node, of, "--packets", "2", "--seconds", "20") as process:
        send()
        send()
        out, _ = process.communicate(timeout=patience(30))
    first, *_, last, same = out.splitlines()
    assert first.startswith("packet 1: ") and first.endswith(" udp, by cni0")
    assert last.startswith("  dropped in forward by inet firewalld filter_FORWARD handle ") and "(firewalld): " in last
    assert same == "and 1 more that went the same way"


def test_no_packet_is_said(lab_node: Node, of: Addresses) -> None:
    done = lab_node.masq("trace", "--src", str(of.pod), "--dst", str(of.far), "--seconds", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "was seen in 0.2 s: send packets during the trace" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_ends_it_and_removes_everything(lab_node: Node, of: Addresses, number: int) -> None:
    drop(lab_node, of.family, "iptables-legacy")
    before, logged_to = lab_node.ruleset(), logger(lab_node, of.family)
    with tracing(lab_node, of, "--seconds", "600") as process:
        assert trace_tables(lab_node)
        process.send_signal(number)
        process.communicate(timeout=patience(10))
        assert process.returncode == (1 if number == signal.SIGINT else 143)
    assert (lab_node.ruleset(), logger(lab_node, of.family)) == (before, logged_to)


def test_sigkill_leaves_nothing(lab_node: Node, of: Addresses) -> None:
    drop(lab_node, of.family, "iptables-legacy")
    before, logged_to = lab_node.ruleset(), logger(lab_node, of.family)
    with tracing(lab_node, of, "--seconds", "600") as process:
        assert trace_tables(lab_node)
        process.kill()
        process.communicate()
    eventually(lambda: (lab_node.ruleset(), logger(lab_node, of.family)) == (before, logged_to))


def test_the_next_run_removes_what_an_old_kernel_leaves(lab_node: Node, of: Addresses) -> None:
    process = subprocess.Popen(("true",))
    process.wait()
    nft = of.family.data.nft
    for name in (f"trace-{process.pid}", f"trace-{os.getpid()}", f"probe-{process.pid}"):
        lab_node.tool("nft", "add", "table", nft, f"flanneld-masq-{name}")
    lab_node.masq("trace", "--src", str(of.pod), "--dst", str(of.far), "--seconds", "0.1")
    assert lab_node.tool("nft", "list", "tables") == f"table {nft} flanneld-masq-trace-{os.getpid()}\n"


def test_a_busy_flow_is_limited(lab_node: Node, topology: Topology, of: Addresses) -> None:
    with tracing(lab_node, of, "--packets", "1000", "--seconds", "1", "--json") as process:
        for _ in range(200):
            packets.udp(topology.pod, topology.outside, Packet(of.pod, of.far))
        out, _ = process.communicate(timeout=patience(10))
    assert 10 <= json.loads(out)["seen"] < 200
