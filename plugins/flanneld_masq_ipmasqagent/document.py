"""Reads the members of a mapping in YAML or JSON. YAML needs PyYAML, which is loaded only for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flanneld_masq.errors import ConfigError

if TYPE_CHECKING:
    import yaml

Pairs = list[tuple[str, object]]
OTHER = object()  # a value that no key of the agent can have: a mapping, a float, a date
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_TAG = "tag:yaml.org,2002:"


def pairs(data: bytes, source: str) -> Pairs:
    """Return the members of the mapping that a document is, in their order; none for an empty document.

    Values are None, bool, int, str, a list of these, or OTHER. Raises ConfigError.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(source, "", f"is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return _json(text, source) if text.lstrip().startswith("{") else _yaml(text, source)


def _json(text: str, source: str) -> Pairs:
    try:
        document = json.loads(text, object_pairs_hook=tuple, parse_float=lambda _: OTHER, parse_constant=_no_constant)
    except RecursionError:
        raise ConfigError(source, "", "cannot be read as JSON: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(source, "", f"cannot be read as JSON: {error}") from None
    return [(key, _plain(value)) for key, value in document]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [OTHER if isinstance(one, (list, tuple)) else one for one in value]
    return OTHER if isinstance(value, tuple) else value


def _yaml(text: str, source: str) -> Pairs:
    try:
        import yaml
    except ImportError:
        reason = (
            "is YAML, which cannot be read without PyYAML: install python3-yaml (rpm: python3-pyyaml), or write JSON"
        )
        raise ConfigError(source, "", reason) from None
    try:
        # Not safe_load: what constructs values from tags raises any error, and a mapping forgets the order.
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(source, "", "cannot be read as YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(source, "", f"cannot be read as YAML: {_problem(error)}") from None
    if document is None or document.tag == f"{_TAG}null":
        return []
    if not isinstance(document, yaml.MappingNode):
        raise ConfigError(source, "", "is no mapping of keys to values")
    return list(_members(document))


def _problem(error: Exception) -> str:
    """Return the problem and its line; the text of the error itself has several lines."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark is not None and problem else str(error)


def _members(document: yaml.MappingNode) -> Iterator[tuple[str, object]]:
    for key, value in document.value:
        if key.id == "scalar":
            yield key.value, [_scalar(one) for one in value.value] if value.id == "sequence" else _scalar(value)


def _scalar(node: Any) -> object:
    """Return the value of a scalar by the type that YAML gives it."""
    kind = node.tag[len(_TAG) :] if node.tag.startswith(_TAG) else ""
    if node.id != "scalar":
        return OTHER
    if kind == "str":
        return node.value
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() in ("true", "yes", "on")
    return int(node.value) if kind == "int" and _INTEGER.fullmatch(node.value) else OTHER
