"""Reads the configuration file and its drop-ins, TOML, as settings.

A drop-in is a file of `config.d` beside the configuration file. It replaces the keys that it names, and no others.

Every key has a default. An unknown key or a wrong value is an error that names file, key and accepted values. If the
parser ignored a misspelt key, the administrator would expect a rule that does not exist.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs import config_values as accept
from flanneld_masq.inputs.config_files import drop_ins, read
from flanneld_masq.inputs.config_values import Check, Refused, described, did_you_mean, quoted
from flanneld_masq.model import ForwardSettings, MasqueradeSettings, Position, ReconcileSettings, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMAND_LINE = "command line"
_Tables = dict[str, dict[str, Any]]  # accepted values, by the name of the table ("" for the top) and the key

_BARE_KEY = re.compile("[A-Za-z0-9_-]{1,60}")
_MAX_PARTS = 16  # of a dotted key; tomllib takes quadratic time for it, a second for 5,000 parts
_PART = r"(?:(?<![\w-])[\w-]+|\"[^\"\n]*\"|'[^'\n]*')"
_DEEP_KEY = re.compile(rf"(?:{_PART}[ \t]*\.[ \t]*){{{_MAX_PARTS}}}", re.ASCII)
_STATE_DIRECTORY = re.compile("^[ \\t]*state_directory[ \\t]*=[^\\r\\n]*", re.MULTILINE)


def parse(text: str, source: str) -> Settings:
    """Parse the text of a configuration file; pure, `source` names the file in messages.

    Raises ConfigError for the first key, in the order of the text, that is not accepted.
    """
    return _settings(_tables(text, source))


def _tables(text: str, source: str) -> _Tables:
    tables: _Tables = {table: {} for table in _TABLES}
    for name, value in _document(text, source).items():
        if name not in _SUBTABLES:
            tables[_TOP][name] = _look_up(source, _TOP, name, value)
            continue
        if not isinstance(value, dict):
            raise ConfigError(source, name, f"expected a table, [{name}], found {described(value)}")
        for key, inner in value.items():
            tables[name][key] = _look_up(source, name, key, inner)
    return tables


def load(path: Path) -> Settings:
    """Read the file and its drop-ins, each of at most 1 MiB; without any return the defaults. Raises ConfigError.

    Of a key that several files have, the last one counts: that of the drop-in whose name is last. A file that a user
    other than root or the caller may write is refused: that user could change what root does.
    """
    drop_in_texts = ((str(file), read(file)) for file in drop_ins(path))
    return parse_files(((str(path), read(path, missing="")), *drop_in_texts))


def parse_files(files: Iterable[tuple[str, str]]) -> Settings:
    """Parse files that were read: names for messages, with texts. Of a key that several have, the last one counts.

    Raises ConfigError as `parse` does.
    """
    return _settings(_merged(_tables(text, source) for source, text in files))


def _merged(files: Iterable[_Tables]) -> _Tables:
    merged: _Tables = {table: {} for table in _TABLES}
    for tables in files:
        for table, keys in tables.items():
            merged[table].update(keys)
    return merged


def state_directory(path: Path) -> str:
    """Return the state directory that the file and its drop-ins name, even if the rest of them is invalid; else the
    default."""
    named = Settings().state_directory
    with contextlib.suppress(ConfigError):
        for file in (path, *drop_ins(path)):
            named = _named_state_directory(file) or named
    return named


def _named_state_directory(file: Path) -> str:
    """Return the state directory that one file names; empty if it names none, or cannot be read."""
    with contextlib.suppress(ConfigError):
        if line := _STATE_DIRECTORY.search(read(file, missing="")):
            return parse(line[0], str(file)).state_directory
    return ""


def with_overrides(settings: Settings, backend: str | None, subnet_files: Sequence[str]) -> Settings:
    """Return the settings as changed by --backend and --subnet-file; None, or no file, changes nothing.

    Relative paths start from the current directory. Raises ConfigError with the option as key.
    """
    if backend is not None:
        settings = replace(settings, backend=_checked(accept.backend, backend, COMMAND_LINE, "--backend"))
    if subnet_files:
        absolute = [_from_here(path) for path in subnet_files]
        files = _checked(accept.subnet_files, absolute, COMMAND_LINE, "--subnet-file")
        settings = replace(settings, subnet_files=files)
    return settings


def _from_here(path: str) -> str:
    try:
        return str(Path(path).absolute()) if path else path
    except OSError as error:
        raise ConfigError(COMMAND_LINE, "--subnet-file", f"no current directory: {error.strerror}") from error


def _document(text: str, source: str) -> dict[str, Any]:
    if _DEEP_KEY.search(text):
        raise ConfigError(
            source, "", f"is not accepted: a key, or a text that looks like one, has more than {_MAX_PARTS} parts"
        )
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(source, "", "is not valid TOML: nested too deeply") from None
    # ValueError, the parent of TOMLDecodeError: int() itself raises it for a number of 5,000 digits.
    except ValueError as error:
        raise ConfigError(source, "", f"is not valid TOML: {error}") from None


def _look_up(source: str, table: str, key: str, value: object) -> Any:
    check = _TABLES[table].get(key)
    dotted = f"{table}.{_shown_key(key)}" if table else _shown_key(key)
    if check is None:
        raise ConfigError(source, dotted, _unknown(table, key, value))
    return _checked(check, value, source, dotted)


def _checked(check: Check, value: object, source: str, key: str) -> Any:
    try:
        return check(value)
    except Refused as refused:
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
    return did_you_mean(key, names)


def _shown_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else quoted(key)


_TOP = ""
_TABLES: dict[str, dict[str, Check]] = {
    _TOP: {
        "backend": accept.backend,
        "subnet_files": accept.subnet_files,
        "net_conf": accept.path,
        "state_directory": accept.path,
    },
    "nft": {"protect": accept.boolean_or_auto},
    "masquerade": {
        "enabled": accept.boolean,
        "families": accept.families,
        "to_remote_pods": accept.boolean,
        "random_fully": accept.boolean,
        "non_masquerade_cidrs": accept.networks,
        "masquerade_link_local": accept.boolean,
        "ip_masq_agent_files": accept.files,
        "kube_proxy_mark": accept.mark,
        "position": accept.position(Position.FIRST, Position.LAST),
    },
    "forward": {
        "enabled": accept.boolean,
        "backend": accept.backend,
        "position": accept.position(Position.AUTO, Position.FIRST, Position.LAST),
        "drop_invalid": accept.boolean,
    },
    "conntrack": {"heal": accept.boolean},
    "reconcile": {"resync_seconds": accept.seconds(1, 86400), "legacy_poll_seconds": accept.seconds(0.05, 60)},
    "takeover": {"remove_flannel_rules": accept.boolean},
    "stop": {"remove_rules": accept.boolean},
    "dbus": {"enabled": accept.boolean},
    "metrics": {"textfile": accept.path_or_none, "address": accept.address, "port": accept.port},
    "log": {"level": accept.one_of("debug", "info", "warning", "error")},
}
_SUBTABLES = [table for table in _TABLES if table != _TOP]
# Tables with a class of their own; the keys of all other tables are fields of Settings, `table_key`.
_NESTED: dict[str, Callable[..., Any]] = {
    "masquerade": MasqueradeSettings,
    "forward": ForwardSettings,
    "reconcile": ReconcileSettings,
}


def _settings(tables: _Tables) -> Settings:
    nested = {table: create(**tables[table]) for table, create in _NESTED.items()}
    flat = {
        f"{table}_{key}": value for table in _SUBTABLES if table not in _NESTED for key, value in tables[table].items()
    }
    return Settings(**tables[_TOP], **nested, **flat)
