"""An unprivileged user of the node cannot harm the daemon by D-Bus."""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from flanneld_masq.dbus.manager1 import NAME
from flanneld_masq.model import BackendName

from .. import attacker
from ..common import Tell, eventually, lasting, patience
from .machine import UNIT, Machine
from .rules import Outages, rules_of
from .test_dbus import begin, flush

REPAIR_MS = 100.0
STOP_SECONDS = 2.0
LONGER_THAN_A_STOP = 20.0
MAX_KB = 40 * 1024
SCRIPT, BUS = "/run/attacker.py", "/run/dbus/system_bus_socket"


def peak_kb(machine: Machine, pid: int) -> int:
    (line,) = re.findall(r"VmHWM:\s+(\d+)", machine.path(f"/proc/{pid}/status").read_text())
    return int(line)


@pytest.fixture
def target(machine: Machine) -> Machine:
    machine.write(SCRIPT, Path(attacker.__file__).read_text()).chmod(0o644)
    # ten repairs at once are free, then two a second
    return begin(machine)


def begin_attack(machine: Machine, kind: str, seconds: float) -> subprocess.Popen[str]:
    """Start an attack and wait until its first messages are sent."""
    attack = machine.start("python3", SCRIPT, BUS, NAME, kind, str(seconds), user="nobody")
    assert attack.stdout is not None
    assert select.select([attack.stdout], (), (), patience(10))[0], "the attack has not begun"
    assert attack.stdout.readline() == f"{attacker.ATTACKING}\n"
    return attack


def test_attacks_on_d_bus_delay_no_repair_and_no_stop(target: Machine, tell: Tell) -> None:
    pid, seconds = int(target.show("MainPID")), lasting(0.7, 20.0)
    worst = {}
    for kind in ("none", *attacker.KINDS, *attacker.CROWDS):
        attack = begin_attack(target, kind, seconds) if kind != "none" else None
        outages = Outages(rules_of(target.site.topology, BackendName("nft")))
        with outages.watched():
            flush(target)
        worst[kind] = max(outages.milliseconds, default=0.0)  # it may have been too short to be seen
        if attack is not None:
            assert attack.wait(patience(60)) == 0
    target.site.assert_masqueraded()
    peak = peak_kb(target, pid)
    attack = begin_attack(target, "statuses", patience(LONGER_THAN_A_STOP))
    began = time.monotonic()
    target.systemctl("stop", UNIT)
    stopped = time.monotonic() - began
    assert attack.poll() is None, "the attack goes on during the stop"
    figures = ", ".join(f"{kind} {value:.0f}" for kind, value in worst.items())
    tell(f"{target.release}, attacks: repairs (ms): {figures}; peak {peak / 1024:.1f} MB; stopped in {stopped:.2f} s")
    assert stopped < patience(STOP_SECONDS)
    assert peak < MAX_KB
    assert {kind: value for kind, value in worst.items() if value > patience(REPAIR_MS)} == {}
    assert target.show("Result") == "success"


def test_a_flood_is_in_the_journal_once(target: Machine) -> None:
    attack = begin_attack(target, "silent-pings", 2.0)
    entry = target.logged("exceeds the limit")
    assert attack.wait(patience(60)) == 0
    assert re.match(
        rf"D-Bus: pid \d+ of user {target.run('id', '-u', 'nobody').stdout.strip()} exceeds", entry["MESSAGE"]
    )
    logged = [line for line in target.journal(f"--unit={UNIT}") if "exceeds the limit" in str(line["MESSAGE"])]
    assert len(logged) == 1
    answer = target.run(
        "busctl", "--json=short", "call", NAME, attacker.PATH, attacker.MANAGER, "GetStatus", user="nobody"
    )
    assert json.loads(json.loads(answer.stdout)["data"][0])["state"] == "synced"
    eventually(lambda: target.masq("plan", check=False).returncode == 0)
