"""Reads regular files and addresses, and quotes text in messages: what the readers of all input files share."""

from __future__ import annotations

import os
import re
import stat
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Union

Interface = Union[IPv4Interface, IPv6Interface]


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Read a regular file of at most `limit` bytes; return its bytes, and the status of the file that was read.

    Raises OSError as `open` does, and ValueError if the path names no regular file or the file is too large.
    """
    # Without O_NONBLOCK a FIFO at this path would block the daemon until another program opens it for writing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"is larger than {limit // 1024} KiB")
    return data, status


def why(error: OSError | ValueError) -> str:
    """Return the reason alone: `str` of an OSError repeats number and path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


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
