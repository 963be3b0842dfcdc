"""Directories that are made once, used by several test processes, and kept for those of the next run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


def use(directory: Path) -> None:
    """Keep a directory from being removed until this process ends."""
    in_use = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(in_use, fcntl.LOCK_SH)


def remove_unused(directories: Iterable[Path]) -> None:
    """Remove those that no process uses."""
    for directory in directories:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory)
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file during the block; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
