"""The Ansible role, run by real Ansible against booted nodes whose flannel masquerades: `make ansible`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flanneld_masq import __version__

from ..common import Tell, patience, unable
from .ansible_controller import ANSIBLE, Controller, Rollout
from .machine import UNIT, Machine
from .packages import OLD, PackageStore
from .roots import MANAGED
from .site import SUBNET_FILE, subnet_file_text

managed = pytest.mark.parametrize("release", [MANAGED.name], indirect=True)
CONFIGURATION = "/etc/flanneld-masq/config.toml"
GOOD = {"backend": "iptables-nft", "masquerade": {"non_masquerade_cidrs": ["192.168.77.0/24"]}}
PLAIN = {"backend": "iptables-nft"}
BAD = {"masquerade": {"position": "middle"}}
_EMPTY_BASE_CHAIN = re.compile(r"\tchain \w+ \{\n\t\ttype .*\n\t\}\n")
_EMPTY_TABLE = re.compile(r"table .* \{\n*\}\n")
_OPTIONS = "/etc/default/flanneld"
# Writes what flanneld writes at its start; like it, it leaves its rules when it ends.
_FLANNELD = """\
#!/bin/sh
set -eu
. /etc/default/flanneld
. /etc/flannel-subnet.env
mkdir -p /run/flannel
sed "s/^FLANNEL_IPMASQ=.*/FLANNEL_IPMASQ=$FLANNELD_IP_MASQ/" /etc/flannel-subnet.env >/run/flannel/.subnet.env
mv /run/flannel/.subnet.env /run/flannel/subnet.env
[ "$FLANNELD_IP_MASQ" = true ] || exit 0
masquerade() {
    "$1" -t nat -N FLANNEL-POSTRTG 2>/dev/null || "$1" -t nat -F FLANNEL-POSTRTG
    "$1" -t nat -A FLANNEL-POSTRTG -s "$2" -d "$2" -m comment --comment "flanneld masq" -j RETURN
    "$1" -t nat -A FLANNEL-POSTRTG -s "$2" ! -d "$3" -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
    "$1" -t nat -C POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG 2>/dev/null ||
        "$1" -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
}
masquerade iptables "$FLANNEL_NETWORK" 224.0.0.0/4
masquerade ip6tables "$FLANNEL_IPV6_NETWORK" ff00::/8
"""
_FLANNELD_UNIT = """\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/flanneld
"""
# What a user of the role writes. On the node that is named `drops_pods` the change goes wrong.
_TAKEOVER = """\
- name: Tell flanneld not to masquerade
  ansible.builtin.copy:
    content: "FLANNELD_IP_MASQ=false\\n"
    dest: /etc/default/flanneld
    mode: "0644"
  register: flanneld_options
- name: Restart flanneld
  ansible.builtin.systemd:
    name: flanneld.service
    state: restarted
  when: flanneld_options.changed
- name: Load a firewall
  ansible.builtin.command:
    cmd: nft -f -
    stdin: table inet intruder { chain forward { type filter hook forward priority 0; ip saddr 10.0.0.0/8 drop; }; }
  when: inventory_hostname == flanneld_masq_drops_pods | default("")
"""
_ROLLBACK = """\
- name: Remove the firewall
  ansible.builtin.command: nft delete table inet intruder
  failed_when: false
- name: Tell flanneld to masquerade
  ansible.builtin.copy:
    content: "FLANNELD_IP_MASQ=true\\n"
    dest: /etc/default/flanneld
    mode: "0644"
- name: Restart flanneld
  ansible.builtin.systemd:
    name: flanneld.service
    state: restarted
