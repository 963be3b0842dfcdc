"""Runs flanneld-masq in the process of the tests."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flanneld_masq.cli import main

COMMANDS = (
    "run",
    "plan",
    "apply",
    "status",
    "wait",
    "check",
    "render",
    "explain",
    "backends",
    "selftest",
    "doctor",
    "trace",
    "probe",
    "report",
    "monitor",
    "metrics",
    "cleanup",
)
SUBNET = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=fd00:10:244::/56
FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""


USER = os.geteuid() or 1000  # an ordinary one, whose files those of a test are, or root's


class Done(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """flanneld-masq in this process, with a configuration and a subnet file of the test."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capsys = capsys
        self.config_file = directory / "config.toml"
        self.subnet_file = directory / "subnet.env"
        self.subnet_file.write_text(SUBNET)
        self.configure()

    def configure(self, text: str = "") -> None:
        top = f'subnet_files = ["{self.subnet_file}"]\nnet_conf = "/none"\nstate_directory = "{self.directory}/state"\n'
        self.config_file.write_text(top + text)
        self.config_file.chmod(0o644)

    def __call__(self, line: str, *, options: bool = True) -> Done:
        """Run a command line; `options` says whether to name the configuration of the test before it."""
        argv = [*(["--config", str(self.config_file)] if options else []), *shlex.split(line)]
        self.capsys.readouterr()
        try:
            status = main.main(argv)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Done(status, *self.capsys.readouterr())
