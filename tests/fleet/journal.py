"""A stand-in for journald that counts what the daemon sends it. Only in a mount namespace of its own."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

_SOCKET = Path("/run/systemd/journal/socket")
_LARGEST = 1 << 20


class Journal:
    """Receives entries in systemd's native journal protocol, one in each datagram, in a thread.

    Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. An entry that is too large for a datagram comes as a file
    descriptor and counts as an entry without bytes; the daemon's entries are far smaller.
    """

    def __init__(self) -> None:
        _SOCKET.parent.mkdir(parents=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(_SOCKET))
        self._entries: list[bytes] = []
        threading.Thread(target=self._receive, daemon=True).start()

    def expect_from(self, output: Path) -> None:
        """Have the processes that are started from now on take this file for a stream of the journal, if it is their
        standard error: JOURNAL_STREAM of systemd.exec(5)."""
        output.touch()
        found = output.stat()
        os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"

    @property
    def entries(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all entries, with all their fields."""
        return sum(map(len, self._entries))

    def messages(self, first: int = 0) -> list[str]:
        """Return the messages from entry `first` on."""
        fields = (entry.split(b"\n") for entry in self._entries[first:])
        return [line[8:].decode() for lines in fields for line in lines if line.startswith(b"MESSAGE=")]

    def _receive(self) -> None:
        while True:
            self._entries.append(self._socket.recv(_LARGEST))
