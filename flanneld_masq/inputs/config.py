"""The configuration file, TOML, read as settings.

Everything has a default. What is not understood is refused, with file, key and what is accepted there: a
misspelt key that was passed over would be a rule that the administrator believes in and that is not there.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Callable

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs.text import parse_cidr, read_regular, why
from flanneld_masq.model import (
    BackendName,
    ForwardSettings,
    Mark,
    MasqueradeSettings,
    Network,
    Position,
    ReconcileSettings,
    Settings,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1024 * 1024
COMMAND_LINE = "command line"

_Check = Callable[[object], Any]

_BACKEND = re.compile("[a-z][a-z0-9-]*")
_BARE_KEY = re.compile("[A-Za-z0-9_-]{1,60}")
_STATE_DIRECTORY = re.compile("^[ \\t]*state_directory[ \\t]*=[^\\r\\n]*", re.MULTILINE)
# No leading zeros: iptables would take them for octal, an administrator might not.
_NUMBER = "0[xX][0-9a-fA-F]+|0|[1-9][0-9]*"
_MARK = re.compile(f"(?P<value>{_NUMBER})(?:/(?P<mask>{_NUMBER}))?")
_MARK_MAX = 2**32 - 1


class _Refused(Exception):
    """Why a value is not accepted; who looked it up adds file and key."""


def parse(text: str, source: str) -> Settings:
    """The settings that a configuration describes; pure, `source` names it in messages.

    Raises ConfigError for the first thing, in the order of the text, that is not accepted.
    """
    found: dict[str, dict[str, Any]] = {table: {} for table in _TABLES}
    for name, value in _document(text, source).items():
        if name not in _SUBTABLES:
            found[_TOP][name] = _look_up(source, _TOP, name, value)
            continue
        if not isinstance(value, dict):
            raise ConfigError(source, name, f"expected a table, [{name}], found {_found(value)}")
        for key, inner in value.items():
            found[name][key] = _look_up(source, name, key, inner)
    return _settings(found)


def load(path: Path) -> Settings:
    """The settings in a file of at most 1 MiB; the defaults where there is none. Raises ConfigError.

    A file that others than root or the caller may write is refused: it would tell root what to do.
    """
    return parse(_text(path), str(path))


def state_directory(path: Path) -> str:
    """The one that a file names which is wrong elsewhere; the default where it says nothing that can be used."""
    try:
        line = _STATE_DIRECTORY.search(_text(path))
        return parse(line[0] if line else "", str(path)).state_directory
    except ConfigError:
        return Settings().state_directory


def _text(path: Path) -> str:
    try:
        data, status = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), "", f"cannot be read: {why(error)}") from error
    _check_owner(path, status)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "", f"is not UTF-8 text ({error.reason} at byte {error.start})") from error


def with_overrides(settings: Settings, backend: str | None, subnet_files: Sequence[str]) -> Settings:
    """The settings as changed by --backend and --subnet-file; None, or no file, changes nothing.

    Relative paths start from the current directory. Raises ConfigError under the name of the option.
    """
    if backend is not None:
        settings = replace(settings, backend=_checked(_backend, backend, COMMAND_LINE, "--backend"))
    if subnet_files:
        absolute = [_from_here(path) for path in subnet_files]
        settings = replace(settings, subnet_files=_checked(_subnet_files, absolute, COMMAND_LINE, "--subnet-file"))
    return settings


def _from_here(path: str) -> str:
    try:
        return str(Path(path).absolute()) if path else path
    except OSError as error:
        raise ConfigError(COMMAND_LINE, "--subnet-file", f"no current directory: {error.strerror}") from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    name = shlex.quote(str(path))
    if status.st_uid not in (0, os.geteuid()):
        reason = f"belongs to uid {status.st_uid}, who could change what root does; try `chown root {name}`"
        raise ConfigError(str(path), "", reason)
    if status.st_mode & 0o022:
        raise ConfigError(str(path), "", f"can be written by others than its owner; try `chmod go-w {name}`")


def _document(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(source, "", "is not valid TOML: nested too deeply") from None
    # Of TOMLDecodeError's parent too: a number of 5,000 digits is refused by int() itself.
    except ValueError as error:
        raise ConfigError(source, "", f"is not valid TOML: {error}") from None


def _look_up(source: str, table: str, key: str, value: object) -> Any:
    check = _TABLES[table].get(key)
    dotted = f"{table}.{_shown_key(key)}" if table else _shown_key(key)
    if check is None:
        raise ConfigError(source, dotted, _unknown(table, key, value))
    return _checked(check, value, source, dotted)


def _checked(check: _Check, value: object, source: str, key: str) -> Any:
    try:
        return check(value)
    except _Refused as refused:
        raise ConfigError(source, key, str(refused)) from None


def _unknown(table: str, key: str, value: object) -> str:
    names = [*_TABLES[table], *([] if table else _SUBTABLES)]
    kind = "table" if isinstance(value, dict) and not table else "key"
    place = f"[{table}]" if table else "the top of the file"
    return f"unknown {kind}{_hint(key, names)}; accepted in {place}: {', '.join(names)}"


def _hint(key: str, names: list[str]) -> str:
    homes = [f"[{table}]" if table else "the top of the file" for table, keys in _TABLES.items() if key in keys]
    if homes:
        return f", it belongs in {' or '.join(homes)}"
    return _did_you_mean(key, names)


def _did_you_mean(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _shown_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    """As TOML would write it, on one line and not without end."""
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=not text.isprintable())


def _found(value: object) -> str:
    """A value as a message names it. Whole numbers may be too long for str(), which raises then."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {_quoted(value)}"
    if isinstance(value, int):
        return f"the number {value}" if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "an array"
    return "a date or a time"


