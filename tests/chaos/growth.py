"""Find growth of a daemon: its memory, descriptors and threads over the time of a run. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

WARM_SECONDS = 60.0  # until then a process still loads what it needs
MAX_MEGABYTES = 40.0
# What a state may differ by: settings, connections and what the allocator keeps.
SLACK = {"megabytes": 4.0, "descriptors": 6, "threads": 2}


@dataclass(frozen=True, **SLOTS)
class Sample:
    """Resources of one process at a quiet moment, `seconds` after the start of the run."""

    seconds: float
    pid: int
    megabytes: float
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB, {self.descriptors} descriptors, {self.threads} threads"


def growth(samples: Sequence[Sample], warm_seconds: float = WARM_SECONDS) -> Iterator[str]:
    """Yield what has grown: over the run, and in each process, from its state after `warm_seconds` to its last."""
    peak = max(samples, key=lambda sample: sample.megabytes, default=None)
    if peak is not None and peak.megabytes > MAX_MEGABYTES:
        yield f"{peak.megabytes:.1f} MB after {peak.seconds:.0f} s are more than {MAX_MEGABYTES:g} MB"
    yield from _grown("the daemon", settled(samples, warm_seconds))
    for pid in dict.fromkeys(sample.pid for sample in samples):
        own = [sample for sample in samples if sample.pid == pid]
        yield from _grown(f"process {pid}", settled(own, warm_seconds))


def settled(samples: Sequence[Sample], warm_seconds: float = WARM_SECONDS) -> Sequence[Sample]:
    """Return the samples after the first `warm_seconds`."""
    return [sample for sample in samples if sample.seconds >= samples[0].seconds + warm_seconds]


def _grown(name: str, later: Sequence[Sample]) -> Iterator[str]:
    for what, slack in SLACK.items() if later else ():
        first, last = getattr(later[0], what), getattr(later[-1], what)
        if last > first + slack:
            yield f"{name}: {what} grew from {first:g} to {last:g} in {later[-1].seconds - later[0].seconds:.0f} s"
