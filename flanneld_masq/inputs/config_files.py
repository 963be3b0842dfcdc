"""Reads the text of configuration files, and finds the drop-ins: the files *.toml of `config.d` beside the main one."""

from __future__ import annotations

import heapq
import os
import shlex
from pathlib import Path

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs.text import read_regular, why

MAX_BYTES = 1024 * 1024
MAX_DROP_INS = 256
DIRECTORY = "config.d"
_SUFFIX = ".toml"


def drop_ins(path: Path) -> tuple[Path, ...]:
    """Return the drop-ins of a configuration file, in the order of their names; hidden files are none.

    Raises ConfigError for a directory that cannot be listed, or that a user other than root or the caller may write.
    """
    directory = path.parent / DIRECTORY
    try:
        with os.scandir(directory) as entries:
            names = (entry.name for entry in entries if entry.name.endswith(_SUFFIX) and entry.name[0] != ".")
            first = heapq.nsmallest(MAX_DROP_INS + 1, names)
        status = directory.stat()
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ConfigError(str(directory), "", f"cannot be listed: {why(error, directory)}") from error
    _check_owner(directory, status)
    if len(first) > MAX_DROP_INS:
        raise ConfigError(str(directory), "", f"has more than {MAX_DROP_INS} files *{_SUFFIX}")
    return tuple(directory / name for name in first)


def read(path: Path, *, missing: str | None = None, any_owner: bool = False) -> str:
    """Return the text of a configuration file; `missing` for one that is not there. Raises ConfigError.

    Raises it too for a file that a user other than root or the caller may write, unless `any_owner`.
    """
    try:
        data, status = read_regular(path, MAX_BYTES)
    except FileNotFoundError as error:
        if missing is not None:
            return missing
        raise _unreadable(path, error) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not any_owner:
        _check_owner(path, status)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", f"is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    return ConfigError(str(path), "", f"cannot be read: {why(error, path)}")


def _check_owner(path: Path, status: os.stat_result) -> None:
    name = shlex.quote(str(path))
    if status.st_uid not in (0, os.geteuid()):
        reason = f"belongs to uid {status.st_uid}, who could change what root does; try `chown root {name}`"
        raise ConfigError(str(path), "", reason)
    if status.st_mode & 0o022:
        raise ConfigError(str(path), "", f"can be written by others than its owner; try `chmod go-w {name}`")
