"""`python -m tests.matrix`: runs the cells that have no result yet, and writes docs/compatibility.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..system.packages import TREE, PackageStore
from ..system.roots import RootError, make
from . import image, page
from .emulator import boot
from .guest.console import Outcome
from .oldest import Oldest
from .plan import MACHINES, Boot, Machine
from .results import Results
from .roots import MachineRecipe

COLUMNS: tuple[Machine | Oldest, ...] = (*MACHINES, Oldest())
OUTPUT = TREE / "build" / "matrix"
PAGE = TREE / "docs" / "compatibility.md"
_LENGTH = 300  # characters of a reason
AT_ONCE = 2  # machines
_printing = threading.Lock()


def main(argv: Sequence[str]) -> int:
    """Return 0 if no cell failed and none is missing."""
    options = _options(argv)
    columns = [column for column in COLUMNS if not options.machine or column.name in options.machine]
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        packages = PackageStore(Path(name), say)
        old, new = packages.old("deb"), packages.new("deb")
        results = Results(OUTPUT, new)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda column: _run(column, results, options.cell, old, new), columns))
    document = page.render(COLUMNS, results)
    (OUTPUT / PAGE.name).write_text(document, encoding="utf-8")
    if options.publish:
        PAGE.write_text(document, encoding="utf-8")
    say(f"the page is {OUTPUT.relative_to(TREE) / PAGE.name}")
    return int(any(results.missing(column.name, column.cells) for column in columns))


def say(line: str) -> None:
    with _printing:
        print(f"matrix: {line}", file=sys.stderr, flush=True)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.matrix", description="Run the package on kernels and machines.")
    parser.add_argument("--machine", action="append", choices=[one.name for one in COLUMNS], help="only this one")
    parser.add_argument("--cell", action="append", help="this cell again, whatever its result; no other")
    parser.add_argument("--publish", action="store_true", help=f"also write {PAGE.relative_to(TREE)}")
    return parser.parse_args(argv)


def _run(column: Machine | Oldest, results: Results, again: Sequence[str] | None, old: Path, new: Path) -> None:
    """Run what is wanted of one column."""

    def keep(outcome: Outcome) -> None:
        word = {True: "ok", False: "FAILS", None: "cannot be run"}[outcome.ok]
        say(f"{column.name}, {outcome.cell}: {word}; {outcome.detail}")
        results.keep(column.name, outcome)

    def wanted(cells: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cell for cell in cells if cell in again) if again else results.missing(column.name, cells)

    if isinstance(column, Oldest):
        if cells := wanted(column.cells):
            for outcome in column.run(cells):
                keep(outcome)
    elif boots := [(one, cells) for one in column.boots if (cells := wanted(one.cells))]:
        for outcome in _prepared(column, boots, old, new, keep):
            keep(outcome)


def _prepared(
    machine: Machine,
    boots: Sequence[tuple[Boot, tuple[str, ...]]],
    old: Path,
    new: Path,
    keep: Callable[[Outcome], None],
) -> Iterator[Outcome]:
    """Boot the machine as often as it takes. What was to run and did not is a failure: yield that."""
    try:
        disk = image.make(machine, make(MachineRecipe(machine), say), old, new, OUTPUT)
    except (RootError, image.ImageError) as error:
        said = " ".join(str(error).split())[-_LENGTH:]
        yield from (Outcome(cell, False, said, {}) for _, cells in boots for cell in cells)
        return
    try:
        for one, cells in boots:
            yield from _booted(machine, one, cells, disk, keep)
    finally:
        disk.remove()


def _booted(
    machine: Machine, one: Boot, cells: tuple[str, ...], disk: image.Disk, keep: Callable[[Outcome], None]
) -> Iterator[Outcome]:
    """Boot the machine once. Yield a failure for each cell that did not run."""
    say(f"{machine.name}: boot for {', '.join(cells)}")
    left = dict.fromkeys(cells)

    def heard(outcome: Outcome) -> None:
        left.pop(outcome.cell, None)
        keep(outcome)

    problem = boot(machine, one, cells, disk, OUTPUT / f"{machine.name}.log", heard)
    yield from (Outcome(cell, False, problem or "the machine powered off before it", {}) for cell in left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
