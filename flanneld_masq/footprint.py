"""Loads asyncio and hashlib without OpenSSL: 7 MB less memory for a daemon that speaks no TLS.

Both try to import it, and both work without it. Import this module before any that imports hashlib, and call
`load_asyncio` before any that imports asyncio. A plugin that needs `ssl` can still import it.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Hide these modules from imports meanwhile, unless they are loaded already."""
    blocked = [name for name in names if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


with without("_hashlib"):
    import hashlib  # noqa: F401

_M_ARENA_MAX = -8  # mallopt(3)

_libc = ctypes.CDLL(None)


def load_asyncio() -> None:
    """Load asyncio, unless it is loaded. That takes a quarter of the start of a command that does not need it."""
    with without("ssl", "_ssl", "_hashlib"):
        import asyncio  # noqa: F401


def trim() -> None:
    """Return free memory to the kernel."""
    if hasattr(_libc, "malloc_trim"):  # glibc
        _libc.malloc_trim(0)


def forget_the_start() -> None:
    """Return the memory that only the start needed to the kernel: 1 to 2 MB, in 10 to 20 ms."""
    gc.collect()
    trim()


def one_arena() -> None:
    """Let all threads share one heap, if the C library can: they wait for the kernel, not for memory."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)
