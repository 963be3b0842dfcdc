"""Reads `ipset save` and compiles the match "set" of xtables. Pure. Source: ipset(8).

Sets of addresses, networks, ports and devices are known. A list of sets, hardware addresses, a bitmap of ports, a set
that masks addresses, exceptions, ports of bridges and wildcards of devices are not, and a match of such a set may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path import names
from flanneld_masq.packet_path.rules import Field, May, Op, Operation, Read, Test
from flanneld_masq.packet_path.values import Element, Elements, Interval, addresses, network

if TYPE_CHECKING:
    from flanneld_masq.packet_path.xtables_rules import Option


@dataclass(**SLOTS)
class IpSet:
    """A set: its type ("hash:ip,port"), and its entries without their options."""

    kind: str
    complete: bool
    known: bool = True
    entries: list[str] = field(default_factory=list)

    @property
    def dimensions(self) -> list[str]:
        return self.kind.partition(":")[2].split(",")


_KNOWN = frozenset({"ip", "net", "port", "iface"})
_MASKING = frozenset({"netmask", "bitmask"})  # options of a set that compares parts of addresses
_ODD = frozenset({"nomatch", "wildcard"})  # options of an entry that is more than its value
_BRIDGE_PORT = ",physdev:"  # before a device by which a bridge got the packet
_FIELDS = {
    ("ip", Family.IPV4): (Field.SADDR4, Field.DADDR4),
    ("ip", Family.IPV6): (Field.SADDR6, Field.DADDR6),
}


class IpSets:
    """The sets by name."""

    def __init__(self, text: str = "") -> None:
        self._sets: dict[str, IpSet] = {}
        self._elements: dict[str, Optional[Elements[None]]] = {}
        for line in text.split("\n"):
            words = line.split()
            if len(words) > 2 and words[0] == "create":
                known = words[2] != "bitmap:port" and _MASKING.isdisjoint(words)
                self._sets[words[1]] = IpSet(words[2], "timeout" not in words, known)
            elif len(words) > 2 and words[0] == "add" and words[1] in self._sets:
                found = self._sets[words[1]]
                found.entries.append(words[2])
                found.known &= _ODD.isdisjoint(words) and _BRIDGE_PORT not in words[2]

    def tests(self, family: Family, options: Sequence[Option]) -> Iterator[Operation]:
        """Yield the tests of a match. Raises ValueError or IndexError for what cannot be read."""
        for option in options:
            if option.name not in ("--match-set", "--return-nomatch"):
                yield May(f"set {option.name}")
            if option.name == "--match-set":
                yield self._test(family, option)

    def _test(self, family: Family, option: Option) -> Operation:
        name, directions = option.arguments[0], option.arguments[1].split(",")
        found = self._sets.get(name)
        if found is None or not found.known or not _KNOWN.issuperset(found.dimensions):
            return May(f"set {name}")
        elements = self._elements_of(name, found)
        if elements is None or len(directions) < len(found.dimensions):
            return May(f"set {name}")
        key = [part for pair in zip(found.dimensions, directions) for part in _key(family, *pair)]
        return Test(tuple(map(Read, key)), Op.NE if option.negated else Op.EQ, elements)

    def _elements_of(self, name: str, found: IpSet) -> Optional[Elements[None]]:
        """Return the elements of a set, parsed once for all its rules; None if an entry cannot be read."""
        if name not in self._elements:
            self._elements[name] = _elements(found)
        return self._elements[name]


def _elements(found: IpSet) -> Optional[Elements[None]]:
    try:
        return Elements([(_entry(found.dimensions, one), None) for one in found.entries], complete=found.complete)
    except (ValueError, KeyError):
        return None


def _key(family: Family, dimension: str, direction: str) -> tuple[Field, ...]:
    second = direction == "dst"
    if dimension == "port":
        return Field.PROTO, (Field.SPORT, Field.DPORT)[second]
    if dimension == "iface":
        return ((Field.IIFNAME, Field.OIFNAME)[second],)
    return (_FIELDS["ip", family][second],)


def _entry(dimensions: Sequence[str], entry: str) -> tuple[Element, ...]:
    return tuple(part for pair in zip(dimensions, entry.split(",")) for part in _parts(*pair))


def _parts(dimension: str, text: str) -> tuple[Element, ...]:
    if dimension == "iface":
        return (text,)
    if dimension == "port":
        proto, _, port = text.rpartition(":")
        low, dash, high = port.partition("-")
        ports: Element = Interval(int(low), int(high)) if dash else int(low)
        return int(proto) if proto.isdecimal() else names.PROTOCOLS[proto.lower() or "tcp"], ports
    low, dash, high = text.partition("-")
    return (addresses(low, high) if dash else network(text),)
