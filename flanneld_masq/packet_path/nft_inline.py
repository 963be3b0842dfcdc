"""Reads the text that `nft -j` prints of an anonymous chain, for which it has no JSON. Pure.

    jump {
            ip daddr 10.0.0.0/8 accept
            drop
    }

nft prints 1023 bytes of it at most. What is not known here becomes a test or a statement that no compiler knows.
Source: `stmt_print_json` in src/json.c, `chain_stmt_print` in src/statement.c of nftables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_CHAIN = re.compile(r"(jump|goto) \{\n(.*)", re.DOTALL)
_COMMENT = re.compile(r' ?comment "[^"]*"$')
_END = re.compile(
    r"(?:^|(?<= ))(?:(?P<plain>accept|drop|return|continue)|(?P<jump>jump|goto) (?P<target>[\w.-]+)"
    r"|(?P<reject>reject)(?: with [\w-]+ [\w-]+)?)$"
)
_WORD = re.compile(r'"[^"]*"|\{[^{}]*\}|[^\s"{}]+|\S')
_ELEMENT = re.compile(r'((?:"[^"]*"|[^",])+)')
_RANGE = re.compile(r"([\da-f:.]+)-([\da-f:.]+)")
_COUNTER = re.compile(r"counter(?: packets \d+ bytes \d+| name \S+)?(?= |$)")
_LOG = re.compile(r'log(?: (?:prefix "[^"]*"|(?:level|group|snaplen|queue-threshold) \w+))*(?= |$)')
_OPERATORS = frozenset({"==", "!=", "<", ">", "<=", ">=", "!"})
_OTHER_FORMS = frozenset({"&", "|", "^", "<<", ">>", ".", "/", "vmap", "map"})
_ACTS = frozenset({"set", "vmap", "queue", "notrack", "tproxy", "synproxy", "fwd", "dup"}) | {
    *("snat", "dnat", "masquerade", "redirect"),
}  # what the rest of a rule has if it does more than test
_PORTS = ("tcp", "udp", "sctp", "dccp", "udplite", "th")
_PAYLOADS = {
    *(("ip", field) for field in ("saddr", "daddr", "protocol")),
    *(("ip6", field) for field in ("saddr", "daddr", "nexthdr")),
    *((protocol, field) for protocol in _PORTS for field in ("sport", "dport")),
    *(("icmp", "type"), ("icmpv6", "type")),
}
_KEYS: dict[tuple[str, ...], dict[str, Any]] = {
    **{(protocol, field): {"payload": {"protocol": protocol, "field": field}} for protocol, field in _PAYLOADS},
    **{(key,): {"meta": {"key": key}} for key in ("iifname", "oifname", "iif", "oif", "iifgroup", "oifgroup")},
    **{("meta", key): {"meta": {"key": key}} for key in ("mark", "l4proto", "nfproto", "protocol", "pkttype", "skuid")},
    **{("ct", key): {"ct": {"key": key}} for key in ("state", "status", "mark", "direction")},
}
_BITS = (("ct", "state"), ("ct", "status"))


class _Unread(ValueError):
    """A part of a rule is written in a form that is not known here."""


def shown(statement: str) -> str:
    """Return the text on one line."""
    found = _CHAIN.fullmatch(statement)
    if found is None:
        return " ".join(statement.split())
    return f"{found[1]} {{ {'; '.join(line for line in _lines(found[2]) if line not in ('', '}'))} }}"


def chain_of(statement: str) -> tuple[str, list[tuple[str, list[Any]]]]:
    """Return "jump" or "goto", and the text and the statements of each rule, as JSON. Raises ValueError."""
    found = _CHAIN.fullmatch(statement)
    if found is None:
        raise _Unread
    *lines, last = _lines(found[2])
    if any(line.count('"') % 2 or line.count("{") != line.count("}") for line in lines):  # a text or a chain of its own
        raise _Unread
    rules = [(line, _rule(line)) for line in lines if line]
    return found[1], rules if last == "}" else [*rules, ("...", ["..."])]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n")]


def _rule(line: str) -> list[Any]:
    line = _COMMENT.sub("", line)
    end = _END.search(line)
    found: list[Any] = []
    rest = line if end is None else line[: end.start()]
    while rest := rest.strip():
        try:
            statement, rest = _statement(rest)
        except _Unread:
            acts = end is None or not _ACTS.isdisjoint(_WORD.findall(rest))
            statement, rest = rest if acts else {"match": rest}, ""
        found.append(statement)
    return found if end is None else [*found, _verdict(end)]


def _verdict(end: re.Match[str]) -> dict[str, Any]:
    if end["jump"]:
        return {end["jump"]: {"target": end["target"]}}
    return {end["plain"] or end["reject"]: None}


def _statement(text: str) -> tuple[Any, str]:
    """Return the first statement of a rule, and what follows. Raises _Unread."""
    for kind, form in (("counter", _COUNTER), ("log", _LOG)):
        if known := form.match(text):
            return {kind: None}, text[known.end() :]
    words = _WORD.findall(text)
    key = next((key for key in (tuple(words[:2]), tuple(words[:1])) if key in _KEYS), ())
    after = words[len(key) :]
    if not key or not after:
        raise _Unread
    if after[0] == "set":
        return {"mangle": {"key": _KEYS[key], "value": _written(after[1:])}}, " ".join(after[2:])
    negated = after[0] in _OPERATORS
    op, value = (after[0], after[1:]) if negated else ("in" if _has_bits(key, after[0]) else "==", after)
    if not value or not _OTHER_FORMS.isdisjoint(value[:2]):
        raise _Unread
    return {"match": {"op": op, "left": _KEYS[key], "right": _value(value[0])}}, " ".join(value[1:])


def _has_bits(key: tuple[str, ...], value: str) -> bool:
    return key in _BITS and not value.startswith("{")


def _written(words: Sequence[str]) -> Any:
    """Return the one word that is written. Raises _Unread for a value that is computed."""
    if not words or not words[0][0].isdigit() or not _OTHER_FORMS.isdisjoint(words[1:2]):
        raise _Unread
    return words[0]


def _value(word: str) -> Any:
    """Return the right side of a test. Raises _Unread."""
    if word.startswith("{"):
        elements = [element.strip() for element in _ELEMENT.findall(word[1:-1])]
        if any(len(_WORD.findall(element)) != 1 for element in elements):
            raise _Unread
        return {"set": [_value(element) for element in elements]}
    if word.startswith('"'):
        return word[1:-1]
    if "," in word:
        return [_value(one) for one in word.split(",")]
    if found := _RANGE.fullmatch(word):
        return {"range": [_value(found[1]), _value(found[2])]}
    address, slash, length = word.partition("/")
    if slash and length.isdecimal():
        return {"prefix": {"addr": address, "len": int(length)}}
    return int(word) if word.isdecimal() else word
