"""Compiles a rule of `nft -j list ruleset` into operations. Pure. Source: libnftables-json(5).

Whatever is not known here becomes a test that may hold or an action that may end the packet; nothing raises.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Optional, TypeVar, Union

from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path import names, nft_inline
from flanneld_masq.packet_path.nft_tables import RawTable, content_of, shown, statements_of
from flanneld_masq.packet_path.packet import DCCP, SCTP, TCP, UDP, UDPLITE
from flanneld_masq.packet_path.queues import Queues
from flanneld_masq.packet_path.rules import (
    BEYOND,
    Chain,
    Change,
    ChangeField,
    Compute,
    Const,
    Draw,
    Expression,
    Field,
    Jump,
    MapLookup,
    May,
    MayEnd,
    Nat,
    NatKind,
    NoTrack,
    Op,
    Operation,
    Place,
    Read,
    Rule,
    Target,
    Test,
    Unknown,
    Verdict,
    VerdictMap,
)
from flanneld_masq.packet_path.values import ANYTHING, MISSING, UNKNOWN, Element, Elements, Interval, Wildcard, network

_Data = TypeVar("_Data")
Parse = Callable[[Any], Element]


class _Unsupported(ValueError):
    """The model does not know an expression."""


# ---- how the right side of a test is written, by what stands on the left


def _number(value: Any) -> int:
    if isinstance(value, str):
        return int(value, 0)
    if type(value) is not int:
        raise _Unsupported
    return value


def _named(table: Mapping[str, int]) -> Parse:
    return lambda value: table[value] if isinstance(value, str) and value in table else _number(value)


def _address(value: Any) -> Element:
    return int(ip_address(value))


def _interface(value: Any) -> Element:
    if not isinstance(value, str):
        raise _Unsupported
    if value.endswith("*") and not value.endswith("\\*"):
        return Wildcard(value[:-1])
    return value.replace("\\*", "*")


def _reverse_device(value: Any) -> Element:
    return "" if value in (False, 0) else _interface(value)


_PROTO = _named(names.PROTOCOLS)
_PORT = _named(names.SERVICES)


@dataclass(frozen=True, **SLOTS)
class Key:
    """An expression, with how its values are written."""

    expression: Expression
    parse: Parse = _number


_META = {
    "iifname": Key(Read(Field.IIFNAME), _interface),
    "iif": Key(Read(Field.IIFNAME), _interface),
    "oifname": Key(Read(Field.OIFNAME), _interface),
    "oif": Key(Read(Field.OIFNAME), _interface),
    "iifgroup": Key(Read(Field.IIFGROUP), _named(names.DEVICE_GROUPS)),
    "oifgroup": Key(Read(Field.OIFGROUP), _named(names.DEVICE_GROUPS)),
    "iiftype": Key(Read(Field.IIFTYPE), _named(names.DEVICE_TYPES)),
    "oiftype": Key(Read(Field.OIFTYPE), _named(names.DEVICE_TYPES)),
    "l4proto": Key(Read(Field.PROTO), _PROTO),
    "nfproto": Key(Read(Field.NFPROTO), _named(names.NFPROTOS)),
    "protocol": Key(Read(Field.NFPROTO), _named(names.NFPROTOS)),
    "mark": Key(Read(Field.MARK)),
    "pkttype": Key(Read(Field.PKTTYPE), _named(names.PACKET_TYPES)),
    "skuid": Key(Read(Field.UID), _named({"root": 0})),
}
_CT = {
    "state": Key(Read(Field.CT_STATE), _named(names.CT_STATES)),
    "status": Key(Read(Field.CT_STATUS), _named(names.CT_STATUS)),
    "mark": Key(Read(Field.CT_MARK)),
    "direction": Key(Read(Field.CT_DIRECTION), _named(names.DIRECTIONS)),
}
_CT_DIRECTED = {
    ("saddr", "original"): Field.CT_SADDR,
    ("daddr", "original"): Field.CT_DADDR,
    ("saddr", "reply"): Field.CT_REPLY_SADDR,
    ("daddr", "reply"): Field.CT_REPLY_DADDR,
}
_PORTS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "dccp": DCCP, "udplite": UDPLITE}
_PAYLOAD = {
    ("ether", "type"): Key(Read(Field.ETHER_TYPE), _named(names.NFPROTOS)),
    ("ip", "saddr"): Key(Read(Field.SADDR4), _address),
    ("ip", "daddr"): Key(Read(Field.DADDR4), _address),
    ("ip", "version"): Key(Read(Field.VERSION4)),
    ("ip6", "version"): Key(Read(Field.VERSION6)),
    ("ip", "protocol"): Key(Read(Field.PROTO), _PROTO),
    ("ip", "frag-off"): Key(Read(Field.FRAGMENT)),
    ("ip6", "saddr"): Key(Read(Field.SADDR6), _address),
    ("ip6", "daddr"): Key(Read(Field.DADDR6), _address),
    ("ip6", "nexthdr"): Key(Read(Field.PROTO), _PROTO),
    ("th", "sport"): Key(Read(Field.SPORT), _PORT),
    ("th", "dport"): Key(Read(Field.DPORT), _PORT),
    ("tcp", "flags"): Key(Read(Field.TCP_FLAGS), _named(names.TCP_FLAGS)),
    ("icmp", "type"): Key(Read(Field.ICMP_TYPE), _named(names.ICMP_TYPES)),
    ("icmpv6", "type"): Key(Read(Field.ICMPV6_TYPE), _named(names.ICMPV6_TYPES)),
    **{(name, "sport"): Key(Read(Field.SPORT, proto), _PORT) for name, proto in _PORTS.items()},
    **{(name, "dport"): Key(Read(Field.DPORT, proto), _PORT) for name, proto in _PORTS.items()},
}
_ROUTE_TYPE = _named(names.ROUTE_TYPES)
_FIB = {
    ("type", frozenset({"saddr"})): Key(Read(Field.SOURCE_TYPE), _ROUTE_TYPE),
    ("type", frozenset({"daddr"})): Key(Read(Field.DESTINATION_TYPE), _ROUTE_TYPE),
    ("type", frozenset({"saddr", "iif"})): Key(Read(Field.SOURCE_TYPE_IIF), _ROUTE_TYPE),
    ("type", frozenset({"daddr", "iif"})): Key(Read(Field.DESTINATION_TYPE_IIF), _ROUTE_TYPE),
    ("type", frozenset({"saddr", "oif"})): Key(Read(Field.SOURCE_TYPE_OIF), _ROUTE_TYPE),
    ("type", frozenset({"daddr", "oif"})): Key(Read(Field.DESTINATION_TYPE_OIF), _ROUTE_TYPE),
    ("oif", frozenset({"saddr"})): Key(Read(Field.REVERSE_OIF), _reverse_device),
    ("oif", frozenset({"saddr", "iif"})): Key(Read(Field.REVERSE_OIF_STRICT), _reverse_device),
    ("oif", frozenset({"saddr", "mark"})): Key(Read(Field.REVERSE_OIF_MARK), _reverse_device),
    ("oif", frozenset({"saddr", "mark", "iif"})): Key(Read(Field.REVERSE_OIF_MARK_STRICT), _reverse_device),
}
_OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": lambda left, right: (left << min(right, 32)) & 0xFFFFFFFF,
    ">>": lambda left, right: left >> min(right, 32),
}
_OPS = {op.value: op for op in Op} | {"!": Op.NO_BITS}
_INVERSE = {Op.EQ: Op.NE, Op.NE: Op.EQ}
_DRAWN = ("numgen", "jhash", "symhash")
_JUMPS = ("jump", "goto")
_PLAIN_VERDICTS = tuple(verdict.value for verdict in Verdict if verdict is not Verdict.REJECT)


def key_of(left: Any) -> Key:
    """Return the expression on the left side of a test. Raises one of BEYOND if it is not known."""
    ((kind, content),) = left.items()
    if kind in _OPERATORS:
        return _computed(kind, content)
    if kind in _DRAWN:
        return Key(Draw(int(content.get("offset", 0)), int(content["mod"])))
    if kind == "fib":
        flags = content["flags"]
        return _FIB[content["result"], frozenset([flags] if isinstance(flags, str) else flags)]
    if kind == "ct":
        return _tracked(content)
    if kind == "payload" and content.get("protocol") == "arp":
        return Key(Const(MISSING), _unread)
    if kind == "payload":
        return _PAYLOAD[content["protocol"], content["field"]]
    if kind == "meta":
        return _META[content["key"]]
    raise _Unsupported


def _computed(name: str, operands: Any) -> Key:
    """Return a number made of several. The first operand determines the form of the others."""
    first = key_of(operands[0])
    found: Expression = first.expression
    for operand in operands[1:]:
        found = Compute(name, _OPERATORS[name], found, _operand(operand, first.parse))
    return Key(found, first.parse)


def _operand(value: Any, parse: Parse) -> Expression:
    if isinstance(value, dict) and "|" not in value:
        return key_of(value).expression
    return Const(_bits(value, parse))


def _bits(value: Any, parse: Parse) -> int:
    """Return flags, one or several, as a number."""
    if isinstance(value, dict):
        value = value["|"]
    total = 0
    for one in value if isinstance(value, list) else [value]:
        flag = _bits(one, parse) if isinstance(one, (dict, list)) else parse(one)
        if not isinstance(flag, int):
            raise _Unsupported
        total |= flag
    return total


def _tracked(content: Any) -> Key:
    name, direction = content["key"].split()[-1], content.get("dir")
    if (name, direction) in _CT_DIRECTED:
        return Key(Read(_CT_DIRECTED[name, direction]), _address)
    if (name, direction) == ("proto-dst", "original"):
        return Key(Read(Field.CT_DPORT), _PORT)
    return _CT[content["key"]]


def keys_of(left: Any) -> tuple[Key, ...]:
    """Return the parts of a concatenation, or the one expression."""
    if isinstance(left, dict) and "concat" in left:
        return tuple(key_of(part) for part in left["concat"])
    return (key_of(left),)


def _keys_or_unknown(left: Any) -> tuple[Key, ...]:
    try:
        return keys_of(left)
    except BEYOND:
        parts = left.get("concat", [left])
        return tuple(Key(Unknown(shown(part)), _unread) for part in parts)


def _unread(_: Any) -> Element:
    return UNKNOWN


# ---- elements


def element_of(value: Any, parse: Parse) -> Element:
    """Return one part of an element."""
    if parse is _unread:
        return UNKNOWN
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "prefix":
            return network(f"{content['addr']}/{content['len']}")
        if kind == "range":
            low, high = (parse(end) for end in content)
            if isinstance(low, int) and isinstance(high, int):
                return Interval(low, high)
        if kind == "|":
            return _bits(value, parse)
        raise _Unsupported
    if isinstance(value, list):
        return _bits(value, parse)
    return ANYTHING if value == "*" else parse(value)


def _parts(value: Any, parses: Sequence[Parse]) -> tuple[Element, ...]:
    """Return an element of a set, without what nft says about it besides."""
    if isinstance(value, dict) and "elem" in value:
        return _parts(value["elem"]["val"], parses)
    if isinstance(value, dict) and "concat" in value:
        return tuple(element_of(part, parse) for part, parse in zip(value["concat"], parses))
    if value == "*":
        return (ANYTHING,) * len(parses)
    return (element_of(value, parses[0]),)


def _verdict(value: Any) -> Union[Verdict, Jump]:
    kind: Any
    content: Any
    ((kind, content),) = value.items()
    return _action(kind, content)


def _action(kind: str, content: Any) -> Union[Verdict, Jump]:
    return Jump(content["target"], kind == "jump") if kind in _JUMPS else Verdict(kind)


class Compiler:
    """Compiles the rules of one table, and keeps its named sets. `queues` are those that programs read."""

    def __init__(self, table: RawTable, queues: Queues) -> None:
        self._table = table
        self._queues = queues
        self._sets: dict[object, Elements[Any]] = {}
        self._statements: Mapping[str, Callable[[Any], Iterable[Operation]]] = {
            "match": self._match,
            "vmap": self._verdict_map,
            "mangle": self._mangle,
            "reject": lambda _: [Verdict.REJECT],
            "notrack": lambda _: [NoTrack()],
            "limit": lambda _: [May("limit")],
            "quota": lambda _: [May("quota")],
            "ct count": lambda _: [May("ct count")],
            "set": self._update,
            "map": self._update,
            "queue": self._queue,
            "xt": _extension,
            **{name: partial(_end, name) for name in (*_PLAIN_VERDICTS, *_JUMPS)},
            **{kind.value: partial(self._nat, kind) for kind in NatKind},
            **dict.fromkeys(_HARMLESS, lambda _: []),
        }

    def rule(self, content: Any, place: Place) -> Rule:
        """Compile a rule, given the content of its object."""
        return self._rule(statements_of(content), place)

    def _rule(self, statements: Iterable[Any], place: Place) -> Rule:
        return Rule(place, tuple(operation for one in statements for operation in self._operations(one, place)))

    def _operations(self, statement: Any, place: Place) -> Iterator[Operation]:
        try:
            if isinstance(statement, str):
                yield self._anonymous(statement, place)
            else:
                ((kind, content),) = statement.items()
                yield from self._statements[kind](content)
        except BEYOND:
            text = shown(statement)
            yield May(text) if isinstance(statement, dict) and "match" in statement else MayEnd(text)

    def _anonymous(self, text: str, place: Place) -> Jump:
        """Return the jump to a chain within the rule. Each of its rules has the place of that one, whose handle nft
        takes, and a text of its own."""
        kind, found = nft_inline.chain_of(text)
        before = place.text.partition(f"{kind} {{")[0]
        rules = [
            self._rule(statements, replace(place, text=f"{before}{kind} {{ {line} }}")) for line, statements in found
        ]
        return Jump("", kind == "jump", Chain("", [line for line, _ in found], rules.__getitem__))

    def _match(self, content: Any) -> Iterable[Operation]:
        op, right = _OPS[content["op"]], content["right"]
        keys = keys_of(content["left"])
        if keys[0].expression == Read(Field.FRAGMENT):  # with the bit that forbids fragments, which is not known
            raise _Unsupported
        if keys[0].parse is _reverse_device and right is True:
            op, right = _INVERSE[op], False
        key = tuple(part.expression for part in keys)
        if (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right):
            return [Test(key, Op.EQ if op is Op.BITS else op, self._elements(right, keys))]
        if op in (Op.EQ, Op.NE):
            return [Test(key, op, Elements([(_parts(right, _parses(keys)), None)]))]
        return [Test(key, op, Elements([]), _bits(right, keys[0].parse))]

    def _elements(self, where: Any, keys: Sequence[Key]) -> Elements[None]:
        parses = _parses(keys)
        return self._find(where, parses, None, lambda items: [(_parts(item, parses), None) for item in items])

    def _pairs(self, where: Any, keys: Sequence[Key], data: Callable[[Any], _Data]) -> Elements[_Data]:
        """Return the elements of a map; `data` converts each value."""
        parses = _parses(keys)
        return self._find(
            where, parses, data, lambda items: [(_parts(key, parses), data(value)) for key, value in items]
        )

    def _find(self, where: Any, parses: object, data: object, build: Callable[[Any], Any]) -> Elements[Any]:
        if not isinstance(where, str):
            return Elements(build(where["set"]))
        name, known = where[1:], (where, parses, data)
        if known not in self._sets:
            content = content_of(self._table.sets[name])
            complete = name not in self._table.dynamic
            self._sets[known] = Elements(build(content.get("elem", ())), complete=complete)
        return self._sets[known]

    def _verdict_map(self, content: Any) -> Iterable[Operation]:
        keys = _keys_or_unknown(content["key"])
        return [VerdictMap(tuple(part.expression for part in keys), self._pairs(content["data"], keys, _verdict))]

    def _mangle(self, content: Any) -> Iterable[Operation]:
        ((kind, what),) = content["key"].items()
        name = what.get("key", what.get("field"))
        changed = _WRITTEN.get((kind, name))
        if (kind, name) == ("ct", "zone") and content["value"] != 0:  # in which answers may find no entry
            return [MayEnd("another zone of conntrack")]
        if changed is None:
            return [] if kind != "payload" or name not in ("sport", "dport") else [MayEnd("changes a port")]
        address = changed in (ChangeField.SADDR, ChangeField.DADDR)
        return [Change(changed, self._value(content["value"], _address if address else _number))]

    def _value(self, value: Any, parse: Parse) -> Expression:
        """Return what is written; Unknown for anything not known."""
        try:
            if not isinstance(value, dict):
                return Const(_bits(value, parse))
            if "map" in value:
                keys = keys_of(value["map"]["key"])
                return MapLookup(
                    tuple(part.expression for part in keys),
                    self._pairs(value["map"]["data"], keys, _number_data),
                )
            return key_of(value).expression
        except BEYOND:
            return Unknown(shown(value))

    def _update(self, content: Any) -> Iterable[Operation]:
        """Return a test for each limit on an element; an update as such always succeeds."""
        return [May(shown(one)) for one in content.get("stmt") or () if "counter" not in one]

    def _queue(self, content: Any) -> Iterable[Operation]:
        content = content or {}
        numbers, flags = element_of(content.get("num", 0), _number), content.get("flags", ())
        if not isinstance(numbers, (int, Interval)):
            raise _Unsupported
        first, last = (numbers, numbers) if isinstance(numbers, int) else (numbers.low, numbers.high)
        return [self._queues.action(first, last, bypass="bypass" in flags)]

    def _nat(self, kind: NatKind, content: Any) -> Iterable[Operation]:
        content = content or {}
        flags = content.get("flags", ())
        random = bool({"random", "fully-random"}.intersection([flags] if isinstance(flags, str) else flags))
        version = {"ip": 4, "ip6": 6}.get(content.get("family", ""), 0)
        try:
            return [Nat(kind, *self._targets(content), random, version)]
        except BEYOND:
            return [Nat(kind, (), Elements([((), Target(UNKNOWN, UNKNOWN))]), random, version)]

    def _targets(self, content: Any) -> tuple[tuple[Expression, ...], Elements[Target]]:
        addr, port = content.get("addr"), content.get("port")
        target = _target if content.get("type_flags") != "prefix" else _prefix_target
        if isinstance(addr, dict) and "map" in addr and port is None:
            keys = keys_of(addr["map"]["key"])
            return tuple(part.expression for part in keys), self._pairs(addr["map"]["data"], keys, target)
        found = Target() if addr is None else target(addr)
        ports = found.ports if port is None else element_of(port, _PORT)
        return (), Elements([((), Target(found.addresses, ports, found.prefix))])


def _parses(keys: Sequence[Key]) -> tuple[Parse, ...]:
    return tuple(key.parse for key in keys)


def _end(kind: str, content: Any) -> list[Operation]:
    action = _action(kind, content)
    return [] if action is Verdict.CONTINUE else [action]


def _number_data(value: Any) -> tuple[Element, ...]:
    return (_number(value),)


def _target(value: Any) -> Target:
    """Return where a rule sends to: an address, or one with a port."""
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"]["val"]
    if isinstance(value, dict) and "concat" in value:
        addr, port = value["concat"]
        return Target(element_of(addr, _address), element_of(port, _PORT))
    return Target(element_of(value, _address))


def _prefix_target(value: Any) -> Target:
    found = _target(value)
    return Target(found.addresses, found.ports, prefix=True)


def _extension(content: Any) -> list[Operation]:
    """Return what an extension of xtables may do. nft prints only its name."""
    name = content["name"]
    if content["type"] == "match":
        return [] if name == "comment" else [May(f"xt match {name}")]
    return [] if name in ("LOG", "NFLOG", "TCPMSS", "TRACE") else [MayEnd(f"xt target {name}")]


_WRITTEN: Mapping[tuple[str, Optional[str]], ChangeField] = {
    ("meta", "mark"): ChangeField.MARK,
    ("ct", "mark"): ChangeField.CT_MARK,
    ("payload", "saddr"): ChangeField.SADDR,
    ("payload", "daddr"): ChangeField.DADDR,
}
_HARMLESS = (
    "counter",
    "log",
    "last",
    "ct helper",
    "ct timeout",
    "ct expectation",
    "secmark",
    "flow",
    "dup",
    "comment",
)
