"""flannel's way of doing it, replayed beside ours: see flannel_replay."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

from . import damage, foreign
from .clock import now, pause, progress, until
from .flannel_replay import RESYNC_SECONDS
from .gaps import MEASURED_SIZES, Found, keep, measure
from .idle import REPLAY
from .record import Record
from .scale import Scale
from .site import Site
from .traffic import Wire
from .watch import FLANNEL, FLANNEL_NFTABLES, LegacyWatch, NftWatch, Watch, outage

_EVERY = 2e-3  # between two looks: flannel's figures are seconds, and looking is not to slow it down
_FLAVOURS = ("nft", "legacy")


class Replay:
    """flannel in one namespace. `flavour` is that of the iptables it was given, or "nftables"."""

    def __init__(self, flavour: str, foreign_rules: int) -> None:
        self.flavour, self.foreign = flavour, foreign_rules
        backend = "nft" if flavour == "nftables" else f"iptables-{flavour}"
        self.site = Site(f"flannel-{flavour}-{foreign_rules}", backend, foreign_rules)
        self.subject = f"flannel {flavour}"
        self._lines = self.site.directory / "cycles"
        self._process: Optional[subprocess.Popen[bytes]] = None
        foreign.load(self.site)
        self.start()
        until(lambda: bool(self.cycles()), f"{self.subject}, {foreign_rules:,} foreign rules: the rules are written")
        self.first = self.cycles()[0]
        self.watch = self._watch()
        self.watch.accept()

    def start(self) -> None:
        with self._lines.open("wb") as output:
            self._process = self.site.spawn((sys.executable, str(REPLAY), self.flavour), output)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def cycles(self) -> list[dict[str, Any]]:
        """Return the cycles of the process since its start, as flannel_replay prints them."""
        return [json.loads(line) for line in self._lines.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def close(self) -> None:
        self.stop()
        self.site.close()

    def _watch(self) -> Watch:
        if self.flavour == "legacy":
            return LegacyWatch(self.site)
        return NftWatch(self.site, FLANNEL if self.flavour == "nft" else FLANNEL_NFTABLES)


@contextmanager
def replays(sizes: Sequence[int]) -> Iterator[tuple[list[Replay], Replay]]:
    """Its iptables mode in both flavours at each number of foreign rules, and its nftables mode."""
    with ExitStack() as stack:

        def made(flavour: str, size: int) -> Replay:
            progress(f"flannel's loop, {flavour}, {size:,} foreign rules: start")
            replay = Replay(flavour, size)
            stack.callback(replay.close)
            return replay

        yield [made(flavour, size) for size in sizes for flavour in _FLAVOURS], made("nftables", 0)


def starts(found: Sequence[Replay], record: Record) -> None:
    """Its first pass: what flannel's own process needs to get there is not in it."""
    for replay in found:
        record.add("start", replay.subject, replay.foreign, "s", [replay.first["ended"] - replay.first["began"]])


def idle(found: Sequence[Replay], nftables: Replay, scale: Scale, record: Record) -> None:
    """CPU and processes a minute: from the end of one resync to that of a later one."""
    progress(f"flannel's loop: idle for {scale.flannel_idle_seconds:g} s")
    first = {replay: len(replay.cycles()) for replay in found}
    pause(scale.flannel_idle_seconds)
    for replay in found:
        until(lambda: len(replay.cycles()) > first[replay] + 1, f"{replay.subject}: two resyncs")
        cycles = replay.cycles()[first[replay] - 1 :]
        seconds = cycles[-1]["ended"] - cycles[0]["ended"]
        for figure, key, unit in (("idle-cpu", "cpu", "s/min"), ("processes", "processes", "1/min")):
            used = (cycles[-1][key] - cycles[0][key]) * 60 / seconds
            record.add(figure, replay.subject, replay.foreign, unit, [used])
    record.add("processes", nftables.subject, 0, "1/min", [nftables.cycles()[-1]["processes"]])


