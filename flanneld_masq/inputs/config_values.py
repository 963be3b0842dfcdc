"""Check the values of the configuration file: each takes a TOML value and returns the value of the setting.

Each raises Refused with what is accepted; `config` adds the file and the key.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any, Callable, Literal

from flanneld_masq.inputs.text import parse_cidr
from flanneld_masq.model import Address, BackendName, Family, Mark, Network, Position

Check = Callable[[object], Any]

_BACKEND = re.compile("[a-z][a-z0-9-]*")
# No leading zeros: iptables would take them for octal, an administrator might not.
_NUMBER = "0[xX][0-9a-fA-F]+|0|[1-9][0-9]*"
_MARK = re.compile(f"(?P<value>{_NUMBER})(?:/(?P<mask>{_NUMBER}))?")
_MARK_MAX = 2**32 - 1


class Refused(Exception):
    """The reason why a value is not accepted, and what is."""


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", value)
    return value


def boolean_or_auto(value: object) -> bool | Literal["auto"]:
    """Accept true, false or "auto"."""
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise _expected('true, false or "auto"', value)
    return value


def seconds(low: float, high: float) -> Check:
    """Return a check for a number from `low` to `high`."""

    def check(value: object) -> float:
        # type(), because True is an int too; the comparison also refuses nan, inf and endless numbers.
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            raise _expected(f"a number of seconds from {low:g} to {high:g}", value)
        return float(value)  # type: ignore[arg-type]

    return check


def one_of(*names: str) -> Check:
    """Return a check for one of these strings."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            hint = did_you_mean(value.lower(), names) if isinstance(value, str) else ""
            raise Refused(f"{_expected('one of ' + ', '.join(map(quoted, names)), value)}{hint}")
        return value

    return check


def position(*positions: Position) -> Check:
    """Return a check for one of these positions."""
    name = one_of(*(position.value for position in positions))
    return lambda value: Position(name(value))


def backend(value: object) -> BackendName:
    if not isinstance(value, str) or not _BACKEND.fullmatch(value):
        raise _expected('"auto" or the name of a backend (a to z, 0 to 9 and -, a letter first)', value)
    return BackendName(value)


def path(value: object) -> str:
    """Accept an absolute path; remove `//`, `/./` and a `/` at the end, but no `..`: a symbolic link may precede it."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise _expected("an absolute path", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _expected("a path in UTF-8", value) from None
    normal = "/" + str(PurePosixPath(value)).lstrip("/")
    if "\0" in normal or normal == "/":
        raise _expected("an absolute path, without NUL and other than /", value)
    return normal


def path_or_none(value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not value.startswith("/"):
        raise _expected('an absolute path, or "" for none', value)
    return path(value)


def files(value: object) -> tuple[str, ...]:
    """Accept a list of absolute paths, each once; it may be empty."""
    paths = _all(value, "absolute paths", path)
    for number, file in enumerate(paths):
        if file in paths[:number]:
            raise Refused(f"{quoted(file)} is named twice")
    return paths


def subnet_files(value: object) -> tuple[str, ...]:
    paths = files(value)
    if not paths:
        raise Refused("expected at least one path, found none")
    return paths


def families(value: object) -> tuple[Family, ...]:
    """Accept a list of families, in any order."""
    named = _all(value, "families", one_of(*(family.value for family in Family)))
    if not named:
        raise Refused("expected at least one family; try masquerade.enabled = false")
    return tuple(family for family in Family if family.value in named)


def address(value: object) -> Address:
    """Accept an IP address, without a zone."""
    if isinstance(value, str) and "%" not in value:
        with contextlib.suppress(ValueError):
            return ip_address(value)
    raise _expected('an IP address such as "127.0.0.1" or "::1"', value)


def port(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 65535:  # True is an int too
        raise _expected("a port from 1 to 65535, or 0 for none", value)
    return value


def networks(value: object) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(_all(value, 'networks such as "10.0.0.0/8"', _network)))


def mark(value: object) -> Mark | Literal["auto"] | None:
    """Accept "auto", or "VALUE/MASK" or "VALUE", hexadecimal or decimal; "" is no mark, None."""
    if value == "":
        return None
    if value == "auto":
        return "auto"
    match = _MARK.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise _expected('"auto", a string "VALUE/MASK" or "VALUE" in hexadecimal or decimal, or "" for none', value)
    return _checked_mark(match["value"], match["mask"] or hex(_MARK_MAX))


def described(value: object) -> str:
    """Name a TOML value for a message. An int may be too long for str(), which would raise ValueError."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, int):
        return f"the number {value}" if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "an array"
    return "a date or a time"


def quoted(text: str) -> str:
    """Quote text as TOML does: on one line, at most 60 characters of it."""
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=not text.isprintable())


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a hint, to be appended to a message, to the name that resembles `word`; empty if none does."""
    close = difflib.get_close_matches(word, names, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _expected(accepted: str, value: object) -> Refused:
    return Refused(f"expected {accepted}, found {described(value)}")


def _all(value: object, accepted: str, check: Check) -> tuple[Any, ...]:
    """Check each entry of an array; the error names the entry's number if there are several."""
    if not isinstance(value, list):
        raise _expected(f"an array of {accepted}", value)
    checked = []
    for number, entry in enumerate(value, start=1):
        try:
            checked.append(check(entry))
        except Refused as refused:
            raise Refused(f"entry {number}: {refused}" if len(value) > 1 else str(refused)) from None
    return tuple(checked)


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise _expected('a network such as "10.0.0.0/8" or "fd00::/8"', value)
    try:
        interface = parse_cidr(value)
    except ValueError as error:
        raise Refused(f'expected a network such as "10.0.0.0/8" or "fd00::/8": {error}') from None
    if interface.network.prefixlen == 0:
        raise Refused(f"{quoted(value)} covers every address; try masquerade.enabled = false")
    if interface.ip != interface.network.network_address:
        raise Refused(f"{quoted(value)} has host bits set; the network is {quoted(str(interface.network))}")
    return interface.network


def _checked_mark(value_text: str, mask_text: str) -> Mark:
    # By length first: int() refuses thousands of digits with an error of its own.
    if max(len(value_text), len(mask_text)) > 20 or max(int(value_text, 0), int(mask_text, 0)) > _MARK_MAX:
        raise Refused(f"a mark and its mask have 32 bits, at most {_MARK_MAX:#x}")
    value, mask = int(value_text, 0), int(mask_text, 0)
    if mask == 0:
        raise Refused('a mask of 0 compares no bit; "" for no mark')
    if value & ~mask:
        raise Refused(f"no packet has it: {value:#x} has bits that the mask {mask:#x} takes away")
    if value == 0:
        raise Refused('a mark of 0 would keep every unmarked packet from being masqueraded; "" for none')
    return Mark(value, mask)
