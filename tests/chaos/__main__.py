"""`python -m tests.chaos`: does rounds of actions until the time is up. Exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from random import SystemRandom

from flanneld_masq.errors import MasqError
from flanneld_masq.selftest import netns

from . import plan
from .actions import Actor
from .checks import Converged, converge
from .growth import WARM_SECONDS, Sample, growth, settled
from .site import Fault, Site

LINES_OF_LOG = 40
MAX_SEED = 1 << 31


class Run:
    """One run: the plan of a seed, done for so many seconds, and what was seen."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self._began = time.monotonic()
        self._kinds: Counter[str] = Counter()
        self._impossible = 0
        self._repairs: dict[int, int] = {}  # by process
        self._converged: list[Converged] = []
        self._samples: list[Sample] = []
        self._site = Site(f"chaos-{seed}")
        self._actor = Actor(self._site)

    def __call__(self) -> list[str]:
        """Do it. Return what was wrong, which ends the run; empty if nothing was."""
        try:
            converge(self._site)  # the start itself
            for planned in plan.rounds(self.seed):
                if self._elapsed() >= self.seconds:
                    break
                problem = self._round(planned)
                if problem:
                    return problem
            return list(growth(self._samples, min(WARM_SECONDS, self.seconds / 3)))
        finally:
            self._site.close()

    def summary(self) -> list[str]:
        slowest = sorted(each.seconds for each in self._converged)
        contended = sum(each.contended for each in self._converged)
        lines = [f"seed {self.seed}: {sum(self._kinds.values())} actions in {len(self._converged)} rounds"]
        lines += [f"  {count:5} {kind}" for kind, count in self._kinds.most_common()]
        lines.append(f"repairs: {sum(self._repairs.values())}; damages that were not possible: {self._impossible}")
        lines.append(f"messages sent in attacks: {self._actor.messages}")
        if slowest:
            median, last = slowest[len(slowest) // 2], slowest[-1]
            lines.append(
                f"converged after {median:.2f} s (median), {last:.2f} s (slowest), contended {contended} times"
            )
        if self._samples:
            first = (settled(self._samples) or self._samples)[0]
            lines.append(f"after {first.seconds:.0f} s: {first}")
            lines.append(f"after {self._samples[-1].seconds:.0f} s: {self._samples[-1]}")
        return lines

    def _round(self, planned: plan.Round) -> list[str]:
        self._actor.done.clear()
        try:
            for action in planned.actions:
                self._count_repairs()
                self._kinds[action.kind.value] += 1
                self._actor.act(action)
            self._actor.finish()
            self._converged.append(converge(self._site))
            self._count_repairs()
        except (Fault, MasqError, AssertionError) as error:
            return self._report(planned, error)
        self._impossible += sum("not possible now" in line for line in self._actor.done)
        self._samples.append(self._site.sample(self._elapsed()))
        kinds = ", ".join(action.kind.value for action in planned.actions)
        sample, seconds = self._samples[-1], self._converged[-1].seconds
        _progress(
            f"{sample.seconds:6.1f} s  round {planned.number}, {seconds:.2f} s, {sample.megabytes:.1f} MB: {kinds}"
        )
        return []

    def _count_repairs(self) -> None:
        self._repairs[self._site.daemon.process.pid] = self._site.repairs()

    def _report(self, planned: plan.Round, error: Exception) -> list[str]:
        kind = "" if isinstance(error, Fault) else f"{type(error).__name__}: "
        return [
            f"round {planned.number}, {self._elapsed():.1f} s after the start: {kind}{error}",
            "its actions:",
            *(f"  {line}" for line in self._actor.done),
            "the daemon's log:",
            *(f"  {line}" for line in self._site.daemon.lines()[-LINES_OF_LOG:]),
        ]

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description="Try the daemon with random actions.")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long; the round that is on is finished")
    parser.add_argument("--seed", type=int, help="what to do, and in which order; a new one by default")
    options = parser.parse_args(argv)
    seed = SystemRandom().randrange(MAX_SEED) if options.seed is None else options.seed
    _progress(f"seed {seed}")
    try:
        netns.enter()
        run = Run(seed, options.seconds)
        problems = run()
    except MasqError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    print("\n".join(run.summary()))
    for line in problems:
        print(line)
    if problems:
        print(f"to repeat it: make chaos SEED={seed} SECONDS={options.seconds:g}")
    return 1 if problems else 0


def _progress(text: str) -> None:
    print(f"chaos {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
