"""`doctor --snapshot`: examines a node that was saved, on any machine and without root."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flanneld_masq.cli.doctor_facts import with_flows
from flanneld_masq.doctor import host_reader, saved_findings
from flanneld_masq.doctor.facts import Facts
from flanneld_masq.doctor.findings import Finding
from flanneld_masq.doctor.host_network import HostNetwork
from flanneld_masq.errors import ConfigError, MasqError, SubnetFileError
from flanneld_masq.inputs import config, subnet_env
from flanneld_masq.model import Lease, Settings
from flanneld_masq.packet_path.snapshot import Snapshot
from flanneld_masq.printable import printable
from flanneld_masq.report import saved_node
from flanneld_masq.report.saved_node import SavedNode

_NO_FINDINGS = f"{saved_node.FINDINGS}, so nothing is known of the daemon, its service and its rules"


def read(options: argparse.Namespace) -> tuple[Facts, tuple[Finding, ...], str]:
    """Return what the file of the options says of its node, what doctor found there, and what the file does not hold.

    Subnet files that the options name stand for those of the archive. What plugins except from masquerading is not
    known. Raises MasqError if the file cannot be used.
    """
    saved = saved_node.read(Path(options.snapshot))
    settings = config.parse_files(saved.configuration) if saved.configuration else Settings()
    troubles: list[str] = []
    leases = tuple(_named(options.subnet_file) if options.subnet_file else _saved(saved, troubles))
    if not leases:
        useless = f" that can be used ({'; '.join(troubles)})" if troubles else ""
        problem = f"{options.snapshot} holds no subnet file{useless}; name that of its node"
        raise ConfigError("command line", "--subnet-file", problem)
    facts = _with_network(Facts(settings, leases, tuple(troubles)), saved.snapshot)
    return with_flows(facts, saved.snapshot), *_findings(saved)


def _with_network(facts: Facts, snapshot: Snapshot) -> Facts:
    """Add interfaces, routes and switches."""
    network, unread = None, ""
    try:
        network = host_reader.saved_network(snapshot, facts.leases)
    except (MasqError, ValueError) as error:
        unread = printable(str(error))
    paths = host_reader.sysctl_paths(network or HostNetwork(), facts.leases)
    sysctls = host_reader.saved_sysctls(snapshot, paths)
    return replace(facts, network=network, sysctls=sysctls, unread=replace(facts.unread, network=unread))


def _findings(saved: SavedNode) -> tuple[tuple[Finding, ...], str]:
    """Return what doctor found on the node, and what is lacking if that is not known."""
    try:
        return (tuple(saved_findings.findings(saved.findings)), "") if saved.findings else ((), _NO_FINDINGS)
    except ValueError as error:
        return (), f"{_NO_FINDINGS} ({printable(str(error))})"


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
