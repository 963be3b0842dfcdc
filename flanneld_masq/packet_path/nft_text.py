"""Writes a rule of `nft -j` for people, much as nft itself writes it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flanneld_masq.packet_path import nft_inline
from flanneld_masq.packet_path.nft_tables import shown, statements_of
from flanneld_masq.packet_path.rules import BEYOND


def text_of(content: Any) -> str:
    """Return the text of a rule; an expression that is not known stays JSON."""
    return " ".join(filter(None, map(_statement, statements_of(content))))


def comment_of(content: Any) -> str:
    """Return the comment of a rule, empty for none."""
    comment = content.get("comment", "")
    return comment if isinstance(comment, str) else ""


def _statement(statement: Any) -> str:
    if isinstance(statement, str):
        return nft_inline.shown(statement)
    try:
        ((kind, content),) = statement.items()
        return _STATEMENTS[kind](content) if kind in _STATEMENTS else _other(kind, content)
    except BEYOND:
        return shown(statement)


def _other(kind: str, content: Any) -> str:
    if content is None:
        return kind
    if isinstance(content, str):
        return f"{kind} {content}"
    return f"{kind} {shown(content)}"


def _match(content: Any) -> str:
    op = {"==": "", "in": ""}.get(content["op"], content["op"] + " ")
    return f"{_value(content['left'])} {op}{_value(content['right'])}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_value, value))
    if not isinstance(value, dict):
        return str(value)
    ((kind, content),) = value.items()
    return _VALUES[kind](content) if kind in _VALUES else shown(value)


def _nat(kind: str, content: Any) -> str:
    if not content:
        return kind
    addr, port = content.get("addr"), content.get("port")
    target = ("" if addr is None else _value(addr)) + ("" if port is None else f":{_value(port)}")
    flags = content.get("flags", "")
    return " ".join(filter(None, (kind, target and f"to {target}", _value(flags))))


def _fib(content: Any) -> str:
    flags = content["flags"]
    return f"fib {' . '.join([flags] if isinstance(flags, str) else flags)} {content['result']}"


def _reject(content: Any) -> str:
    content = content or {}
    return " ".join(
        ["reject", *(["with", content["type"], _value(content.get("expr", ""))] if "type" in content else [])]
    )


def _pairs(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "{ " + ", ".join(f"{_value(key)} : {_statement(data)}" for key, data in content["set"]) + " }"


def _joined(op: str, content: Any) -> str:
    return f" {op} ".join(map(_value, content))


_Writer = Callable[[Any], str]
_STATEMENTS: Mapping[str, _Writer] = {
    "match": _match,
    "counter": lambda _: "",
    "jump": lambda content: f"jump {content['target']}",
    "goto": lambda content: f"goto {content['target']}",
    "mangle": lambda content: f"{_value(content['key'])} set {_value(content['value'])}",
    "vmap": lambda content: f"{_value(content['key'])} vmap {_pairs(content['data'])}",
    "reject": _reject,
    "xt": lambda content: f"xt {content['type']} {content['name']}",
    "log": lambda content: "log",
    "limit": lambda content: f"limit rate {content['rate']}/{content['per']}",
    **{kind: partial(_nat, kind) for kind in ("snat", "dnat", "masquerade", "redirect")},
}
_VALUES: Mapping[str, _Writer] = {
    "meta": lambda content: content["key"] if content["key"] in ("iifname", "oifname") else f"meta {content['key']}",
    "payload": lambda content: f"{content['protocol']} {content['field']}",
    "ct": lambda content: f"ct {content.get('dir', '')} {content['key']}".replace("  ", " "),
    "fib": _fib,
    "prefix": lambda content: f"{_value(content['addr'])}/{content['len']}",
    "range": lambda content: "-".join(map(_value, content)),
    "set": lambda content: "{ " + ", ".join(map(_value, content)) + " }",
    "concat": lambda content: " . ".join(map(_value, content)),
    "elem": lambda content: _value(content["val"]),
    "map": lambda content: f"{_value(content['key'])} map {_value(content['data'])}",
    "numgen": lambda content: f"numgen {content['mode']} mod {content['mod']}",
    **{op: partial(_joined, op) for op in ("&", "|", "^", "<<", ">>")},
}
