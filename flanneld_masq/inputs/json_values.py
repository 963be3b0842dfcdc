"""Reads JSON, and values of frozen dataclasses from it, so that no bytes raise anything but ValueError. Pure."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

MAX_NUMBER = 1 << 63  # a greater one is no handle, pid or duration, and Python refuses to format it
_Value = TypeVar("_Value")


def parse(data: bytes) -> object:
    """Parse a document of JSON in UTF-8. Raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode(kind: type[_Value], content: object) -> _Value:
    """Return the value that `dataclasses.asdict` made this content of. Raises ValueError for any other JSON.

    The fields are str, int, enums of str, other such dataclasses, tuples of these, and each of these as an Optional.
    Messages name types alone, for the `repr` of a deeply nested value raises RecursionError.
    """
    fields = _fields(cast("Any", kind))
    if not isinstance(content, dict) or content.keys() != fields.keys():
        raise ValueError(f"expected the fields of {kind.__name__}")
    return kind(**{name: _value(fields[name], value) for name, value in content.items()})


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    """Return the type of each field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _value(kind: Any, content: object) -> object:
    if get_origin(kind) is Union:
        return None if content is None else _value(get_args(kind)[0], content)
    if get_origin(kind) is tuple:
        if type(content) is not list:
            raise ValueError(f"expected a list, found {type(content).__name__}")
        return tuple(_value(get_args(kind)[0], item) for item in content)
    if dataclasses.is_dataclass(kind):
        return decode(cast("type[object]", kind), content)
    if issubclass(kind, enum.Enum):
        return kind(_value(str, content))
    if type(content) is not kind:  # a bool is an int, but not here
        raise ValueError(f"expected {kind.__name__}, found {type(content).__name__}")
    if isinstance(content, int) and abs(content) >= MAX_NUMBER:
        raise ValueError("a number is too large")
    return content
