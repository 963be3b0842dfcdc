"""Reads `nft -j list ruleset` into tables, chains and rules that are still text. Pure.

The document is one list of objects; each is decoded, looked at and forgotten, and a rule keeps its text until it is
evaluated. So 50,000 rules need little more memory than their text. Source: libnftables-json(5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

from flanneld_masq.errors import SnapshotError
from flanneld_masq.model import SLOTS

_BEGIN = re.compile(r'\s*\{\s*"nftables"\s*:\s*\[\s*')
_NEXT = re.compile(r"\s*(,)?\s*")
_FLAGS = frozenset({"dormant", "owner", "persist"})  # of tables
_FLAGGED = re.compile(r'\{"table": \{"family": "(\w+)", "name": "([^"\\]+)", "handle": \d+, "flags": "([^"\\]*)"')
_DYNAMIC = {"dynamic", "timeout"}


@dataclass(frozen=True, **SLOTS)
class RawRule:
    """A rule as JSON. `extensions` is True if it has an extension of xtables, which nft shows by name alone."""

    text: str
    handle: int
    extensions: bool


@dataclass(**SLOTS)
class RawChain:
    """A chain; `hook` is empty for one that only rules call. `devices` are those of a chain at ingress or egress, None
    if they are not known."""

    name: str
    handle: int
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: Optional[frozenset[str]] = None
    rules: list[RawRule] = field(default_factory=list)


@dataclass(**SLOTS)
class RawTable:
    """A table. `sets` are its sets and maps as JSON, `dynamic` the names of those that traffic changes."""

    family: str
    name: str
    handle: int = 0
    dormant: bool = False
    chains: dict[str, RawChain] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    dynamic: set[str] = field(default_factory=set)


def tables(text: str) -> tuple[RawTable, ...]:
    """Return the tables in the order in which nft lists them. Raises SnapshotError for any other text."""
    found: dict[tuple[str, str], RawTable] = {}
    with _read():
        for kind, content, raw in _objects(text):
            if kind == "table":
                table = _table(found, content["family"], content["name"])
                table.handle = _number(content.get("handle", table.handle))
                table.dormant = _is_dormant(content.get("flags"))
            elif kind in _READERS:
                _READERS[kind](_table(found, content["family"], content["table"]), content, raw)
    return tuple(found.values())


@contextmanager
def _read() -> Iterator[None]:
    """Turn the errors that objects of an unexpected form cause into SnapshotError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"the output of nft cannot be read: {type(error).__name__}: {error}") from error


