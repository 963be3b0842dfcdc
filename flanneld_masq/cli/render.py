"""The command `render`: prints the ruleset for a backend. It needs neither a kernel nor root."""

from __future__ import annotations

import argparse

from flanneld_masq.cli.output import print_json
from flanneld_masq.cli.session import Session
from flanneld_masq.model import DEFAULT_KUBE_PROXY_MARK, Family, Settings


def render(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    rendered = {}
    note = _mark_note(session.settings)
    for reconciler, family in zip(session.reconcilers(), Family):
        if any(lease.of(family) for lease in desired_state.leases):
            rendered[str(family)] = {
                name: f"{note}{text}" if text else "" for name, text in reconciler.render(desired_state)
            }
    if options.json:
        print_json(rendered)
    else:
        for family_name, texts in rendered.items():
            for name, text in texts.items():
                print(f"# {family_name}, {name}\n{text}", end="" if text.endswith("\n") else "\n")
    return 0


def _mark_note(settings: Settings) -> str:
    """Return a line that says which mark a ruleset has that is made without a kernel; empty if the settings do."""
    if not settings.masquerade.enabled or settings.masquerade.kube_proxy_mark != "auto":
        return ""
    return f'# kube_proxy_mark = "auto": {DEFAULT_KUBE_PROXY_MARK} here, because kube-proxy\'s rules are not read\n'
