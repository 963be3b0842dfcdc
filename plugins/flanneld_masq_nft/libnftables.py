"""Commits and checks by libnftables, through the distribution's Python binding."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Protocol, cast

from flanneld_masq import footprint
from flanneld_masq.errors import BackendUnavailable, RulesetError

REMEDY = "install the package python3-nftables (Debian, Ubuntu, Fedora and RHEL call it so)"
# A context keeps a list of every chain of the kernel: 20 MB for 50,000 foreign rules. The next command drops a list
# that is out of date, and this command needs none. Closing the socket drops it too, but takes 20 ms after a commit,
# during which the kernel delays the next commit.
_FORGET = "describe ip saddr"


class _Library(Protocol):
    def set_dry_run(self, onoff: bool) -> bool: ...

    def cmd(self, cmdline: str) -> tuple[int, str, str]: ...


class Nftables:
    """A context of libnftables, in the thread and network namespace that first use it."""

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
        """Commit `text` in one transaction. Raises RulesetError if it is refused; then nothing has changed."""
        self._run(text)
        self._library.cmd(_FORGET)
        footprint.trim()

    def check(self, text: str) -> None:
        """Let the kernel check `text` without a commit. Raises RulesetError if it would refuse.

        Releases of libnftables before 1.0.3 cannot do that; with these nothing is checked.
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
            raise RulesetError(f"the kernel or libnftables refused this transaction: {first}")


def _is_old(library: object) -> bool:
    """Return True if libnftables is older than 1.0.3. It has no dry run, and its contexts must not be freed: if there
    was ever a second one, that ends the process ("double free or corruption", seen with 0.9.8)."""
    return not hasattr(library, "set_dry_run")