def _expected(what: str, value: object) -> _Refused:
    return _Refused(f"expected {what}, found {_found(value)}")


# The checks: a TOML value in, the value of the setting out, or _Refused saying what is accepted.


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", value)
    return value


def _seconds(low: float, high: float) -> _Check:
    def check(value: object) -> float:
        # type(), because True is an int too; the comparison also refuses nan, inf and endless numbers.
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            raise _expected(f"a number of seconds from {low:g} to {high:g}", value)
        return float(value)  # type: ignore[arg-type]

    return check


def _one_of(*names: str) -> _Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            hint = _did_you_mean(value.lower(), names) if isinstance(value, str) else ""
            raise _Refused(f"{_expected('one of ' + ', '.join(map(_quoted, names)), value)}{hint}")
        return value

    return check


def _position(value: object) -> Position:
    return Position(_one_of(*(position.value for position in Position))(value))


def _backend(value: object) -> BackendName:
    if not isinstance(value, str) or not _BACKEND.fullmatch(value):
        raise _expected('"auto" or the name of a backend (a to z, 0 to 9 and -, a letter first)', value)
    return BackendName(value)


def _path(value: object) -> str:
    """An absolute path, `//`, `/./` and a `/` at the end removed; `..` stays, for it may follow a symbolic link."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise _expected("an absolute path", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _expected("a path in UTF-8", value) from None
    path = "/" + str(PurePosixPath(value)).lstrip("/")
    if "\0" in path or path == "/":
        raise _expected("an absolute path, without NUL and other than /", value)
    return path


def _path_or_none(value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not value.startswith("/"):
        raise _expected('an absolute path, or "" for none', value)
    return _path(value)


def _each(value: object, what: str, check: _Check) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _expected(f"an array of {what}", value)
    found = []
    for number, entry in enumerate(value, start=1):
        try:
            found.append(check(entry))
        except _Refused as refused:
            raise _Refused(f"entry {number}: {refused}" if len(value) > 1 else str(refused)) from None
    return tuple(found)


def _subnet_files(value: object) -> tuple[str, ...]:
    files = _each(value, "absolute paths", _path)
    if not files:
        raise _Refused("expected at least one path, found none")
    for number, path in enumerate(files):
        if path in files[:number]:
            raise _Refused(f"{_quoted(path)} is named twice")
    return files


def _networks(value: object) -> tuple[Network, ...]:
    return tuple(dict.fromkeys(_each(value, 'networks such as "10.0.0.0/8"', _network)))


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise _expected('a network such as "10.0.0.0/8" or "fd00::/8"', value)
    try:
        interface = parse_cidr(value)
    except ValueError as error:
        raise _Refused(f'expected a network such as "10.0.0.0/8" or "fd00::/8": {error}') from None
    if interface.network.prefixlen == 0:
        raise _Refused(f"{_quoted(value)} is every address there is; try masquerade.enabled = false")
    if interface.ip != interface.network.network_address:
        raise _Refused(f"{_quoted(value)} has host bits set; the network is {_quoted(str(interface.network))}")
    return interface.network


def _mark(value: object) -> Mark | None:
    if value == "":
        return None
    found = _MARK.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _expected('a string "VALUE/MASK" or "VALUE" in hexadecimal or decimal, or "" for none', value)
    return _checked_mark(found["value"], found["mask"] or hex(_MARK_MAX))


def _checked_mark(value_text: str, mask_text: str) -> Mark:
    # By length first: int() refuses thousands of digits with an error of its own.
    if max(len(value_text), len(mask_text)) > 20 or max(int(value_text, 0), int(mask_text, 0)) > _MARK_MAX:
        raise _Refused(f"a mark and its mask have 32 bits, at most {_MARK_MAX:#x}")
    value, mask = int(value_text, 0), int(mask_text, 0)
    if mask == 0:
        raise _Refused('a mask of 0 looks at no bit; "" for no mark')
    if value & ~mask:
        raise _Refused(f"no packet has it: {value:#x} has bits that the mask {mask:#x} takes away")
    if value == 0:
        raise _Refused('a mark of 0 would keep every unmarked packet from being masqueraded; "" for none')
    return Mark(value, mask)


_TOP = ""
_TABLES: dict[str, dict[str, _Check]] = {
    _TOP: {
        "backend": _backend,
        "subnet_files": _subnet_files,
        "net_conf": _path,
        "state_directory": _path,
    },
    "masquerade": {
        "enabled": _boolean,
        "random_fully": _boolean,
        "non_masquerade_cidrs": _networks,
        "masquerade_link_local": _boolean,
        "kube_proxy_mark": _mark,
        "position": _position,
    },
    "forward": {"enabled": _boolean, "backend": _backend},
    "reconcile": {"resync_seconds": _seconds(1, 86400), "legacy_poll_seconds": _seconds(0.05, 60)},
    "takeover": {"remove_flannel_rules": _boolean},
    "stop": {"remove_rules": _boolean},
    "dbus": {"enabled": _boolean},
    "metrics": {"textfile": _path_or_none},
    "log": {"level": _one_of("debug", "info", "warning", "error")},
}
_SUBTABLES = [table for table in _TABLES if table != _TOP]
# Tables with a class of their own; the keys of the others are fields of Settings, `table_key`.
_NESTED: dict[str, Callable[..., Any]] = {
    "masquerade": MasqueradeSettings,
    "forward": ForwardSettings,
    "reconcile": ReconcileSettings,
}


def _settings(found: dict[str, dict[str, Any]]) -> Settings:
    nested = {table: create(**found[table]) for table, create in _NESTED.items()}
    flat = {
        f"{table}_{key}": value for table in _SUBTABLES if table not in _NESTED for key, value in found[table].items()
    }
    return Settings(**found[_TOP], **nested, **flat)
