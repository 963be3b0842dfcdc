"""Checks that a site must pass once all actions have ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from flanneld_masq.controller.backoff import LAST_DELAY, QUIET_SECONDS
from flanneld_masq.inputs import config
from flanneld_masq.model import SLOTS

from ..common import patience
from . import dumps
from .site import Fault, Site

CONVERGED_SECONDS = 1.0
_LOOK_SECONDS = 0.01
_IN_SYNC = 0  # exit status of `plan`
_pause = threading.Event()


@dataclass(frozen=True, **SLOTS)
class Converged:
    """`seconds` from the last action until everything was right. `contended`: repairs had to wait on the way."""

    seconds: float
    contended: bool


def converge(site: Site) -> Converged:
    """Wait until status, rules and `plan` are right, then compare the rules of others. Raises Fault.

    The limit is a second of an idle machine. A contention ends when nothing was to repair for a while, so it may last.
    """
    began, contended = time.monotonic(), False
    while True:
        asked = time.monotonic()
        found = list(_wrong(site))
        seconds = time.monotonic() - began
        if not found:
            plan = site.node.masq("plan")
            if plan.returncode == _IN_SYNC:
                break
            found = [f"`plan` ends with status {plan.returncode}: {plan.stdout}{plan.stderr}"]
        contended = contended or site.daemon.status().get("state") == "contended"
        limit = CONVERGED_SECONDS + (LAST_DELAY + QUIET_SECONDS if contended else 0.0)
        if asked - began > patience(limit):
            raise Fault(f"not so {seconds:.1f} s after the last action:\n" + "\n".join(found))
        _pause.wait(_LOOK_SECONDS)
    _compare_foreign(site)
    return Converged(seconds, contended)


def _wrong(site: Site) -> Iterator[str]:
    """Yield what is not as it must be. The listings come last: each is five processes."""
    site.assert_runs()
    status = site.daemon.status()
    if status.get("state") != "synced":
        families = {name: (each["state"], each["last_error"]) for name, each in status.get("families", {}).items()}
        yield f"the state is {status.get('state', 'not written')}: {families}"
        return
    settings, desired = config.load(site.node.config_file), site.desired()
    listings = site.listings(site.node)
    found = dumps.copies(listings)
    wanted = dumps.wanted(desired, settings.backend, settings.forward.backend, listings)
    for key in sorted({*found, *wanted}, key=str):
        if found.get(key) != wanted.get(key):
            family, backend, group = key
            yield f"{family} {backend} {group}: {found.get(key)}, not {wanted.get(key)}"
    yield from dumps.misplaced(desired, listings)


def _compare_foreign(site: Site) -> None:
    beside, alone = (dumps.foreign(site.listings(node)) for node in (site.node, site.reference))
    if beside != alone:
        lines = "\n".join(dumps.differences(alone, beside))
        raise Fault(f"the rules of others are not as they are without the daemon:\n{lines}")
