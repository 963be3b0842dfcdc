"""The command `plan`: shows what a pass would change."""

from __future__ import annotations

import argparse
import dataclasses

from flanneld_masq.cli.output import print_errors, print_json, print_plans
from flanneld_masq.cli.session import Session

DRIFT = 3


def plan(options: argparse.Namespace) -> int:
    session = Session.of(options)
    desired_state = session.desired_state()
    plans, errors = session.each(lambda reconciler: reconciler.plan(desired_state))
    changed = [found for each in plans for found in each if found.changes]
    print_errors(errors)
    if options.json:
        print_json(
            {
                "in_sync": not changed and not errors,
                "plans": [dataclasses.asdict(found) for found in changed],
                "errors": list(map(str, errors)),
            }
        )
    else:
        print_plans(changed)
        if not changed and not errors:
            print("in sync: nothing to change")
    return DRIFT if changed else 1 if errors else 0
