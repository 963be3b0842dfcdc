"""`trace` and `probe` before they touch the kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .program import Program

FLOW = "trace --src 10.244.1.5 --dst 192.0.2.7"


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trace --src 10.244.1.5 --dst fd00::1", "--dst: fd00::1 is not of the same family as 10.244.1.5"),
        (f"{FLOW} --dport 53", "--dport: only tcp, udp and sctp have ports; name one with --proto"),
        (f"{FLOW} --proto icmp --dport 53", "--dport: only tcp, udp and sctp have ports"),
    ],
)
def test_a_flow_that_cannot_be(line: str, problem: str, masq: Program) -> None:
    done = masq(line)
    assert (done.status, done.out) == (2, "")
    assert problem in done.err


def test_trace_needs_root(masq: Program, ordinary_user: None) -> None:
    done = masq(FLOW)
    assert (done.status, done.out) == (1, "")
    assert "trace needs root: it sets a rule in nf_tables" in done.err


def test_probe_cannot_tell_without_root(masq: Program, ordinary_user: None) -> None:
    done = masq("probe --json")
    assert (done.status, done.json["results"]) == (2, [])
    assert "probe needs root: it makes network namespaces" in done.json["errors"][0]


def test_the_daemon_loads_none_of_it() -> None:
    code = (
        "import sys; from flanneld_masq.cli import main; from flanneld_masq.service import daemon; "
        "parts = ('live', 'kernel.trace', 'packet_path', 'doctor', 'cli.explain_node', 'cli.doctor_facts'); "
        "print([name for name in sys.modules if name.startswith(tuple(f'flanneld_masq.{part}' for part in parts))])"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
