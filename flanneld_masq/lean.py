"""Loads asyncio and hashlib without OpenSSL: 7 MB less memory for a daemon that speaks no TLS.

Both look for it, and both do without where it is missing. Import this before anything that imports them.
A plugin that needs `ssl` itself can import it all the same.
"""

import ctypes
import sys

_blocked = [name for name in ("ssl", "_ssl", "_hashlib") if name not in sys.modules]
for _name in _blocked:
    sys.modules[_name] = None  # type: ignore[assignment]
try:
    import asyncio  # noqa: F401
    import hashlib  # noqa: F401
finally:
    for _name in _blocked:
        del sys.modules[_name]

_M_ARENA_MAX = -8  # mallopt(3)


def one_arena() -> None:
    """Let all threads share one heap, as glibc can: they wait for the kernel, not for memory."""
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
