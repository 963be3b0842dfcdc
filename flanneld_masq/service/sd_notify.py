"""Notifies systemd: the state of the daemon, when it is ready, and that it still works.

Protocol: sd_notify(3) and sd_watchdog_enabled(3) of systemd. Where nothing in the environment asks for it, nothing
is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Optional

from flanneld_masq.controller.status import FamilyStatus, State, Status
from flanneld_masq.model import Family, Lease

FEEDS_PER_PERIOD = 2.0  # as sd_watchdog_enabled(3) recommends
MAX_BYTES = 1024  # of a status; systemd drops a message of more than 4096 bytes whole
SEND_SECONDS = 1.0  # how long a systemd that does not read may hold the daemon up


class Notifier:
    """Speaks to the service manager that started the daemon, if one did."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        self.watchdog_seconds = _watchdog_seconds(environ)
        self._ready = False
        self._text = ""

    def publish(self, status: Status, *, settled: bool) -> None:
        """Send the status if its text is new, and that the daemon is ready once what a start or a reload began is
        `settled`."""
        text = status_text(status)
        lines = [f"STATUS={text}"] if text != self._text else []
        if settled and not self._ready:
            lines.append("READY=1")
        self._ready, self._text = self._ready or settled, text
        self._send(*lines)

    @property
    def listened_to(self) -> bool:
        return bool(self._address)

    def starting(self, text: str) -> None:
        """Report what holds up the start."""
        self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """Begin a reload; the next `settled` ends it."""
        self._ready = False
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def store(self, name: str, descriptor: int) -> None:
        """Have systemd keep a socket. It does not watch the socket (FDPOLL=0), which would drop one with an error."""
        self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=(descriptor,))

    def alive(self) -> None:
        """Feed the watchdog. It does not watch over a start, so that is given more time as long as the daemon lives."""
        more = () if self._ready else (f"EXTEND_TIMEOUT_USEC={round((self.watchdog_seconds or 0) * 1_000_000)}",)
        self._send("WATCHDOG=1", *more)

    def _send(self, *lines: str, descriptors: tuple[int, ...] = ()) -> None:
        if not self._address or not lines:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_SECONDS)
            sender.connect(self._address)  # without a peer the socket counts as writable, and the wait is a busy one
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            sender.sendmsg(["\n".join(lines).encode(errors="replace")], rights)


class Watchdog:
    """Feeds from the event loop, so one that is stuck feeds nothing; nor is anything fed while `hung` names another
    part that is stuck. `tell` reports that once, with the seconds until systemd kills the daemon."""

    def __init__(self, notifier: Notifier, hung: Callable[[], str], tell: Callable[[str, float], None]) -> None:
        self._notifier = notifier
        self._hung = hung
        self._tell = tell
        self._told = ""
        self._timer: Optional[asyncio.TimerHandle] = None

    def start(self) -> None:
        """Feed at once, and from then on until `stop`, if a watchdog waits for it."""
        period = self._notifier.watchdog_seconds
        if period is None:
            return
        pause = period / FEEDS_PER_PERIOD
        self._timer = asyncio.get_running_loop().call_later(pause, self.start)
        hung = self._hung()
        if not hung:
            self._notifier.alive()
        elif hung != self._told:
            self._tell(hung, period - pause)
        self._told = hung

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def status_text(status: Status) -> str:
    """Return the state in one line, as `systemctl status` shows it."""
    return _line("; ".join(_parts(status)))


def _line(text: str) -> str:
    line = "".join(character if character.isprintable() else " " for character in text).encode(errors="replace")
    return line.decode() if len(line) <= MAX_BYTES else line[: MAX_BYTES - 3].decode(errors="ignore") + "..."


def _parts(status: Status) -> Iterator[str]:
    state, troubles = status.state.value, status.troubles
    if status.state is State.STOPPED:
        yield state
    elif not status.leases:
        said = troubles and troubles[0].startswith(state)
        yield from troubles if said else (state, *troubles)
    else:
        families = [_family(name, family, status.leases) for name, family in status.families.items()]
        waits = status.state is State.WAITING and not any(family.last_error for family in status.families.values())
        shown = "starting" if waits else state
        yield f"{shown}: {', '.join(text for text in families if text)}"
        yield from troubles


def _family(name: Family, family: FamilyStatus, leases: tuple[Lease, ...]) -> str:
    """Return backends and subnets of a family, or its error; empty for a family that no lease names."""
    if family.last_error:
        return f"{name}: {family.last_error}"
    subnets = [str(part.subnet) for lease in leases if (part := lease.of(name)) is not None]
    backends = dict.fromkeys(carrier.backend for group in family.groups.values() for carrier in group.carriers)
    contended = ["contended"] if family.state is State.CONTENDED else []
    return " ".join([str(name), *backends, *subnets, *contended]) if subnets else ""


def _watchdog_seconds(environ: Mapping[str, str]) -> Optional[float]:
    """Return the longest time in seconds between two messages to the watchdog; None without a watchdog."""
    try:
        wanted = int(environ.get("WATCHDOG_USEC", "0"))
        for_us = int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid()
    except ValueError:
        return None
    return wanted / 1_000_000 if wanted > 0 and for_us else None
