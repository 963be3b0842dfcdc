"""Reads the file that flannel writes for its node, subnet.env, as a lease.

Accepts what flannel's own readers accept (quotes, `export`, comments, CR, unknown keys, the last of several
assignments). Refuses the rest with file, line and reason: a guessed lease would masquerade the wrong packets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import SubnetFileError
from flanneld_masq.inputs.text import Interface, parse_cidr, read_regular, shown, why
from flanneld_masq.model import SLOTS, Family, FamilyLease, Lease, Network, family_of

MAX_BYTES = 64 * 1024

_FAMILY_KEYS = {
    Family.IPV4: ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
    Family.IPV6: ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
}
_MTU = "FLANNEL_MTU"
_IPMASQ = "FLANNEL_IPMASQ"
_KEYS = frozenset((*_FAMILY_KEYS[Family.IPV4], *_FAMILY_KEYS[Family.IPV6], _MTU, _IPMASQ))

_BLANKS = " \t\r"
_BINARY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ASSIGNMENT = re.compile(r"(?:export[ \t]+)?(?P<key>[A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=(?P<rest>.*)", re.DOTALL)
_FIRST_WORD = re.compile(r"(?:export[ \t]+)?(?P<word>[A-Za-z0-9_]+)")
_QUOTED = re.compile(r"""[ \t]*(?P<quote>["'])(?P<value>.*?)(?P=quote)(?:[ \t]+#.*)?""", re.DOTALL)
_TRAILING_COMMENT = re.compile(r"[ \t]#.*", re.DOTALL)

# The words that Go's strconv.ParseBool accepts: flannel writes and reads its booleans with it.
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


class _Refused(Exception):
    """The reason why the file cannot be used; `parse` adds the path. `line` is 1-based, 0 for the whole file."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


@dataclass(frozen=True, **SLOTS)
class _Entry:
    """The last assignment of a key, as written after its `=`. Its quotes are removed only when the value is needed:
    the subnet beside an IPv6 network of ::/0 need not make sense."""

    key: str
    line: int
    written: str

    def refused(self, reason: str) -> _Refused:
        return _Refused(self.line, f"{self.key}: {reason}")

    @property
    def value(self) -> str:
        """The value without quotes, trailing comment and surrounding blanks. Raises _Refused for an open quote."""
        if self.written.lstrip(_BLANKS).startswith(('"', "'")):
            quoted = _QUOTED.fullmatch(self.written)
            if quoted is None:
                raise self.refused(f"a quote without its match, or text after it, in {shown(self.written)}")
            return quoted["value"].strip(_BLANKS)
        return _TRAILING_COMMENT.sub("", self.written).strip(_BLANKS)


def parse(data: bytes, path: str) -> Lease:
    """Parse the bytes of a subnet file; pure, `path` is for the lease and for messages.

    Raises SubnetFileError, with the 1-based number of the line if one line is wrong.
    """
    try:
        return _lease(_entries(_text(data)), path)
    except _Refused as refused:
        raise SubnetFileError(path, refused.line, refused.reason) from None


def read(path: Path) -> Lease | None:
    """Read a file of at most 64 KiB; return None if there is no file. Raises SubnetFileError."""
    try:
        data = read_regular(path, MAX_BYTES)[0]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SubnetFileError(str(path), 0, f"cannot be read: {why(error, path)}") from error
    return parse(data, str(path))


def _text(data: bytes) -> str:
    data = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused(1 + data[: error.start].count(b"\n"), "is not UTF-8 text") from None
    binary = _BINARY.search(text)
    if binary is not None:
        raise _Refused(1 + text[: binary.start()].count("\n"), f"holds binary data (byte {ord(binary[0]):#04x})")
    if not text.strip(_BLANKS + "\n"):
        raise _Refused(0, "is empty")
    return text


def _entries(text: str) -> Mapping[str, _Entry]:
    entries = {}
    # Not splitlines(): it also breaks lines at characters that neither flannel nor an editor takes for a line end.
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment is None:
            raise _Refused(number, _no_assignment(line))
        if assignment["key"] in _KEYS:
            entries[assignment["key"]] = _Entry(assignment["key"], number, assignment["rest"])
    return entries


def _no_assignment(line: str) -> str:
    first = _FIRST_WORD.match(line)
    if first is not None and first["word"] in _KEYS:
        return f"{first['word']} is not followed by `=`"
    return f"{shown(line)} is neither KEY=VALUE nor a comment; is the file cut off?"


def _lease(entries: Mapping[str, _Entry], path: str) -> Lease:
    families = {family: _family(family, entries) for family in Family}
    lease = Lease(path, families[Family.IPV4], families[Family.IPV6], _mtu(entries), _ipmasq(entries))
    if lease.ipv4 is None and lease.ipv6 is None:
        raise _Refused(0, "names no network and no subnet, of neither family; is the file cut off?")
    return lease


def _family(family: Family, entries: Mapping[str, _Entry]) -> FamilyLease | None:
    network_key, subnet_key = _FAMILY_KEYS[family]
    network = entries.get(network_key)
    interfaces = _interfaces(family, network)
    if network is not None and _says_no_ipv6(interfaces):
        return None
    networks = tuple(dict.fromkeys(_checked_network(network, interface) for interface in interfaces)) if network else ()
    subnet = entries.get(subnet_key)
    own = _interfaces(family, subnet)
    if networks and not own:
        raise _Refused(_line(network), f"{network_key} names a network, but {subnet_key} names no subnet in it")
    if own and not networks:
        raise _Refused(_line(subnet), f"{subnet_key} names a subnet, but {network_key} names no network for it")
    return _family_lease(subnet, own, networks) if subnet is not None and own else None


def _line(entry: _Entry | None) -> int:
    return entry.line if entry is not None else 0


def _interfaces(family: Family, entry: _Entry | None) -> tuple[Interface, ...]:
    """Return the networks that a key lists; none if it is absent, or is an IPv6 key and empty ('no IPv6')."""
    if entry is None or (family is Family.IPV6 and not entry.value):
        return ()
    return tuple(_interface(family, entry, item.strip(_BLANKS)) for item in entry.value.split(","))


def _interface(family: Family, entry: _Entry, text: str) -> Interface:
    if not text:
        raise entry.refused("is empty, or has an empty entry in its list")
    try:
        interface = parse_cidr(text)
    except ValueError as error:
        raise entry.refused(str(error)) from None
    if family_of(interface.network) is not family:
        raise entry.refused(f"{shown(text)} is not {family}")
    return interface


def _says_no_ipv6(interfaces: tuple[Interface, ...]) -> bool:
    """Return True for ::/0 alone, k3s's 'no IPv6'. Among other networks it is an error, like 0.0.0.0/0."""
    return bool(interfaces) and all(str(interface) == "::/0" for interface in interfaces)


def _checked_network(entry: _Entry, interface: Interface) -> Network:
    network = interface.network
    if network.prefixlen == 0:
        raise entry.refused(f"{interface} covers every address and is not a network of pods")
    multicast = family_of(network).data.multicast
    if multicast.overlaps(network):
        raise entry.refused(f"{network} overlaps multicast ({multicast}), which must not be masqueraded")
    return network


def _family_lease(entry: _Entry, own: tuple[Interface, ...], networks: tuple[Network, ...]) -> FamilyLease:
    if len(own) > 1:
        raise entry.refused("names several subnets; a node has one")
    subnet, gateway = own[0].network, own[0].ip
    if not any(_contains(network, subnet) for network in networks):
        raise entry.refused(f"{own[0]} is not within {' or '.join(map(str, networks))}")
    return FamilyLease(networks, subnet, gateway)


def _contains(network: Network, subnet: Network) -> bool:
    return network.prefixlen <= subnet.prefixlen and subnet.network_address in network


def _mtu(entries: Mapping[str, _Entry]) -> int | None:
    entry = entries.get(_MTU)
    if entry is None:
        return None
    # Any 32-bit number, as in flannel's CNI plugin: no rule depends on it.
    if not re.fullmatch("[0-9]{1,10}", entry.value) or int(entry.value) >= 2**32:
        raise entry.refused(f"{shown(entry.value)} is not a number of bytes")
    return int(entry.value)


def _ipmasq(entries: Mapping[str, _Entry]) -> bool | None:
    entry = entries.get(_IPMASQ)
    if entry is None:
        return None
    if entry.value not in _BOOLEANS:
        raise entry.refused(f"{shown(entry.value)} is neither true nor false")
    return _BOOLEANS[entry.value]