"""


@pytest.fixture(scope="session")
def old_deb(deb: Path, packages: PackageStore) -> Path:
    return packages.old("deb")


@pytest.fixture
def boot(make_machine: Callable[..., Machine], tmp_path: Path) -> Callable[[int], tuple[Controller, list[Machine]]]:
    """Boots so many nodes without the project, on which flanneld masquerades, and makes a controller for them."""
    for program in ("ansible-playbook", "ssh"):
        if not shutil.which(program):
            unable(f"{program} is missing; `scripts/setup-packaging ansible` installs it")

    def boot_nodes(number: int) -> tuple[Controller, list[Machine]]:
        nodes = [make_machine(bare=True) for _ in range(number)]
        for node in nodes:
            node.boot()
            with_flanneld(node)
        return Controller(tmp_path, nodes), nodes

    return boot_nodes


@pytest.fixture
def hooks(tmp_path: Path) -> dict[str, str]:
    """The variables of a takeover."""
    (tmp_path / "takeover.yml").write_text(_TAKEOVER)
    (tmp_path / "rollback.yml").write_text(_ROLLBACK)
    return {"takeover_tasks": str(tmp_path / "takeover.yml"), "rollback_tasks": str(tmp_path / "rollback.yml")}


def with_flanneld(node: Machine) -> None:
    node.write("/usr/local/sbin/flanneld", _FLANNELD).chmod(0o755)
    node.write("/etc/systemd/system/flanneld.service", _FLANNELD_UNIT)
    node.write("/etc/flannel-subnet.env", subnet_file_text())
    node.write("/etc/hosts", "127.0.0.1 localhost node\n")  # Ansible looks its name up
    node.write(_OPTIONS, "FLANNELD_IP_MASQ=true\n")
    node.systemctl("daemon-reload")
    node.systemctl("start", "flanneld")
    node.site.assert_masqueraded()


def ruleset(node: Machine) -> str:
    """All rules, with their places. Base chains without a rule, and tables without a chain, are left out: iptables-nft
    makes them for any rule, and they stay."""
    listed = node.run("nft", "--stateless", "list", "ruleset").stdout
    return _EMPTY_TABLE.sub("", _EMPTY_BASE_CHAIN.sub("", listed)).replace("\n\n", "\n")


def version(node: Machine) -> str:
    """The installed one, empty for none."""
    done = node.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "flanneld-masq", check=False)
    status, _, found = done.stdout.partition(" ")
    return found.partition("-")[0] if status == "installed" else ""


def state(node: Machine) -> tuple[str, ...]:
    """All that a rollout may change on a node."""
    path = node.path(CONFIGURATION)
    return (
        version(node),
        path.read_text() if path.exists() else "",
        node.show("ActiveState"),
        node.show("UnitFileState"),
        node.path(SUBNET_FILE).read_text(),
        ruleset(node),
    )


def assert_taken_over(node: Machine) -> None:
    assert node.status()["state"] == "synced"
    assert node.systemctl("is-enabled", UNIT).strip() == "enabled"
    assert "FLANNEL_IPMASQ=false" in node.path(SUBNET_FILE).read_text()
    assert "FLANNEL-POSTRTG" not in ruleset(node)
    node.site.assert_masqueraded()


def failed(rollout: Rollout) -> list[str]:
    return [name for name, counts in rollout.recap.items() if counts["failed"]]


def test_role_and_playbook_are_free_of_lint() -> None:
    if not shutil.which("ansible-lint"):
        unable("ansible-lint is missing; `scripts/setup-packaging ansible` installs it")
    done = subprocess.run(
        ("ansible-lint", "--offline", "--nocolor", "--profile", "production"),
        cwd=ANSIBLE,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@managed
def test_rollout_then_nothing_then_a_refused_file(
    boot: Callable[[int], tuple[Controller, list[Machine]]], deb: Path, hooks: dict[str, str], tell: Tell
) -> None:
    controller, nodes = boot(2)
    first = controller.roll_out(package=str(deb), config=GOOD, **hooks)
    assert first.status == 0, first.output
    for node in nodes:
        assert_taken_over(node)
        assert version(node) == __version__

    second = controller.roll_out(package=str(deb), config=GOOD, **hooks)
    assert second.status == 0, second.output
    changes = {name: counts["changed"] for name, counts in second.recap.items()}
    assert changes == {node.name: 0 for node in nodes}, second.output

    before = [(*state(node), node.show("MainPID")) for node in nodes]
    pretended = controller.roll_out("--check", package=str(deb), config=PLAIN, **hooks)
    assert pretended.status == 0, pretended.output
    assert [counts["changed"] for counts in pretended.recap.values()] == [2, 2]  # the file, the reload
    assert [(*state(node), node.show("MainPID")) for node in nodes] == before

    third = controller.roll_out(package=str(deb), config=BAD, **hooks)
    assert third.status != 0, third.output
    assert failed(third) == [nodes[0].name], third.output
    assert "masquerade.position" in third.output
    assert nodes[1].name not in third.recap
    assert [(*state(node), node.show("MainPID")) for node in nodes] == before
    for run, rollout in (("first", first), ("second", second), ("refused", third)):
        tell(f"ansible, {run} rollout: {dict(rollout.recap)}")


@managed
def test_new_problem_stops_an_upgrade_and_rolls_it_back(
    boot: Callable[[int], tuple[Controller, list[Machine]]],
    deb: Path,
    old_deb: Path,
    hooks: dict[str, str],
    tell: Tell,
) -> None:
    controller, nodes = boot(2)
    old = controller.roll_out(package=str(old_deb), config=PLAIN)
    assert old.status == 0, old.output
    pretended = controller.roll_out("--check", package=str(deb), config=PLAIN)
    assert pretended.status == 0, pretended.output
    assert [version(node) for node in nodes] == [OLD, OLD]
    before = [state(node) for node in nodes]
    assert [found[0] for found in before] == [OLD, OLD]

    upgrade = controller.roll_out(package=str(deb), config=GOOD, drops_pods=nodes[0].name, **hooks)
    assert upgrade.status != 0, upgrade.output
    assert failed(upgrade) == [nodes[0].name], upgrade.output
    assert re.search("rolled back after .* flow-dropped: ", upgrade.output), upgrade.output
    assert nodes[1].name not in upgrade.recap
    nodes[0].reached("synced")
    assert [state(node) for node in nodes] == before
    for node in nodes:
        node.site.assert_masqueraded()
    tell(f"ansible, upgrade that is rolled back: {dict(upgrade.recap)}")


@managed
def test_first_rollout_that_fails_leaves_the_node_as_it_was(
    boot: Callable[[int], tuple[Controller, list[Machine]]], deb: Path, hooks: dict[str, str]
) -> None:
    controller, (node,) = boot(1)
    before = state(node)
    refused = controller.roll_out(package=str(deb), config=BAD, **hooks)
    assert failed(refused) == [node.name], refused.output
    assert state(node) == before
    dropped = controller.roll_out(package=str(deb), config=GOOD, drops_pods=node.name, **hooks)
    assert failed(dropped) == [node.name], dropped.output
    assert "flow-dropped" in dropped.output
    assert state(node) == before
    node.site.assert_masqueraded()
