"""Cost of the daemons while nothing changes: CPU, wake-ups and processes, alone and beside a flannel that asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from .clock import pause, progress, until
from .record import Record
from .scale import SIZES, Scale
from .site import Site
from .usage import Usage, settle, traced, usage_of

REPLAY = Path(__file__).with_name("flannel_replay.py")
_TIMER = Path(__file__).with_name("idle_timer.py")
# What the replay made, in an order in which iptables-restore can delete it.
_REMOVAL = """\
*nat
-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-F FLANNEL-POSTRTG
-X FLANNEL-POSTRTG
COMMIT
*filter
-D FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-F FLANNEL-FWD
-X FLANNEL-FWD
COMMIT
"""


def idle(sites: Sequence[Site], scale: Scale, record: Record) -> None:
    """CPU and wake-ups in a time in which nothing changes; no daemon disturbs another while all are idle."""
    progress(f"all daemons idle for {scale.idle_seconds:g} s")
    for site, used in _used({site: site.pid for site in sites}, scale.idle_seconds).items():
        _keep(record, "idle", site, used)
        record.add("idle-alone", site.subject, site.foreign, "", [float(used.alone)])


def processes(sites: Sequence[Site], scale: Scale, record: Record) -> None:
    """Processes that strace sees being started, in a time in which nothing changes. Meanwhile each daemon has a timer
    beside it, a program of its own that wakes up as often as the daemon did before."""
    progress(f"all daemons idle under strace for {scale.traced_seconds:g} s")
    with ExitStack() as stack:
        started = {site: stack.enter_context(traced(site.pid, site.directory / "strace")) for site in sites}
        timers = {site: _timer(stack, site, record) for site in sites}
        used = _used({site: timer.pid for site, timer in timers.items()}, scale.traced_seconds)
    for site in sites:
        _keep(record, "timer", site, used[site])
        calls = started[site]
        if calls is not None:
            record.add("processes", site.subject, site.foreign, "1/min", [len(calls) * 60 / scale.traced_seconds])


def beside_flannel(sites: Sequence[Site], scale: Scale, record: Record) -> None:
    """The same as `idle`, while flannel asks for its rules 240 times a minute in the same namespace."""
    sites = [site for site in sites if site.foreign in (min(SIZES), max(SIZES))]
    progress(f"all daemons idle beside flannel's loop for {scale.beside_seconds:g} s")
    with ExitStack() as stack:
        for site in sites:
            cycles = _replay(stack, site)
            until(lambda: "\n" in cycles.read_text(), f"{site}: flannel's rules are written", every=0.05)
        for site in sites:
            site.until_synced()
        for site, used in _used({site: site.pid for site in sites}, scale.beside_seconds).items():
            _keep(record, "beside", site, used)
    for site in sites:
        site.run(f"iptables-{site.flavour}-restore", "-w", "--noflush", stdin=_REMOVAL)
        settle(site.pid)


def _used(pids: Mapping[Site, int], seconds: float) -> dict[Site, Usage]:
    """Return what each process used in so many seconds from now."""
    before = {site: usage_of(pid) for site, pid in pids.items()}
    pause(seconds)
    return {site: usage_of(pid).since(before[site]) for site, pid in pids.items()}


def _keep(record: Record, figure: str, site: Site, used: Usage) -> None:
    record.add(f"{figure}-cpu", site.subject, site.foreign, "s/min", [used.share * 60])
    for name, number in (("wakeups", used.switches), ("turns", used.turns)):
        record.add(f"{figure}-{name}", site.subject, site.foreign, "1/min", [number * 60 / used.moment])


def _timer(stack: ExitStack, site: Site, record: Record) -> subprocess.Popen[bytes]:
    wakeups = record.get("idle-wakeups", site.subject, site.foreign)
    seconds = 60 / max(1.0, wakeups.median if wakeups else 1.0)
    ready = site.directory / "timer"
    process = _spawned(stack, site, (sys.executable, str(_TIMER), f"{seconds:.6f}"), ready)
    until(lambda: bool(ready.read_text()), f"{site}: the timer starts")
    return process


def _replay(stack: ExitStack, site: Site) -> Path:
    """Start flannel's loop beside the daemon; return the file with its cycles."""
    cycles = site.directory / "flannel-cycles"
    _spawned(stack, site, (sys.executable, str(REPLAY), site.flavour), cycles)
    return cycles


def _spawned(stack: ExitStack, site: Site, argv: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        process = site.spawn(argv, file)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process