def _objects(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the kind, the content and the text of each object."""
    if not text.strip():
        return
    begin = _BEGIN.match(text)
    if begin is None:
        raise ValueError("it does not begin with the object nftables")
    decode, position = json.JSONDecoder().raw_decode, begin.end()
    while text[position : position + 1] not in ("]", ""):
        item, end = decode(text, position)
        for kind, content in item.items():
            yield kind, content, text[position:end]
        separator = _NEXT.match(text, end)
        assert separator is not None
        position = separator.end()
    if text[position:].strip("] \n}"):
        raise ValueError("it does not end with the list")
    if not text.rstrip().endswith("}"):
        raise ValueError("it was cut short")


def _table(found: dict[tuple[str, str], RawTable], family: str, name: str) -> RawTable:
    return found.setdefault((family, name), RawTable(str(family), str(name)))


def _is_dormant(flags: object) -> bool:
    return flags == "dormant" or (isinstance(flags, list) and "dormant" in flags)


def _chain(table: RawTable, content: Any, _: str) -> None:
    devices = content.get("dev")
    found = None if devices is None else frozenset([devices] if isinstance(devices, str) else map(str, devices))
    if found is not None and content["name"] in table.chains:
        table.chains[content["name"]].devices = found
        return
    hook, priority = str(content.get("hook", "")), _number(content.get("prio", 0))
    policy = str(content.get("policy", "accept"))
    table.chains[content["name"]] = RawChain(
        str(content["name"]),
        _number(content.get("handle", 0)),
        str(content.get("type", "")),
        hook,
        priority,
        policy,
        found,
    )


def _rule(table: RawTable, content: Any, raw: str) -> None:
    extensions = False
    for statement in statements_of(content):
        if isinstance(statement, dict):
            extensions |= "xt" in statement
            for kind in ("set", "map"):
                if isinstance(changed := statement.get(kind), dict):
                    table.dynamic.add(str(changed.get(kind, "")).lstrip("@"))
    rule = RawRule(raw, _number(content.get("handle", 0)), extensions)
    table.chains[content["chain"]].rules.append(rule)


def _set(table: RawTable, content: Any, raw: str) -> None:
    name = str(content["name"])
    table.sets[name] = raw
    flags = content.get("flags", ())
    if "timeout" in content or _DYNAMIC.intersection([flags] if isinstance(flags, str) else map(str, flags)):
        table.dynamic.add(name)


def _number(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"expected a number, found {type(value).__name__}")
    return value


_READERS = {"chain": _chain, "rule": _rule, "set": _set, "map": _set}


# ---- flags that nft garbles


def garbled(text: str) -> Iterator[tuple[str, str]]:
    """Yield family and name of the tables whose one flag is none: nft 1.0 prints a name where the flag should be."""
    for family, name, flag in _FLAGGED.findall(text):
        if flag not in _FLAGS:
            yield family, name


def dormant(family: str, name: str, listing: str) -> str:
    """Return a document that says that a table is dormant, empty if its listing as text does not."""
    flags = [line for line in listing.split("\n") if line.startswith("\tflags ")]
    if not any("dormant" in line for line in flags[:1]):
        return ""
    return _document([json.dumps({"table": {"family": family, "name": name, "flags": ["dormant"]}})])


# ---- devices that nft leaves out

_OF_DEVICES = re.compile(r'\{"chain": \{"family": "(\w+)", "table": "([^"\\]+)", [^{}]*"hook": "(?:in|e)gress"[^{}]*\}')
_DEVICES = re.compile(
    r"^\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype filter hook (?:in|e)gress devices? (.*) priority ", re.MULTILINE
)
_DEVICE = re.compile(r'[^\s{},="]+')


def without_devices(text: str) -> Iterator[tuple[str, str]]:
    """Yield family and name of the tables with chains at ingress or egress whose devices nft 1.0 does not print."""
    found = (match for match in _OF_DEVICES.finditer(text) if '"dev":' not in match[0])
    yield from dict.fromkeys((match[1], match[2]) for match in found)


def devices(family: str, name: str, listing: str) -> str:
    """Return a document with the devices of the chains of a table, from its listing as text; empty if it has none."""
    chains = [
        {"family": family, "table": name, "name": chain, "dev": _DEVICE.findall(text)}
        for chain, text in _DEVICES.findall(listing)
    ]
    return _document([json.dumps({"chain": chain}) for chain in chains]) if chains else ""


# ---- a ruleset in parts


def count(chains: str) -> int:
    """Return the number of chains that `nft -j list chains` prints."""
    return chains.count('{"chain": {')


def divided(
    chains: str, shown_elsewhere: Mapping[str, Mapping[str, Collection[str]]]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Divide the tables of `nft -j list chains` into those all of whose chains are shown elsewhere, and the others.

    `shown_elsewhere` has the chains of each table of each family ("ip"). Return the chains of the former as a document,
    and family and name of the others. Raises SnapshotError for any other text.
    """
    listed: dict[tuple[str, str], dict[str, str]] = {}
    with _read():
        for kind, content, raw in _objects(chains):
            if kind == "chain":
                listed.setdefault((content["family"], content["table"]), {})[content["name"]] = raw
    known = {
        (family, name)
        for (family, name), found in listed.items()
        if found.keys() <= set(shown_elsewhere.get(family, {}).get(name, ()))
    }
    parts = (raw for table, found in listed.items() if table in known for raw in found.values())
    return _document(parts), tuple(table for table in listed if table not in known)


def joined(documents: Iterable[str]) -> str:
    """Return one document with the objects of several."""
    parts = [document[document.find("[") + 1 : document.rfind("]")].strip() for document in documents]
    return _document(filter(None, parts))


def _document(parts: Iterable[str]) -> str:
    return '{"nftables": [' + ", ".join(parts) + "]}"


def shown(expression: object) -> str:
    """Return an expression as it stands in the document; three dots if it is nested too deeply."""
    try:
        return json.dumps(expression)
    except RecursionError:
        return "..."


def content_of(raw: str) -> Any:
    """Return the content of an object's text."""
    return next(iter(json.loads(raw).values()))


def statements_of(content: Any) -> list[Any]:
    """Return the statements of a rule: objects, or texts where nft has no JSON. A rule without a list of them is one
    that nothing is known of."""
    found = content.get("expr")
    return found if isinstance(found, list) else [found]
