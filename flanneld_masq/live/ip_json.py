"""Reads what `ip -j` of iproute2 prints. Values of another type than expected are left out, never guessed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network

from flanneld_masq.errors import CommandError
from flanneld_masq.model import Address, Network
from flanneld_masq.process import ProcessRunner

Row = Mapping[str, object]


def rows(run: ProcessRunner, *argv: str) -> tuple[Row, ...]:
    """Return the objects that `ip -j` prints with these arguments. Raises CommandError."""
    command = ("ip", "-j", *argv)
    printed = run(command).stdout.strip()
    try:
        found = json.loads(printed or "[]")
    except (ValueError, RecursionError) as error:
        raise CommandError(command, f"printed no JSON: {error}") from error
    if not isinstance(found, list):
        raise CommandError(command, "printed no list")
    return tuple(row for row in found if isinstance(row, dict))


def text(row: Row, *keys: str) -> str:
    """Return the string at this place of nested objects; empty if there is none."""
    value: object = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def number(row: Row, key: str) -> int:
    """Return a number; 0 if there is none."""
    value = row.get(key)
    return value if isinstance(value, int) else 0


def rows_in(row: Row, key: str) -> Iterator[Row]:
    """Yield the objects of a list."""
    value = row.get(key)
    yield from (one for one in (value if isinstance(value, list) else ()) if isinstance(one, dict))


def addresses_in(texts: Iterable[str]) -> Iterator[Address]:
    """Yield those of the texts that are addresses."""
    for one in texts:
        with contextlib.suppress(ValueError):
            yield ip_address(one)


def destinations(routes: Iterable[Row]) -> Iterator[Network]:
    """Yield where routes lead; default routes and those of multicast and broadcast are left out."""
    for route in routes:
        if text(route, "type") in ("multicast", "broadcast"):
            continue
        with contextlib.suppress(ValueError):  # "default"
            found = ip_network(text(route, "dst"), strict=False)
            if found.prefixlen and not found.is_multicast:
                yield found
