"""Ansible's controller: this machine. It reaches booted nodes by real ssh, inside the network namespace of each."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flanneld_masq.model import SLOTS

from ..common import patience
from .machine import Machine
from .packages import TREE

ANSIBLE = TREE / "packaging" / "ansible"
ROLLOUT_SECONDS = 300.0
_RECAP = re.compile(r"^(\S+)\s+: (ok=.*)$", re.MULTILINE)
_SSH_OPTIONS = "-F /dev/null -o HostName=127.0.0.1 -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"


@dataclass(frozen=True, **SLOTS)
class Rollout:
    """A run of ansible-playbook. `recap` has the counts of each node that was reached: ok, changed, failed..."""

    status: int
    output: str
    recap: Mapping[str, Mapping[str, int]]


class Controller:
    """Keys, inventory and wrappers of ssh are in `directory`. The nodes must run, with sshd in them."""

    def __init__(self, directory: Path, nodes: Iterable[Machine]) -> None:
        self._directory = directory
        self._key = directory / "key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key))
        lines = [self._line(node) for node in nodes]
        (directory / "inventory").write_text("\n".join(("[flannel_nodes]", *lines, "")))

    def roll_out(self, *options: str, **variables: object) -> Rollout:
        """Run the playbook that comes with the role, on all nodes. `variables` are without the prefix of the role."""
        extra = {f"flanneld_masq_{name}": value for name, value in variables.items()}
        argv = (
            *("ansible-playbook", "--inventory", str(self._directory / "inventory")),
            *("--extra-vars", json.dumps(extra), *options, str(ANSIBLE / "site.yml")),
        )
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment(),
            timeout=patience(ROLLOUT_SECONDS),
        )
        recap = {name: _counts(text) for name, text in _RECAP.findall(done.stdout)}
        return Rollout(done.returncode, done.stdout, MappingProxyType(recap))

    def _line(self, node: Machine) -> str:
        """Let the controller into a node; its line of the inventory."""
        node.write("/root/.ssh/authorized_keys", self._key.with_suffix(".pub").read_text())
        node.systemctl("start", "ssh")
        wrapper = self._directory / f"ssh-{node.name}"
        wrapper.write_text(f'#!/bin/sh\nexec nsenter --net=/run/netns/{node.site.node_name} ssh "$@"\n')
        wrapper.chmod(0o755)
        return f"{node.name} ansible_ssh_executable={wrapper}"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(self._directory),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_REMOTE_USER": "root",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self._key),
            "ANSIBLE_SSH_COMMON_ARGS": _SSH_OPTIONS,
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._directory),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_TIMEOUT": str(int(patience(10))),
        }


def _counts(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=patience(30))
