"""The command `backends`: lists every backend, and which of them carries the rules."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from flanneld_masq.cli.output import backend_lines, print_json, protection_text
from flanneld_masq.cli.session import Session, warn
from flanneld_masq.controller.status import GroupStatus, group_json
from flanneld_masq.errors import BackendUnavailable
from flanneld_masq.model import Group, Probe, Protection, Settings
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.values import Choices
from flanneld_masq.ruleset import policy
from flanneld_masq.service.desired_state import read_net_conf


def backends(options: argparse.Namespace) -> int:
    session = Session.of(options)
    uses_nftables, trouble = read_net_conf(session.settings)
    warn(trouble)
    families = {
        str(reconciler.family): _backends_of(session, reconciler, uses_nftables) for reconciler in session.reconcilers()
    }
    failures = [str(failure) for failure in session.plugins.failures]
    if options.json:
        print_json({"families": families, "plugin_failures": failures})
    else:
        print("\n".join(backend_lines(families, failures)))
    return 0


def _backends_of(session: Session, reconciler: Reconciler, uses_nftables: bool) -> dict[str, Any]:
    selector = reconciler.selector
    choices: Choices = {}
    why = ""
    try:
        choices = selector.candidates(session.settings, uses_nftables)
    except BackendUnavailable as error:
        why = str(error)
    masquerade = choices.get(Group.MASQUERADE)
    return {
        "chosen": masquerade[0].backend if masquerade else None,
        "why": masquerade[0].why if masquerade else why,
        "groups": {str(group): group_json(GroupStatus.of(chosen)) for group, chosen in choices.items()},
        "backends": [
            {
                "name": name,
                "summary": session.plugins.backends[name].summary,
                **dataclasses.asdict(probe),
                "protects": _protects(session.settings, probe),
            }
            for name, probe in selector.probes().items()
        ],
    }


def _protects(settings: Settings, probe: Probe) -> str:
    """Return whether the tables of a backend are protected with these settings; empty for one without a table."""
    if probe.protection is None:
        return ""
    protection = policy.protection(settings, probe.protection)
    if protection is not Protection.NONE or settings.nft_protect is False:
        return f"table {protection_text(protection)}"
    offered = "not at all" if probe.protection is Protection.NONE else "only while the daemon runs"
    return f"table {protection_text(protection)}, for this kernel can do that {offered}"
