"""Loads asyncio and hashlib without OpenSSL: 7 MB less memory for a daemon that speaks no TLS.

Both look for it, and both do without where it is missing. Import this before anything that imports them.
A plugin that needs `ssl` itself can import it all the same.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Modules that are not loaded yet cannot be found meanwhile."""
    blocked = [name for name in names if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


with without("ssl", "_ssl", "_hashlib"):
    import asyncio  # noqa: F401
    import hashlib  # noqa: F401

_M_ARENA_MAX = -8  # mallopt(3)


_libc = ctypes.CDLL(None)


def trim() -> None:
    """Give back to the kernel what is free."""
    if hasattr(_libc, "malloc_trim"):  # glibc
        _libc.malloc_trim(0)


def forget_the_start() -> None:
    """Give back what starting has used and nobody needs any more: 1 to 2 MB, in 10 to 20 ms."""
    gc.collect()
    trim()


def one_arena() -> None:
    """Let all threads share one heap, as glibc can: they wait for the kernel, not for memory."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
