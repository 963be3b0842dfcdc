"""`python -m tests.fleet`: what events on a whole fleet cost. Measures one daemon, then multiplies."""

from __future__ import annotations

import argparse
import compileall
import sys
from collections.abc import Sequence
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.selftest import netns

from ..bench import clock, machine
from ..bench.site import Site
from .journal import Journal
from .measure import Measured, Node
from .report import markdown, published

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "fleet.md"


def main(argv: Sequence[str]) -> int:
    options = _options(argv)
    try:
        netns.enter()
        where = machine.line(machine.described())
        for name in ("flanneld_masq", "plugins"):
            compileall.compile_dir(ROOT / name, quiet=1)  # as an installed package has it
        clock.precise()
        text = markdown(_measured(options.idle_seconds, options.undoings), options.nodes, where)
    except MasqError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    print(text)
    if options.publish:
        DOCUMENT.write_text(published(DOCUMENT.read_text(), text))
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.fleet", description="Say what events on a whole fleet cost.")
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--idle-seconds", type=float, default=120.0, help="how long nothing happens")
    parser.add_argument("--undoings", type=int, default=180, help="how often, once a second, the rules are removed")
    parser.add_argument("--publish", action="store_true", help="put the tables into docs/fleet.md")
    return parser.parse_args(argv)


def _measured(idle_seconds: float, undoings: int) -> Measured:
    site = Site("fleet", "iptables-nft", 0)
    try:
        return Node(site, Journal()).measure(idle_seconds, undoings)
    finally:
        site.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
