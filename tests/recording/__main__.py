"""`python -m tests.recording FILE`: runs the commands below on a booted Debian and writes what they print, as SVG."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from flanneld_masq.errors import MasqError
from flanneld_masq.process import ProcessRunner
from flanneld_masq.selftest import netns

from ..common import eventually
from ..system import cgroups
from ..system.layers import Overlay, install
from ..system.machine import UNIT, Machine
from ..system.packages import PackageStore
from ..system.roots import RECIPES, RootError, make
from .terminal import Step, drawn

RELEASE = "trixie"
TITLE = "nft flush ruleset on a node with flanneld-masq, and what the journal says"
JOURNAL = f"journalctl -u {UNIT.removesuffix('.service')} -n 2 --no-hostname -o short-precise"


def recorded(machine: Machine) -> Iterator[Step]:
    """Yield what an administrator types on a fresh node, and what comes of it."""
    kernel = machine.run("uname", "-r").stdout.split(".")
    machine.configure(backend="nft", protect=True)
    machine.write_subnet()
    machine.systemctl("start", UNIT)
    machine.reached("synced")
    yield Step(f"# Linux {kernel[0]}.{kernel[1]}: no other program can change the tables of flanneld-masq")
    yield typed(machine, "nft flush ruleset")
    yield typed(machine, "nft list tables")
    machine.configure(backend="nft")
    machine.systemctl("reload", UNIT)
    eventually(lambda: "owner" not in machine.run("nft", "list", "ruleset").stdout)
    yield Step("# With `protect = false`, as on kernels before 6.9, everything is gone for some milliseconds")
    before = machine.cursor()
    yield typed(machine, "nft flush ruleset")
    machine.logged("ipv4: drift repaired", after=before)
    machine.logged("ipv6: drift repaired", after=before)
    yield typed(machine, "nft list tables")
    yield typed(machine, JOURNAL)


def typed(machine: Machine, command: str) -> Step:
    """Run a command in the machine's shell."""
    started = time.monotonic()
    done = machine.run("sh", "-c", command)
    return Step(command, done.stdout + done.stderr, time.monotonic() - started)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.recording", description=TITLE)
    parser.add_argument("file", type=Path)
    file = parser.parse_args(argv).file.resolve()
    try:
        with ExitStack() as stack:
            steps = list(recorded(booted(stack)))
    except (MasqError, RootError) as error:
        print(f"recording: {error}", file=sys.stderr)
        return 1
    file.write_text(drawn(steps, TITLE), encoding="utf-8")
    print(f"{file}: {len(steps)} steps")
    return 0


def booted(stack: ExitStack) -> Machine:
    """Return a machine with the package of the tree; it ends with the stack. Raises MasqError and RootError."""
    run = ProcessRunner()
    root = make(RECIPES[RELEASE], _say)
    netns.enter()
    cgroups.mount(run)
    directory = netns.DIRECTORY / "machines"
    directory.mkdir()
    deb = PackageStore(directory, _say).new("deb")
    project = Overlay(directory / "project", (root,), run)
    install(deb, project.root, run)
    project.unmount()
    machine = Machine("node", RELEASE, (project.written, root), directory)
    stack.callback(machine.close)
    machine.boot()
    return machine


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