def repairs(found: Sequence[Replay], scale: Scale, record: Record) -> None:
    """Damages at moments that are spread evenly over its resync, so that the mean is that of a random moment."""
    progress(f"flannel's loop: {scale.flannel_repairs} repairs each")
    moments = [spread(scale.flannel_repairs, number / len(found)) for number in range(len(found))]
    with ThreadPoolExecutor(len(found)) as pool:
        for replay, taken in zip(found, pool.map(_repairs, found, moments)):
            record.add("content-exit", replay.subject, replay.foreign, "s", taken)


def _repairs(replay: Replay, moments: Sequence[float]) -> list[float]:
    taken = []
    flush = damage.flannel(replay.site)
    for moment in moments:
        until(replay.watch.whole, f"{replay.subject}: in order", every=_EVERY)
        pause(moment)
        taken.append(outage(replay.watch, flush, f"{replay.subject}: {flush.name}", every=_EVERY).seconds)
        flush.check()
    return taken


def spread(number: int, offset: float) -> list[float]:
    """Return moments of a resync in seconds, one in each of `number` equal parts of it, at `offset` (0 to 1) of it."""
    return [(part + offset) * RESYNC_SECONDS / number for part in range(number)]


def gaps(found: Sequence[Replay], scale: Scale, record: Record) -> None:
    """New flows while its rules are damaged, at the same time in each namespace."""
    progress("flannel's loop: new flows while its rules are damaged")
    measured = [replay for replay in found if replay.foreign in MEASURED_SIZES]
    moments = spread(scale.flannel_gaps, 0.5)
    with ThreadPoolExecutor(len(measured)) as pool:
        for replay, each in zip(measured, pool.map(lambda replay: _gaps(replay, moments), measured)):
            for name, counts in each.items():
                keep(record, replay.subject, replay.foreign, name, counts)


def _gaps(replay: Replay, moments: Sequence[float]) -> dict[str, Found]:
    damages = [damage.flannel(replay.site)] if replay.foreign else damage.gaps(replay.site)
    wire = Wire(replay.site)
    try:
        return {act.name: measure(replay.site, wire, replay.watch, act, moments) for act in damages}
    finally:
        wire.close()


def restarts(found: Sequence[Replay], scale: Scale, record: Record) -> None:
    """Its start empties the chain of rules that were in order."""
    for replay in found:
        progress(f"{replay.subject}, {replay.foreign:,} foreign rules: restart")
        for _ in range(scale.flannel_restarts):
            replay.stop()
            gone = outage(replay.watch, replay.start, f"{replay.subject}: restart").seconds
            record.add("restart", replay.subject, replay.foreign, "s", [gone])
            until(lambda: bool(replay.cycles()), f"{replay.subject}: its first pass ends")


def never(found: Sequence[Replay], nftables: Replay, scale: Scale, record: Record) -> None:
    """Record damage that flannel leaves for `scale.watch_seconds`. The value is that time in seconds."""
    progress(f"flannel: watch what is never repaired, for {scale.watch_seconds:g} s")
    doubled = [replay for replay in found if not replay.foreign]
    broken = [(damage.flannel_nftables(nftables.site), nftables, "content-exit")]
    broken += [(damage.flannel_duplicate(replay.site), replay, "duplicate") for replay in doubled]
    for act, _, _ in broken:
        act()
    for act, replay, _ in broken:
        act.check()
        until(lambda: not replay.watch.whole(), f"{replay.subject}: {act.name}")
    end = now() + scale.watch_seconds
    seen = {replay: 0 for _, replay, _ in broken}
    while now() < end:
        for replay in seen:
            seen[replay] += replay.watch.whole()
        pause(_EVERY)
    for _, replay, figure in broken:
        if not seen[replay]:
            record.add(f"{figure}-never", replay.subject, 0, "s", [scale.watch_seconds])
