"""`doctor --snapshot`: examines the packets of pods on a node that was saved, on any machine and without root."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from flanneld_masq.cli.doctor_facts import with_flows
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.errors import ConfigError, SubnetFileError
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Lease, Settings
from flanneld_masq.report import saved_node
from flanneld_masq.report.saved_node import SavedNode


def facts(options: argparse.Namespace) -> Facts:
    """Return what the file of the options says of its node. Raises MasqError if it cannot be used.

    Subnet files that the options name stand for those of the archive. What plugins except from masquerading is not
    known.
    """
    saved = saved_node.read(Path(options.snapshot))
    settings = config.parse_files(saved.configuration) if saved.configuration else Settings()
    troubles: list[str] = []
    leases = tuple(_named(options.subnet_file) if options.subnet_file else _saved(saved, troubles))
    if not leases:
        useless = f" that can be used ({'; '.join(troubles)})" if troubles else ""
        problem = f"{options.snapshot} holds no subnet file{useless}; name that of its node"
        raise ConfigError("command line", "--subnet-file", problem)
    return with_flows(Facts(settings, leases, tuple(troubles)), saved.snapshot)


def _named(paths: list[str]) -> Iterator[Lease]:
    for path in paths:
        lease = subnet_env.read(Path(path))
        if lease is None:
            raise ConfigError("command line", "--subnet-file", f"there is no file {path}")
        yield lease


def _saved(saved: SavedNode, troubles: list[str]) -> Iterator[Lease]:
    """Yield the leases of the archive, and add to `troubles` why a file gives none."""
    for name, text in saved.subnet_files:
        try:
            yield subnet_env.parse(text.encode(), name)
        except SubnetFileError as error:
            troubles.append(str(error))
