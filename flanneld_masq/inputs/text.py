"""Reads files that other programs wrote, and addresses, and quotes text in messages."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import stat
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Union

from flanneld_masq.inputs.path_steps import steps

Interface = Union[IPv4Interface, IPv6Interface]


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Read a regular file of at most `limit` bytes; return its bytes, and the status of the file that was read.

    Raises OSError as `open` does, and ValueError if the path names no regular file or the file is too large.
    """
    data, status = _read(path, limit + 1)
    if len(data) > limit:
        raise ValueError(f"is larger than {limit // 1024} KiB")
    return data, status


def read_start(path: Path, limit: int) -> bytes:
    """Read the first `limit` bytes of a regular file, which may be one of /proc. Raises as `read_regular` does."""
    return _read(path, limit)[0]


def _read(path: Path, count: int) -> tuple[bytes, os.stat_result]:
    # Without O_NONBLOCK a FIFO at this path would block the daemon until another program opens it for writing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(count), status
    finally:
        os.close(descriptor)


def why(error: OSError | ValueError, path: str | Path) -> str:
    """Return the reason alone, for `str` of an OSError repeats number and path; and what lets this user in."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    return f"{reason}; {remedy}" if error.errno == errno.EACCES and (remedy := _admission(str(path))) else reason


def _admission(path: str) -> str:
    """Return who may not read a file or a directory, and the commands that change it; empty if the mode is not why."""
    entry = ""
    for step in steps(str(Path(path).absolute())):
        if not _allowed(step.directory, os.X_OK):
            return _remedy("enter", "x", step.directory)
        entry = step.entry
    if os.path.isdir(entry) and not _allowed(entry, os.R_OK | os.X_OK):  # noqa: PTH112  Path.is_dir raises errors
        return _remedy("list", "rx", entry)
    return "" if _allowed(entry, os.R_OK) else _remedy("read", "r", entry)


def _allowed(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _remedy(verb: str, mode: str, path: str) -> str:
    user, name = user_name(os.geteuid()), shlex.quote(path)
    return (
        f"the user {user} may not {verb} {name}; `setfacl -m u:{user}:{mode} {name}` or `chmod o+{mode} {name}` lets it"
    )


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one that has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def parse_cidr(text: str) -> Interface:
    """Parse ADDRESS/LENGTH of either family, host bits kept. Raises ValueError with a reason that quotes the text.

    Stricter than `ipaddress`, like Go's net.ParseCIDR: the length is required, netmasks and zones are refused.
    """
    address_text, slash, length = text.partition("/")
    if not slash:
        raise ValueError(f"{shown(text)} has no prefix length")
    try:
        address = ip_address(address_text)
    except ValueError:
        raise ValueError(f"{shown(text)} does not begin with an IP address") from None
    if "%" in address_text:
        raise ValueError(f"{shown(text)} names a zone, which a network cannot have")
    if not re.fullmatch("[0-9]{1,3}", length) or int(length) > address.max_prefixlen:
        raise ValueError(f"{shown(text)} has a prefix length that is not a number from 0 to {address.max_prefixlen}")
    return ip_interface(f"{address}/{length}")


def shown(text: str, width: int = 60) -> str:
    """Quote text from a file for a message: on one line, at most `width` characters of it."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")
