"""Sockets that systemd keeps while no process of the service runs.

Protocol: sd_pid_notify_with_fds(3) for FDSTORE=1, sd_listen_fds(3) for LISTEN_FDS, LISTEN_FDNAMES and
LISTEN_PID. The unit allows it by FileDescriptorStoreMax=.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping

from flanneld_masq.service.sd_notify import Notifier

_FIRST = 3  # SD_LISTEN_FDS_START
_MAX_STORED = 16


class FdStore:
    """Keeps sockets by name for the next process."""

    def __init__(self, notifier: Notifier, environ: Mapping[str, str] = os.environ) -> None:
        self._notifier = notifier
        self._stored: dict[str, socket.socket] = {}
        for name, descriptor in _passed(environ):
            with contextlib.suppress(OSError):  # no socket, or closed already
                os.set_inheritable(descriptor, False)
                self._stored[name] = socket.socket(fileno=descriptor)

    def take(self, name: str) -> socket.socket | None:
        return self._stored.pop(name, None)

    def keep(self, name: str, descriptor: int) -> None:
        self._notifier.store(name, descriptor)


def _passed(environ: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the names and descriptors that systemd passed to this very process."""
    try:
        count, pid = int(environ.get("LISTEN_FDS", "0")), int(environ.get("LISTEN_PID", "0"))
    except ValueError:
        return
    if pid != os.getpid():
        return
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    yield from zip(names, range(_FIRST, _FIRST + min(count, _MAX_STORED)))
