"""Which tables of ip_tables exist, and which of them a pass has to read.

The kernel makes a table when it is first asked for it, so only those that ip_tables_names lists are read: that of the
network namespace of the reading thread, as for the socket of `TableInfo`. /proc/net has that of the first thread.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from flanneld_masq.errors import KernelError
from flanneld_masq_iptables.rules import PLACES
from flanneld_masq_iptables.sockopt import TableInfo, TableWatch

CONCERNED = frozenset(place.table for place in PLACES.values())
WHOLE_SECONDS = 60.0  # all tables are read if they were last read longer ago


class LegacyTables:
    """The tables of one family. `names_file` is the file of the kernel that lists them."""

    def __init__(self, names_file: Path, info: TableInfo) -> None:
        self._names_file = names_file
        self._info = info
        self._watches: dict[str, TableWatch] = {}  # of the tables that existed when they were last read
        self._whole_at = -math.inf  # when all tables were last read, by the monotonic clock
        self._polled = False  # a change was reported since the tables were last read

    @property
    def supported(self) -> bool:
        """True if the module is loaded."""
        return self._names_file.exists()

    def existing(self) -> frozenset[str]:
        """Return the tables that exist: none if the module is not loaded. Raise KernelError if nobody can say."""
        path = str(self._names_file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return frozenset(os.read(descriptor, 4096).decode(errors="replace").split())
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise KernelError(f"reading {path}", error.strerror or str(error), error.errno or 0) from error

    def moved(self) -> frozenset[str] | None:
        """Return the tables that changed since they were last read; None if no table exists. Tables appear, and never
        disappear."""
        known = self._watches
        tables = self.existing() & CONCERNED if len(known) < len(CONCERNED) else CONCERNED
        if not tables:
            return None
        return frozenset(table for table in tables if table not in known or known[table].changed())

    def reported(self) -> None:
        """Note that the change of some tables causes a pass."""
        self._polled = True

    def to_read(self) -> frozenset[str]:
        """Return the tables that a pass has to read now: those that moved if their change has caused it, else all.

        The shape of a large table does not show two rules that change places, so everything is read once a minute.
        """
        now, moved = time.monotonic(), self.moved() or frozenset()
        self._watches.update({table: self._info.watch(table) for table in moved})
        some = self._polled and now - self._whole_at < WHOLE_SECONDS
        self._polled = False
        if some:
            return moved
        self._whole_at = now
        return CONCERNED
