"""Compiles a line of iptables-save into operations. Pure. Source: iptables-extensions(8).

A match that is not known here may hold, a target that is not known may end the packet; nothing raises.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from flanneld_masq.inputs.save_lines import TEXTS
from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path import names
from flanneld_masq.packet_path.ipsets import IpSets
from flanneld_masq.packet_path.packet import DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE
from flanneld_masq.packet_path.queues import Queues
from flanneld_masq.packet_path.rules import (
    BEYOND,
    Change,
    ChangeField,
    Compute,
    Const,
    Expression,
    Field,
    Jump,
    May,
    MayEnd,
    Nat,
    NatKind,
    Never,
    NoTrack,
    Op,
    Operation,
    Place,
    Read,
    Rule,
    Target,
    Test,
    Verdict,
)
from flanneld_masq.packet_path.save_format import words
from flanneld_masq.packet_path.values import UNKNOWN, Element, Elements, Interval, Wildcard, addresses, masked


@dataclass(frozen=True, **SLOTS)
class Option:
    """One option of a match or target, with its arguments."""

    name: str
    arguments: tuple[str, ...]
    negated: bool

    @property
    def argument(self) -> str:
        return self.arguments[0]


@dataclass(frozen=True, **SLOTS)
class Part:
    """A match ("-m"), a target ("-j", "-g"), or, without a name, what belongs to no match."""

    kind: str
    name: str
    options: tuple[Option, ...]


def parts(line: str) -> tuple[tuple[Part, ...], str]:
    """Return the parts of a rule, and its comment."""
    found, comment = list(_parts(words(line)[2:])), ""
    for part in found:
        for option in part.options:
            if part.name == "comment" and option.arguments:
                comment = option.argument
    return tuple(found), comment


def _parts(tokens: Sequence[str]) -> Iterator[Part]:
    kind, name = "", ""
    options: list[Option] = []
    negated, position = False, 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == "!":
            negated = True
        elif token in ("-m", "-j", "-g"):
            yield Part(kind, name, tuple(options))
            kind, name, options = token, tokens[position] if position < len(tokens) else "", []
            position += 1
        elif token.startswith("-") and len(token) > 1:
            end = position + (token in TEXTS)
            while end < len(tokens) and tokens[end] != "!" and not _is_option(tokens[end]):
                end += 1
            options.append(Option(token, tuple(tokens[position:end]), negated))
            negated, position = False, end
            if kind == "-m" and token in _PLAIN:  # as old releases write it, behind a match
                yield Part("", "", (options.pop(),))
    yield Part(kind, name, tuple(options))


def _is_option(token: str) -> bool:
    return token.startswith("--") or (len(token) == 2 and token[0] == "-" and token[1].isalpha())


# ---- tests


def _test(field: Field, elements: Iterable[Element], negated: bool = False, proto: int | None = None) -> Test:
    return _test_of(Read(field, proto), elements, negated)


def _test_of(key: Expression, elements: Iterable[Element], negated: bool) -> Test:
    return Test((key,), Op.NE if negated else Op.EQ, Elements([((one,), None) for one in elements]))


def _bits(field: Field, bits: int, negated: bool) -> Test:
    return Test((Read(field),), Op.NO_BITS if negated else Op.BITS, Elements([]), bits)


def _masked(field: Field, text: str, negated: bool) -> Test:
    """Return the test `VALUE[/MASK]` of a mark."""
    value, mask = _value_mask(text)
    return _test_of(Compute("&", operator.and_, Read(field), Const(mask)), [value], negated)


def _value_mask(text: str, default: int = 0xFFFFFFFF) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else default


def _interface(option: Option, field: Field) -> Test:
    name = option.argument
    element: Element = Wildcard(name[:-1]) if name.endswith("+") else name
    return _test(field, [element], option.negated)


def _named(table: Mapping[str, int], text: str) -> int:
    return table[text.lower()] if text.lower() in table else int(text, 0)


def _port_range(text: str) -> Element:
    low, colon, high = text.partition(":")
    first = _named(names.SERVICES, low) if low else 0
    if not colon:
        return first
    return Interval(first, _named(names.SERVICES, high) if high else 0xFFFF)


def _ports(option: Option, proto: int | None = None) -> Iterable[Operation]:
    field = Field.SPORT if option.name in ("--sport", "--sports", "--source-port") else Field.DPORT
    ranges = [_port_range(one) for one in option.argument.split(",")]
    if option.name == "--ports":
        if option.negated:
            return [_test(Field.SPORT, ranges, True), _test(Field.DPORT, ranges, True)]
        return [May("multiport --ports")]
    return [_test(field, ranges, option.negated, proto)]


def _flags(mask: str, value: str, negated: bool) -> Test:
    bits, wanted = (sum(names.TCP_FLAGS[one] for one in set(text.lower().split(","))) for text in (mask, value))
    return _test_of(Compute("&", operator.and_, Read(Field.TCP_FLAGS), Const(bits)), [wanted], negated)


def _tcp(option: Option) -> Iterable[Operation]:
    if option.name == "--tcp-flags":
        mask, value = option.arguments
        return [_flags(mask, value, option.negated)]
    if option.name == "--syn":
        return [_flags("syn,rst,ack,fin", "syn", option.negated)]
    return _ports(option, TCP) if option.name in ("--sport", "--dport") else [May(option.name)]


def _with_ports(proto: int, option: Option) -> Iterable[Operation]:
    return _ports(option, proto) if option.name in ("--sport", "--dport") else [May(option.name)]


def _icmp(field: Field, table: Mapping[str, int], option: Option) -> Iterable[Operation]:
    text = option.argument.partition("/")[0]
    if text in ("any", "255"):
        return []
    test = _test(field, [_named(table, text)], option.negated)
    return [test] if "/" not in option.argument else [test, May(option.argument)]


def _conntrack(option: Option) -> Iterable[Operation]:
    name = option.name
    if name in ("--ctstate", "--state"):
        return [_states(option)]
    if name == "--ctstatus":
        bits = sum(names.CT_STATUS[one.lower()] for one in option.argument.split(","))
        if not bits:  # NONE, which no status is: the kernel tests its bits, of which it has none
            return [_test(Field.CT_STATUS, [], option.negated)]
        return [_bits(Field.CT_STATUS, bits, option.negated)]
    if name == "--ctdir":
        return [_test(Field.CT_DIRECTION, [names.DIRECTIONS[option.argument.lower()]], option.negated)]
    if name in _CT_ADDRESSES:
        return [_test(_CT_ADDRESSES[name], [masked(option.argument)], option.negated)]
    if name == "--ctorigdstport":
        return [_test(Field.CT_DPORT, [_port_range(option.argument)], option.negated)]
    if name == "--ctproto":
        return [_test(Field.PROTO, [_named(names.PROTOCOLS, option.argument)], option.negated)]
    return [May(f"conntrack {name}")]


_CT_ADDRESSES = {
    "--ctorigsrc": Field.CT_SADDR,
    "--ctorigdst": Field.CT_DADDR,
    "--ctreplsrc": Field.CT_REPLY_SADDR,
    "--ctrepldst": Field.CT_REPLY_DADDR,
}


def _states(option: Option) -> Operation:
    """Return the test of the state, to which xtables adds SNAT and DNAT."""
    wanted = {one.lower() for one in option.argument.split(",")}
    return _bits(Field.CT_STATE_NAT, sum(names.STATES_AND_NAT[one] for one in wanted), option.negated)


def _addrtype(family: Family, options: Sequence[Option]) -> Iterable[Operation]:
    """Return tests of the types of addresses, for one device with an option that limits them to it.

    Of IPv6, which then has types of its own, only the type LOCAL is known. Source: net/netfilter/xt_addrtype.c.
    """
    limits = [option.name for option in options if option.name.startswith("--limit-iface-")]
    fields = _ADDRESS_TYPES[limits[0] if limits else ""]
    for option in options:
        if option.name in fields:
            types = [names.ROUTE_TYPES[one.lower()] for one in option.argument.split(",")]
            if limits and family is Family.IPV6 and types != [names.ROUTE_TYPES["local"]]:
                yield May(option.name)
            else:
                yield _test(fields[option.name], types, option.negated)
        elif option.name not in _ADDRESS_TYPES:
            yield May(option.name)


_ADDRESS_TYPES: Mapping[str, Mapping[str, Field]] = {
    "": {"--src-type": Field.SOURCE_TYPE, "--dst-type": Field.DESTINATION_TYPE},
    "--limit-iface-in": {"--src-type": Field.SOURCE_TYPE_IIF, "--dst-type": Field.DESTINATION_TYPE_IIF},
    "--limit-iface-out": {"--src-type": Field.SOURCE_TYPE_OIF, "--dst-type": Field.DESTINATION_TYPE_OIF},
}


def _address_range(family: Family, option: Option) -> Iterable[Operation]:
    low, _, high = option.argument.partition("-")
    field = _source(family) if option.name == "--src-range" else _destination(family)
    return [_test(field, [addresses(low, high or low)], option.negated)]


def _owner(option: Option) -> Iterable[Operation]:
    if option.name == "--uid-owner" and not option.negated:
        low, dash, high = option.argument.partition("-")
        return [_test(Field.UID, [Interval(int(low), int(high)) if dash else int(low)], option.negated)]
    return [May(f"owner {option.name}")]


def _physdev(option: Option) -> Iterable[Operation]:
    """Return tests of packets that the node routes: no bridge forwards them. Source: xt_physdev.c."""
    if option.name in ("--physdev-is-bridged", "--physdev-is-out", "--physdev-out"):
        return [] if option.negated else [Never(option.name)]
    if option.name == "--physdev-is-in":
        return [_test(Field.PHYSDEV_IN, [""], not option.negated)]
    if option.name == "--physdev-in":
        return [_interface(option, Field.PHYSDEV_IN)]
    return [May(f"physdev {option.name}")]


def _pkttype(option: Option) -> Iterable[Operation]:
    return [_test(Field.PKTTYPE, [names.PACKET_TYPES[option.argument.lower()]], option.negated)]


def _devgroup(option: Option) -> Iterable[Operation]:
    """Return the test of the group of a device. Source: xt_devgroup.c, which compares the bits of the mask alone."""
    field = {"--src-group": Field.IIFGROUP, "--dst-group": Field.OIFGROUP}[option.name]
    text, _, mask = option.argument.partition("/")
    bits = int(mask, 0) if mask else 0xFFFFFFFF
    key = Compute("&", operator.and_, Read(field), Const(bits))
    return [_test_of(key, [_named(names.DEVICE_GROUPS, text) & bits], option.negated)]


def _mark(field: Field, option: Option) -> Iterable[Operation]:
    return [_masked(field, option.argument, option.negated)]


def _reverse_path(options: Sequence[Option]) -> Iterable[Operation]:
    given = {option.name for option in options}
    if given - {"--loose", "--invert", "--validmark"}:
        return [May("rpfilter")]
    field = {
        (False, False): Field.REVERSE_OIF_STRICT,
        (False, True): Field.REVERSE_OIF_MARK_STRICT,
        (True, False): Field.REVERSE_OIF,
        (True, True): Field.REVERSE_OIF_MARK,
    }["--loose" in given, "--validmark" in given]
    return [_test(field, [""], "--invert" not in given)]


def _with_header(proto: int, name: str) -> list[Operation]:
    """Return tests of a header that a packet of this protocol begins with; the options are about its content."""
    return [_test(Field.PROTO, [proto]), May(f"-m {name}")]


def _nothing(_: Option) -> Iterable[Operation]:
    return []


# They look for a header before that of the protocol, which no packet of the model has. Then they miss, whatever the
# options. Source: ip6t_rt.c, ip6t_frag.c, ip6t_hbh.c
_EXTENSION_HEADERS = frozenset({"rt", "frag", "hbh", "dst"})
_HEADERS: Mapping[str, int] = {"esp": 50, "ah": 51, "mh": 135}  # xt_esp.c, ipt_ah.c, ip6t_ah.c, ip6t_mh.c


_Handler = Callable[[Option], Iterable[Operation]]
_MATCHES: Mapping[str, _Handler] = {
    "comment": _nothing,
    "nfacct": _nothing,
    "tcp": _tcp,
    **{
        name: partial(_with_ports, proto)
        for name, proto in (("udp", UDP), ("sctp", SCTP), ("dccp", DCCP), ("udplite", UDPLITE))
    },
    "icmp": partial(_icmp, Field.ICMP_TYPE, names.ICMP_TYPES),
    "icmp6": partial(_icmp, Field.ICMPV6_TYPE, names.ICMPV6_TYPES),
    "multiport": _ports,
    "conntrack": _conntrack,
    "state": _conntrack,
    "mark": partial(_mark, Field.MARK),
    "connmark": partial(_mark, Field.CT_MARK),
    "owner": _owner,
    "devgroup": _devgroup,
    "physdev": _physdev,
    "pkttype": _pkttype,
}
_PROTO_OF_MATCH = {
    "tcp": TCP, "udp": UDP, "icmp": ICMP, "icmp6": ICMPV6, "sctp": SCTP, "dccp": DCCP, "udplite": UDPLITE
}  # fmt: skip


def _source(family: Family) -> Field:
    return Field.SADDR4 if family is Family.IPV4 else Field.SADDR6


def _destination(family: Family) -> Field:
    return Field.DADDR4 if family is Family.IPV4 else Field.DADDR6


# ---- targets

_VERDICTS = {
    "ACCEPT": Verdict.ACCEPT,
    "DROP": Verdict.DROP,
    "REJECT": Verdict.REJECT,
    "RETURN": Verdict.RETURN,
}
_HARMLESS = frozenset({"LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "TCPMSS", "CHECKSUM", "CLASSIFY", "DSCP", "TOS"}) | {
    *("TTL", "HL", "ECN", "IDLETIMER", "RATEEST", "SET", "TEE", "LED", "CONNSECMARK", "SECMARK", "TCPOPTSTRIP"),
}
_RANDOM = frozenset({"--random", "--random-fully"})


def _set_mark(field: ChangeField, old: Field, options: Mapping[str, Option]) -> Operation:
    """Return the change of a mark; the options of MARK and CONNMARK are alike."""
    for name, option in options.items():
        if name in ("--set-xmark", "--set-mark"):
            value, mask = _value_mask(option.argument)
            clear = mask if name == "--set-xmark" else mask | value
            kept = Compute("&", operator.and_, Read(old), Const(~clear & 0xFFFFFFFF))
            return Change(field, Compute("^", operator.xor, kept, Const(value)))
        if name in _MARK_OPERATORS:
            function = _MARK_OPERATORS[name]
            return Change(field, Compute(name, function, Read(old), Const(int(option.argument, 0))))
    return MayEnd("an unknown option of MARK")


_MARK_OPERATORS = {"--and-mark": operator.and_, "--or-mark": operator.or_, "--xor-mark": operator.xor}


def _connection_mark(options: Mapping[str, Option]) -> Operation:
    save, restore = "--save-mark" in options, "--restore-mark" in options
    if not save and not restore:
        return _set_mark(ChangeField.CT_MARK, Field.CT_MARK, options)
    if "--left-shift-mark" in options or "--right-shift-mark" in options:
        return MayEnd("shifts a mark")
    both = _number(options, "--mask", 0xFFFFFFFF)
    packet, connection = _number(options, "--nfmask", both), _number(options, "--ctmask", both)
    if save:
        return Change(ChangeField.CT_MARK, _merged(Field.CT_MARK, connection, Field.MARK, packet))
    return Change(ChangeField.MARK, _merged(Field.MARK, packet, Field.CT_MARK, connection))


def _number(options: Mapping[str, Option], name: str, default: int) -> int:
    return int(options[name].argument, 0) if name in options else default


def _merged(old: Field, clear: int, new: Field, keep: int) -> Expression:
    """Return `(old & ~clear) ^ (new & keep)`. Source: net/netfilter/xt_connmark.c."""
    kept = Compute("&", operator.and_, Read(old), Const(~clear & 0xFFFFFFFF))
    return Compute("^", operator.xor, kept, Compute("&", operator.and_, Read(new), Const(keep)))


def _nat(kind: NatKind, options: Mapping[str, Option], version: int) -> Operation:
    random = bool(_RANDOM & options.keys())
    named = next((options[name] for name in _TO if name in options), None)
    target = Target() if named is None else _to(named, ports_alone=not kind.value.endswith("nat"))
    return Nat(kind, (), Elements([((), target)]), random, version)


def _netmap(options: Mapping[str, Option], version: int) -> Operation:
    target = Target(masked(options["--to"].argument), prefix=True)
    return Nat(NatKind.NETMAP, (), Elements([((), target)]), version=version)


_TO = ("--to-destination", "--to-source", "--to-ports")


def _to(option: Option, ports_alone: bool) -> Target:
    """Return where NAT sends to: `ADDRESS[-ADDRESS][:PORT[-PORT]]`, an IPv6 address in brackets, or ports alone."""
    text = option.argument
    if ports_alone:
        return Target(ports=_target_ports(text))
    host, ports = text, ""
    if text.startswith("["):
        host, _, ports = text[1:].partition("]")
        ports = ports.lstrip(":")
    elif text.count(":") == 1:
        host, _, ports = text.partition(":")
    if "/" in ports:
        return Target(UNKNOWN, UNKNOWN)
    low, dash, high = host.partition("-")
    found: Element | None = None
    if host:
        found = addresses(low, high) if dash else int(ip_address(low))
    return Target(found, _target_ports(ports) if ports else None)


def _target_ports(text: str) -> Element:
    low, dash, high = text.partition("-")
    return Interval(int(low), int(high)) if dash else int(low)


class Compiler:
    """Compiles the lines of one family. `sets` are the sets of ipset, for the match and the target of that name,
    `queues` those that programs read."""

    def __init__(self, family: Family, sets: IpSets, queues: Queues) -> None:
        self._family = family
        self._sets = sets
        self._queues = queues

    def rule(self, found: Sequence[Part], place: Place) -> Rule:
        """Compile a rule, given its parts."""
        operations = [operation for part in found if part.kind not in ("-j", "-g") for operation in self._tests(part)]
        operations += [operation for part in found if part.kind in ("-j", "-g") for operation in self._target(part)]
        return Rule(place, tuple(operations))

    def _tests(self, part: Part) -> Iterator[Operation]:
        try:
            yield from self._match(part) if part.kind else self._plain(part)
        except BEYOND:
            yield May(f"-m {part.name}")

    def _plain(self, part: Part) -> list[Operation]:
        return [test for option in part.options for test in _PLAIN[option.name](self._family, option)]

    def _match(self, part: Part) -> list[Operation]:
        if part.name == "iprange":
            return [test for option in part.options for test in _address_range(self._family, option)]
        if part.name == "set":
            return list(self._sets.tests(self._family, part.options))
        if part.name == "addrtype":
            return list(_addrtype(self._family, part.options))
        if part.name == "rpfilter":
            return list(_reverse_path(part.options))
        if part.name in _EXTENSION_HEADERS:
            return [Never(part.name)]
        if part.name in _HEADERS:
            return _with_header(_HEADERS[part.name], part.name)
        if part.name not in _MATCHES:
            return [May(f"-m {part.name}")]
        handler = _MATCHES[part.name]
        proto = _PROTO_OF_MATCH.get(part.name)
        found: list[Operation] = [] if proto is None else [_test(Field.PROTO, [proto])]
        return found + [test for option in part.options for test in handler(option)]

    def _target(self, part: Part) -> Iterable[Operation]:
        name, options = part.name, {option.name: option for option in part.options}
        try:
            if part.kind == "-g":
                return [Jump(name, back=False)]
            if name in _VERDICTS:
                return [_VERDICTS[name]]
            if name in _HARMLESS:
                return []
            if name in _QUEUES:
                return [_queue(options, self._queues)]
            if name in _TARGETS:
                return [_TARGETS[name](options, self._family.data.version)]
            if not options and name not in _TAKING:
                return [Jump(name)]
        except BEYOND:
            pass
        return [MayEnd(f"-j {name}")]


_Target = Callable[[Mapping[str, Option], int], Operation]


def _ct(options: Mapping[str, Option], _: int) -> Operation:
    """Return what keeps packets from tracking, or puts them into another zone, in which answers may find no entry."""
    if "--notrack" in options:
        return NoTrack()
    zones = {option.argument for name, option in options.items() if name.startswith("--zone")}
    return MayEnd("another zone of conntrack") if zones - {"0"} else Verdict.CONTINUE


def _queue(options: Mapping[str, Option], queues: Queues) -> Operation:
    """Return what becomes of packets for one queue, or one of several. Source: net/netfilter/xt_NFQUEUE.c."""
    numbers = next((options[name].argument for name in ("--queue-num", "--queue-balance") if name in options), "0")
    first, _, last = numbers.partition(":")
    return queues.action(int(first), int(last or first), bypass="--queue-bypass" in options)


_TARGETS: Mapping[str, _Target] = {
    "MARK": lambda options, _: _set_mark(ChangeField.MARK, Field.MARK, options),
    "CONNMARK": lambda options, _: _connection_mark(options),
    "CT": _ct,
    "NOTRACK": lambda options, _: NoTrack(),
    **{kind.value.upper(): partial(_nat, kind) for kind in NatKind if kind is not NatKind.NETMAP},
    "NETMAP": _netmap,
}
_QUEUES = ("NFQUEUE", "QUEUE")
_TAKING = frozenset({"TPROXY", "SYNPROXY", "CLUSTERIP", "HMARK", "DNPT", "SNPT"})


def _protocol(_: Family, option: Option) -> Iterable[Operation]:
    if option.argument in ("all", "0"):
        return []
    return [_test(Field.PROTO, [_named(names.PROTOCOLS, option.argument)], option.negated)]


_Plain = Callable[[Family, Option], Iterable[Operation]]
_PLAIN: Mapping[str, _Plain] = {
    "-s": lambda family, option: [_test(_source(family), [masked(option.argument)], option.negated)],
    "-d": lambda family, option: [_test(_destination(family), [masked(option.argument)], option.negated)],
    "-i": lambda _, option: [_interface(option, Field.IIFNAME)],
    "-o": lambda _, option: [_interface(option, Field.OIFNAME)],
    "-p": _protocol,
    "-f": lambda _, option: [] if option.negated else [Never("fragment")],
    "-c": lambda *_: [],
}
