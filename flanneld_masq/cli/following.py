"""Follows what the daemon reports, for `wait` and `status --watch`. Works for an ordinary user, and without D-Bus."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from flanneld_masq.inputs.file_watch import FileWatch

POLL_SECONDS = 1.0  # a daemon that is killed changes no file, and the kernel may have no watch left


def moments(file: Path, seconds: float = math.inf) -> Iterator[None]:
    """Yield now, then whenever the daemon may have another status, until `seconds` have passed; then a last time.

    The status may be another one if its `file` changed, or after POLL_SECONDS.
    """
    deadline = time.monotonic() + seconds
    changed = threading.Event()
    watch = FileWatch(changed.set, lambda _: None)
    watch.start((str(file),))
    try:
        yield
        while (left := deadline - time.monotonic()) > 0:
            changed.wait(min(left, POLL_SECONDS))
            changed.clear()
            watch.refresh()
            yield
    finally:
        watch.stop()
