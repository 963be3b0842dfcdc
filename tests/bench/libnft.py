"""Transactions by libnftables in this process, as firewalld makes them."""

from __future__ import annotations

import nftables

from .clock import BenchError


class Nftables:
    """A context of libnftables, in the thread and network namespace that first use it."""

    def __init__(self) -> None:
        self._library = nftables.Nftables()

    def commit(self, text: str) -> None:
        """Commit `text` in one transaction. Raises BenchError if it is refused."""
        status, _, error = self._library.cmd(text)
        if status != 0:
            raise BenchError(f"libnftables refused a transaction: {error.strip()}")
