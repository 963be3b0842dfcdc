"""Gives a target an input, and many inputs from one seed.

`make fuzz` runs every target. A failing input is made smaller and kept in the corpus, as a regression for the test.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ...common import patience
from . import inputs
from .inputs import TAPE_BYTES, Tape, derive, files
from .targets import TARGETS, Target

MAX_SECONDS = 1.0  # for one input of 64 KiB
_SHRINK_TRIES = 2000


class Fault(AssertionError):
    """A parser raised what its target does not document, or took too long."""


class _TooLong(BaseException):
    """The time of a parser is over. No parser catches it."""


@dataclass
class Run:
    """How a run of a target went."""

    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0


def check(target: Target, data: bytes, run: Run | None = None) -> None:
    """Give one input to a target. Raises Fault."""
    run = run or Run()
    run.inputs += 1
    began = time.process_time()
    try:
        with _limit(patience(MAX_SECONDS)):
            target.parse(data)
        run.accepted += 1
    except target.errors:
        pass
    except _TooLong as error:
        raise Fault(f"{target.name} takes longer than {patience(MAX_SECONDS):g} s for {_shown(data)}") from error
    except Exception as error:
        raise Fault(f"{target.name} raised {error!r} for {_shown(data)}") from error
    run.slowest = max(run.slowest, time.process_time() - began)


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise _TooLong in what needs more seconds of the processor."""

    def interrupt(number: int, frame: object) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)  # again and again, for an event loop may swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def fuzz(target: Target, count: int, seed: int) -> Run:
    """Give a target so many inputs. Raises Fault for the first that fails, after keeping it."""
    source, run = random.Random(seed), Run()
    corpus = files(target.corpus)
    for _ in range(count):
        data = derive(Tape(source.getrandbits(8 * TAPE_BYTES).to_bytes(TAPE_BYTES, "big")), corpus, target.words)
        try:
            check(target, data, run)
        except Fault as fault:
            cause = type(fault.__cause__)
            smallest = data if cause is _TooLong else _smaller(target, data, cause)
            kept = inputs.CORPUS / target.corpus / f"found-{hashlib.sha256(smallest).hexdigest()[:8]}"
            kept.write_bytes(smallest)
            raise Fault(f"{fault}\ninput {run.inputs} of seed {seed}, kept as {kept}: {smallest!r}") from fault
    return run


def _smaller(target: Target, data: bytes, cause: type[BaseException | None]) -> bytes:
    """Return a part of a failing input that fails alike."""
    tries, width = 0, len(data) // 2
    while width and tries < _SHRINK_TRIES:
        for begin in range(0, len(data), width):
            part = data[:begin] + data[begin + width :]
            tries += 1
            if _cause(target, part) is cause:
                data = part
                break
        else:
            width //= 2
    return data


def _cause(target: Target, data: bytes) -> type[BaseException | None] | None:
    """Return what kind of error makes an input fail; None if it does not."""
    try:
        check(target, data)
    except Fault as fault:
        return type(fault.__cause__)
    return None


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= 400 else f"{data[:200]!r}... of {len(data)} bytes"


def main() -> int:
    """Print a line for each target. Return 1 if any has a fault."""
    parser = argparse.ArgumentParser(prog="tests.unit.fuzz.runner", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("targets", nargs="*", help="their names; all without any")
    options = parser.parse_args()
    unknown = set(options.targets) - {target.name for target in TARGETS}
    if unknown:
        parser.error(f"no target is named {', '.join(sorted(unknown))}")
    faults = 0
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        began = time.monotonic()
        try:
            run = fuzz(target, options.inputs, options.seed)
            result = f"{run.inputs} inputs, {run.accepted} accepted, the slowest {run.slowest * 1000:.0f} ms"
        except Fault as fault:
            faults += 1
            result = str(fault)
        print(f"{target.name}: seed {options.seed}, {time.monotonic() - began:.0f} s: {result}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
