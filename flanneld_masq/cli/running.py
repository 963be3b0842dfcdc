"""Finds the state directory of the daemon that runs with a configuration file, whatever that file says by now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flanneld_masq.inputs.processes import is_of_the_program
from flanneld_masq.state_directory import StateDirectory


def directory_of(configured: StateDirectory, config: str, root: Path = Path("/")) -> StateDirectory:
    """Return the directory that the daemon uses. Without a daemon, or if it cannot be found, return `configured`.

    A daemon keeps the state directory that it started with until it ends. `config` is the absolute path of the file.
    Only root, and the user of the daemon, can find a daemon elsewhere.
    """
    if configured.holder().runs is not False:
        return configured
    return next((directory for directory in _held(root) if _is_of(directory, config)), configured)


def _is_of(directory: StateDirectory, config: str) -> bool:
    status = directory.status()
    return status is not None and status.get("config") == config and directory.holder().pid == status.get("pid")


def _held(root: Path) -> Iterator[StateDirectory]:
    """Yield the directories in which a process of the program has a file `lock` open."""
    for process in (root / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if is_of_the_program(str(process)):
                yield from (StateDirectory(path.parent) for path in _open_files(process) if path.name == "lock")


def _open_files(process: Path) -> Iterator[Path]:
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            yield descriptor.readlink()
