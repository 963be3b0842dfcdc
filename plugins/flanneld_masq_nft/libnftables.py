"""libnftables, by the distribution's Python binding, behind two calls."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Protocol, cast

from flanneld_masq import footprint
from flanneld_masq.errors import BackendUnavailable, RulesetError

REMEDY = "install the package python3-nftables (Debian, Ubuntu, Fedora and RHEL call it so)"
# A context keeps a list of every chain of the kernel: 20 MB at 50,000 foreign rules. The next command drops a list that
# is out of date, and this one needs none. Closing the socket would do as well, but after a commit it takes 20 ms, in
# which the kernel holds up the next one.
_FORGET = "describe ip saddr"


class _Library(Protocol):
    def set_dry_run(self, onoff: bool) -> bool: ...

    def cmd(self, cmdline: str) -> tuple[int, str, str]: ...


class Nftables:
    """A context of libnftables, made in the thread and network namespace that first use it."""

    @cached_property
    def _library(self) -> _Library:
        try:
            module = importlib.import_module("nftables")
        except ImportError as error:
            raise BackendUnavailable("nft", f"the Python module nftables is missing ({error})", REMEDY) from error
        try:
            library = module.Nftables()
        except (OSError, AttributeError) as error:
            raise BackendUnavailable("nft", f"libnftables cannot be loaded ({error})", REMEDY) from error
        if _is_old(library):
            library.nft_ctx_free = lambda context: None
        return cast(_Library, library)

    def commit(self, text: str) -> None:
        """All of `text` in one transaction, or nothing of it and a RulesetError."""
        self._run(text)
        self._library.cmd(_FORGET)
        footprint.trim()

    def check(self, text: str) -> None:
        """Let the kernel judge `text` and throw it away. Raises RulesetError where it would refuse.

        Releases before 1.0.3 cannot do that; there nothing is judged beforehand.
        """
        if _is_old(self._library):
            return
        self._library.set_dry_run(True)
        try:
            self._run(text)
        finally:
            del self.__dict__["_library"]  # nothing was committed, so the list that it keeps is not out of date
            footprint.trim()

    def _run(self, text: str) -> None:
        status, _, error = self._library.cmd(text)
        if status != 0:
            first = next(iter(error.strip().splitlines()), f"status {status} without a word")
            raise RulesetError(f"the kernel or libnftables refused this transaction: {first}\n{text}")


def _is_old(library: object) -> bool:
    """Whether nftables is older than 1.0.3: no dry run, and a context must never be freed, for if there was ever a
    second one, of the other family, that ends the process ("double free or corruption", seen with 0.9.8)."""
    return not hasattr(library, "set_dry_run")
