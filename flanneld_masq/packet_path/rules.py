"""Defines rules as both parsers produce them: tests and actions, in the order in which the kernel does them. Pure.

A rule whose test fails does nothing further. An expression that a parser does not know is `Unknown`; a test of it may
hold, an action of it may end the packet.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional, Union

from flanneld_masq.model import SLOTS
from flanneld_masq.packet_path.rule_index import AddressKey, RuleIndex
from flanneld_masq.packet_path.values import Element, Elements, Value
from flanneld_masq.printable import printable

_LONG = 64  # rules of a chain that is searched by address
# What a parser raises for text that it does not understand.
BEYOND = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)

# ---- expressions


class Field(str, enum.Enum):
    """A property of a packet that a rule can read."""

    NFPROTO = "nfproto"
    ETHER_TYPE = "ether type"
    VERSION4 = "ip version"
    VERSION6 = "ip6 version"
    PROTO = "l4proto"
    SADDR4 = "ip saddr"
    DADDR4 = "ip daddr"
    SADDR6 = "ip6 saddr"
    DADDR6 = "ip6 daddr"
    SPORT = "th sport"
    DPORT = "th dport"
    TCP_FLAGS = "tcp flags"
    ICMP_TYPE = "icmp type"
    ICMPV6_TYPE = "icmpv6 type"
    IIFNAME = "iifname"
    OIFNAME = "oifname"
    PHYSDEV_IN = "physdev in"
    IIFGROUP = "iifgroup"
    OIFGROUP = "oifgroup"
    IIFTYPE = "iiftype"
    OIFTYPE = "oiftype"
    MARK = "mark"
    CT_STATE = "ct state"
    CT_STATE_NAT = "ct state and nat"
    CT_STATUS = "ct status"
    CT_MARK = "ct mark"
    CT_DIRECTION = "ct direction"
    CT_SADDR = "ct original saddr"
    CT_DADDR = "ct original daddr"
    CT_DPORT = "ct original proto-dst"
    CT_REPLY_SADDR = "ct reply saddr"
    CT_REPLY_DADDR = "ct reply daddr"
    SOURCE_TYPE = "fib saddr type"
    DESTINATION_TYPE = "fib daddr type"
    SOURCE_TYPE_IIF = "fib saddr . iif type"
    DESTINATION_TYPE_IIF = "fib daddr . iif type"
    SOURCE_TYPE_OIF = "fib saddr . oif type"
    DESTINATION_TYPE_OIF = "fib daddr . oif type"
    REVERSE_OIF = "fib saddr oif"
    REVERSE_OIF_STRICT = "fib saddr . iif oif"
    REVERSE_OIF_MARK = "fib saddr . mark oif"
    REVERSE_OIF_MARK_STRICT = "fib saddr . mark . iif oif"
    PKTTYPE = "pkttype"
    UID = "skuid"
    FRAGMENT = "fragment"


@dataclass(frozen=True, **SLOTS)
class Read:
    """The value of a field. Packets of another protocol than `proto`, if given, do not have it."""

    field: Field
    proto: Optional[int] = None


@dataclass(frozen=True, **SLOTS)
class Const:
    value: Value


@dataclass(frozen=True, **SLOTS)
class Compute:
    """A number made of two. `name` is the operator."""

    name: str
    function: Callable[[int, int], int]
    left: Expression
    right: Expression


@dataclass(frozen=True, **SLOTS)
class Draw:
    """A number that the kernel draws or counts up, from `first` on, one of `count`."""

    first: int
    count: int


@dataclass(frozen=True, **SLOTS)
class MapLookup:
    """The number that a map has for a key."""

    key: tuple[Expression, ...]
    elements: Elements[tuple[Element, ...]]


@dataclass(frozen=True, **SLOTS)
class Unknown:
    """Something that the model cannot evaluate. `text` says what."""

    text: str


Expression = Union[Read, Const, Compute, Draw, MapLookup, Unknown]

# ---- tests


class Op(enum.Enum):
    EQ = "=="
    NE = "!="
    LT = "<"
    GT = ">"
    LE = "<="
    GE = ">="
    BITS = "in"  # any of these bits
    NO_BITS = "! in"


@dataclass(frozen=True, **SLOTS)
class Test:
    """Compares a key, of one or several parts, with elements or, for an order or bits, with one number."""

    __test__ = False  # no test of pytest

    key: tuple[Expression, ...]
    op: Op
    elements: Elements[None]
    number: int = 0


@dataclass(frozen=True, **SLOTS)
class May:
    """A test that cannot be evaluated."""

    text: str


@dataclass(frozen=True, **SLOTS)
class Never:
    """A test that no packet passes."""

    text: str


# ---- actions


class Verdict(str, enum.Enum):
    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    RETURN = "return"
    CONTINUE = "continue"


@dataclass(frozen=True, **SLOTS)
class Jump:
    """Go to a chain of the same table, or to `inline`, which has no name. With `back`, the rules behind the jump
    follow."""

    chain: str
    back: bool = True
    inline: Optional[Chain] = None


class ChangeField(enum.Enum):
    """A property of a packet that a rule can write."""

    MARK = "mark"
    CT_MARK = "ct mark"
    SADDR = "saddr"
    DADDR = "daddr"


@dataclass(frozen=True, **SLOTS)
class Change:
    """Writes a value into the packet or its connection."""

    field: ChangeField
    value: Expression


class NatKind(str, enum.Enum):
    SNAT = "snat"
    DNAT = "dnat"
    MASQUERADE = "masquerade"
    REDIRECT = "redirect"
    NETMAP = "netmap"  # SNAT or DNAT, by the hook

    @property
    def source(self) -> bool:
        return self in (NatKind.SNAT, NatKind.MASQUERADE)

    def at(self, hook: Hook) -> NatKind:
        """Return what the kernel does at a hook. Source: net/netfilter/xt_NETMAP.c."""
        if self is not NatKind.NETMAP:
            return self
        return NatKind.DNAT if hook in DESTINATION_NAT else NatKind.SNAT


@dataclass(frozen=True, **SLOTS)
class Target:
    """Where NAT sends to: some addresses and ports, of which the kernel picks one. None leaves the packet's own.

    `prefix` is True if the host part of the address stays, as with NETMAP.
    """

    addresses: Optional[Element] = None
    ports: Optional[Element] = None
    prefix: bool = False


@dataclass(frozen=True, **SLOTS)
class Nat:
    """Translates the flow. `targets` are looked up by `key`; without a key the first holds.

    `random` is True if the port is drawn, also where the packet's own would do. `version` is 0 for both families.
    """

    kind: NatKind
    key: tuple[Expression, ...] = ()
    targets: Elements[Target] = field(default_factory=lambda: Elements([((), Target())]))
    random: bool = False
    version: int = 0


@dataclass(frozen=True, **SLOTS)
class VerdictMap:
    """Looks up what to do by a key."""

    key: tuple[Expression, ...]
    elements: Elements[Union[Verdict, Jump]]


@dataclass(frozen=True, **SLOTS)
class NoTrack:
    """Keeps connection tracking from the packet."""


@dataclass(frozen=True, **SLOTS)
class MayEnd:
    """An action that may end the packet, or hand it to a program."""

    text: str


@dataclass(frozen=True, **SLOTS)
class Lost:
    """An action that drops the packet for the reason that `text` gives."""

    text: str


Action = Union[Verdict, Jump, Change, Nat, VerdictMap, NoTrack, MayEnd, Lost]
Operation = Union[Test, May, Never, Action]


# ---- rules and chains


@dataclass(frozen=True, **SLOTS)
class Place:
    """Where a rule stands, for people.

    `table` is the family and name ("ip nat", or "legacy ip nat"), `number` counts from 1 within the chain, `handle` is
    0 where there is none. A policy has number 0.
    """

    table: str
    chain: str
    number: int = 0
    handle: int = 0
    text: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        for name in ("table", "chain", "text", "comment"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        what = f"rule {self.number} of {self.chain} in {self.table}" if self.number else f"{self.chain} in {self.table}"
        return f"{what}: {self.text}" if self.text else what


@dataclass(frozen=True, **SLOTS)
class Rule:
    """Operations in order. The kernel stops at the first test that fails."""

    place: Place
    operations: tuple[Operation, ...]


class Chain:
    """A chain whose rules are parsed when they are first needed: a large node has many that no packet of a pod reaches.

    `load` returns the rule of an index. It raises nothing. `texts` are the rules as a tool printed them.
    """

    def __init__(self, name: str, texts: Sequence[str], load: Callable[[int], Rule]) -> None:
        self.name = name
        self._texts = texts
        self._load = load
        self._rules: dict[int, Rule] = {}
        self._index: Optional[RuleIndex] = None

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Rule]:
        return map(self.rule, range(len(self)))

    def containing(self, *words: str) -> Iterator[Rule]:
        """Yield the rules whose text has one of the words. The others are not parsed."""
        return (self.rule(position) for position, text in enumerate(self._texts) if any(word in text for word in words))

    def rule(self, position: int) -> Rule:
        """Return the rule of a position, which begins at 0."""
        if position not in self._rules:
            self._rules[position] = self._load(position)
        return self._rules[position]

    def next(self, position: int, ends: Callable[[], Optional[Collection[AddressKey]]]) -> Optional[int]:
        """Return the first position, from this one on, of a rule that may concern packets; None if there is no more.

        `ends` returns the addresses of the packets, None if they are not known. Only a long chain asks.
        """
        if len(self) >= _LONG and (known := ends()) is not None:
            self._index = self._index or RuleIndex(self._texts)
            return self._index.next(position, known)
        return position if position < len(self) else None


class Hook(str, enum.Enum):
    """A place on the packet's path at which the kernel calls base chains."""

    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    EGRESS = "egress"


DESTINATION_NAT = (Hook.PREROUTING, Hook.OUTPUT)  # where NAT changes the destination; later only the source


@dataclass(frozen=True, **SLOTS)
class BaseChain:
    """A chain that the kernel calls at a hook, in the order of `priority`.

    `versions` are those of IP that it sees, `nat` is True if it sees the first packet of each flow alone. Of two with
    the same priority, the one with the higher `order` was registered later, and the kernel calls it first.
    `devices` are those whose packets it sees at ingress or egress; at the other hooks it sees all.
    """

    hook: Hook
    priority: int
    table: str
    chain: Chain
    policy: Verdict
    versions: frozenset[int]
    nat: bool
    order: tuple[int, int]
    chains: Mapping[str, Chain] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()

    @property
    def policy_place(self) -> Place:
        return Place(self.table, self.chain.name, text=f"policy {self.policy.value}")
