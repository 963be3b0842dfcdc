"""Builds HTML and SVG from values. Whatever is not markup already is escaped, so no text can become markup. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable

from flanneld_masq.printable import printable


class Markup(str):
    """Text that is markup already. An operation of `str` returns plain text, which is escaped again."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Return text as markup that shows it: on one line, without characters that move or hide others."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text)))


def joined(parts: Iterable[str]) -> Markup:
    return Markup("".join(map(escaped, parts)))


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """Return an element. Names of attributes have `_` for `-`, and end with `_` where Python reserves the word.

    An attribute that is None or False is left out; one that is True has no value.
    """
    given = {key: value for key, value in attributes.items() if value is not None and value is not False}
    written = "".join(_attribute(key, value) for key, value in given.items())
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'
