"""flannel's own configuration, net-conf.json. It says whether flannel runs in its nftables mode."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from flanneld_masq.errors import ConfigError
from flanneld_masq.inputs.text import read_regular, shown, why

MAX_BYTES = 1024 * 1024
_BOOLEANS = {name.casefold(): name for name in ("EnableIPv4", "EnableIPv6", "EnableNFTables")}


def flannel_uses_nftables(net_conf: Path) -> bool:
    """Return True if the file says `"EnableNFTables": true`; False without a file.

    Raises ConfigError if the file cannot be read, or if flannel would refuse it.
    """
    try:
        data, _ = read_regular(net_conf, MAX_BYTES)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(str(net_conf), "", f"cannot be read: {why(error, net_conf)}") from error
    return parse(data, str(net_conf))


def parse(data: bytes, source: str) -> bool:
    """Return what a net-conf.json says of the nftables mode; pure, `source` names the file in messages.

    Reads as Go's encoding/json does, for flannel uses that: keys in any case, the last of several counts, null changes
    nothing. Format: flannel's Documentation/configuration.md and pkg/subnet/config.go. Raises ConfigError.
    """
    try:
        document = json.loads(
            data.decode("utf-8", "replace"), object_pairs_hook=tuple, parse_int=float, parse_constant=_no_constant
        )
    except RecursionError:
        raise ConfigError(source, "", "cannot be read as JSON: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(source, "", f"cannot be read as JSON: {error}") from error
    if document is None:
        return False
    if not isinstance(document, tuple):
        raise ConfigError(source, "", f"expected an object, found {_kind(document)}")
    return _booleans(document, source).get("EnableNFTables", False)


def _booleans(pairs: Iterable[tuple[str, object]], source: str) -> dict[str, bool]:
    values = {}
    for key, value in pairs:
        name = _BOOLEANS.get(key.casefold())
        if name is None or value is None:
            continue
        if not isinstance(value, bool):
            raise ConfigError(source, name, f"expected true or false, found {_kind(value)}; flannel refuses it too")
        values[name] = value
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _kind(value: object) -> str:
    """Describe a value of JSON. An object is a tuple here: its keys need not differ."""
    if isinstance(value, str):
        return f"the string {shown(value)}"
    return {tuple: "an object", list: "a list", bool: "a boolean"}.get(type(value), "a number")
