"""Finds the rules of a long chain that may concern a packet: a rule for one address concerns no other. Pure.

Programs write thousands of such rules, one for each service or banned host. The address stands in the text of a rule,
so that those of other packets are never parsed.
"""

from __future__ import annotations

import json
import re
import socket
from bisect import bisect_left
from collections.abc import Collection, Iterable
from typing import Optional

AddressKey = tuple[bool, bytes]  # True for the source, and the address as the packet carries it
_HOST = r"[\d.]+(?=/32 )|[\da-f]*:[\da-f.:]*(?=/128 )"
_SAVED = re.compile(rf"-A \S+ (?:-s (?P<s>{_HOST})/\d+ )?(?:-s \S+ )?(?:-d (?P<d>{_HOST})/\d+ )?")
# A quote within a text has a backslash before it, so no comment looks like these.
_STATEMENTS = '"expr": ['
_JSON = re.compile(
    r'\{"match": \{"op": "==", "left": \{"payload": \{"protocol": "ip6?", "field": "(?P<end>[sd])addr"\}\},'
    r' "right": "(?P<address>[\da-f.:]+)"\}\}'
)

_TESTS = frozenset({"match", "counter"})


class RuleIndex:
    """The positions of rules by the one address that they are for, and those of all other rules.

    `texts` are the rules, all as iptables-save or all as `nft -j` prints them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._others: list[int] = []
        self._of: dict[AddressKey, list[int]] = {}
        for position, text in enumerate(texts):
            end = end_of(text)
            (self._others if end is None else self._of.setdefault(end, [])).append(position)

    def next(self, position: int, ends: Collection[AddressKey]) -> Optional[int]:
        """Return the first position, from this one on, of a rule that may concern a packet with one of the ends."""
        lists = (self._others, *(self._of[end] for end in ends if end in self._of))
        found = ((one, bisect_left(one, position)) for one in lists)
        return min((one[place] for one, place in found if place < len(one)), default=None)


def end_of(text: str) -> Optional[AddressKey]:
    """Return the address that every packet of a rule has; None if the rule names none, or is written otherwise."""
    if text.startswith("{"):
        match = _JSON.search(text)
        only = match is not None and _only_tests(text, match.start())
        return _end(match["end"] == "s", match["address"]) if match is not None and only else None
    match = _SAVED.match(text)
    if match is None:
        return None
    return _end(False, match["d"]) if match["d"] else _end(True, match["s"]) if match["s"] else None


def _only_tests(text: str, end: int) -> bool:
    """Return True if no statement of a rule before this position acts on packets of other addresses too."""
    _, found, before = text[:end].partition(_STATEMENTS)
    try:
        statements = json.loads(f"[{before.rstrip(', ')}]")
    except (ValueError, RecursionError):
        return False
    return bool(found) and all(isinstance(one, dict) and one.keys() <= _TESTS for one in statements)


def _end(source: bool, text: str) -> Optional[AddressKey]:
    try:
        return source, socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return None
