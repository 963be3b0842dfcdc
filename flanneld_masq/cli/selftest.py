"""The command `selftest`: tests the backends on this kernel."""

from __future__ import annotations

import argparse
import sys

from flanneld_masq.model import Family
from flanneld_masq.selftest import runner


def selftest(options: argparse.Namespace) -> int:
    named = (options.backend,) if options.backend else None
    return runner.main(named, tuple(Family), options.json, sys.stdout)
