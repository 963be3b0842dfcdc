"""The only module that speaks netlink: reads nf_tables objects, deletes what was just read, and writes again
what was once read.

Formats: include/uapi/linux/netlink.h, include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h of the
kernel. Dumps are asked for by table and chain, so their cost does not depend on the rules of others.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from flanneld_masq.errors import KernelError
from flanneld_masq.model import SLOTS, Family

NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS, _NETLINK_EXT_ACK = 5, 11
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
SUBSYS_NFTABLES, _SUBSYS_NFT_COMPAT = 10 << 8, 11 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = (SUBSYS_NFTABLES | n for n in range(6))
_NEWRULE, _GETRULE, _DELRULE, _GETGEN = (SUBSYS_NFTABLES | n for n in (6, 7, 8, 16))
_COMPAT_GET = _SUBSYS_NFT_COMPAT | 0
HEADER, NFGENMSG, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_NLA_F_NESTED = 0x8000
_NLM_F_CREATE, _NLM_F_APPEND = 0x400, 0x800
_APPENDED = _NLM_F_CREATE | _NLM_F_APPEND
_BUFFER = 1 << 16  # the kernel fills at most 32 KiB; more than 128 KiB would be mapped anew for each call
_MSG_TRUNC = int(socket.MSG_TRUNC)
_DUMP_TRIES = 10
_TIMEOUT = 10.0  # seconds; the kernel answers while we ask, so this only ends a bug
_CACHED = 256  # rules; the same few are read again and again
GLANCE_SEQUENCE = 0xFFFFFFFF
# NFTA_EXPR_NAME "counter", then NFTA_EXPR_DATA with two numbers of 64 bits
_COUNTER = re.compile(rb"\x0c\x00\x01\x00counter\x00.{28}", re.DOTALL)
_VOLATILE = frozenset({"counter", "quota", "last"})

_NFPROTO_INET = 1
TABLE_DORMANT = 0x1

Attributes = dict[int, bytes]


@dataclass(frozen=True, **SLOTS)
class Table:
    """`use` counts the chains, sets and objects in it; `owner` is a netlink port, 0 for none."""

    name: str
    flags: int
    use: int
    owner: int
    comment: str = ""


@dataclass(frozen=True, **SLOTS)
class Chain:
    """`hook` is None for a regular chain. `use` counts its rules and the jumps to it. `policy` is a
    verdict code (0 drop, 1 accept)."""

    name: str
    handle: int
    use: int
    flags: int
    hook: int | None = None
    priority: int = 0
    type: str = ""
    policy: int | None = None
    comment: str = ""


@dataclass(frozen=True, **SLOTS)
class Expression:
    """One expression of a rule, as the kernel dumps it: its attributes, still encoded, but none of a counter."""

    name: str
    data: bytes


@dataclass(frozen=True, **SLOTS)
class KernelRule:
    chain: str
    handle: int
    expressions: tuple[Expression, ...]
    userdata: bytes

    @property
    def raw(self) -> str:
        """All that makes this rule what it is: no handle, no counters. Equal exactly if the rules are."""
        return _raw(self.expressions, self.userdata)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, value) pairs of an attribute stream. Raises KernelError where it is cut short."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise KernelError("reading a netlink attribute", "it is cut short")
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    if offset < end:
        raise KernelError("reading a netlink attribute", "it is cut short")


def u32(data: bytes | None, default: int = 0) -> int:
    return default if data is None else int.from_bytes(data[:4], "big")


def text(data: bytes | None) -> str:
    return "" if data is None else data.rstrip(b"\0").decode("utf-8", "replace")


def comment_in(userdata: bytes) -> str:
    """The comment in the user data of a table, chain or rule, in libnftnl's format (udata.h); empty for none."""
    while len(userdata) >= 2:
        kind, length = userdata[0], userdata[1]
        if kind == 0:
            return text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def following(generation: int, transactions: int = 1) -> int:
    """The generation after so many transactions. The kernel counts in 32 bits and around."""
    return (generation + transactions) & 0xFFFFFFFF


def is_after(generation: int, other: int) -> bool:
    """Whether a generation came after another one, as far as that can be told of numbers that go around."""
    return 0 < (generation - other) & 0xFFFFFFFF < 1 << 31


class Nfnetlink:
    """One netlink socket in the network namespace of the thread that makes it.

    Every method raises KernelError when the kernel refuses or answers what cannot be read; what is
    merely not there is None or an empty tuple.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            reason = f"{error.strerror}; is the kernel built with nfnetlink?"
            raise KernelError("opening a netfilter netlink socket", reason, error.errno or 0) from error
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        # of more errors than the socket holds the first are enough
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.settimeout(_TIMEOUT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # not where opening it failed
            self._socket.close()

    def generation(self) -> int:
        """The number of the ruleset's generation; every transaction by anyone adds one."""
        (reply,) = self._ask("reading the ruleset generation", _GETGEN, 0, b"")
        return u32(dict(attributes(reply)).get(1))

    def has_inet_table(self, name: str) -> bool:
        """Whether there is a table of that name for both families together."""
        return self._get(f"reading table inet {name}", _GETTABLE, _NFPROTO_INET, _string(1, name)) is not None

    def table(self, family: Family, name: str) -> Table | None:
        attempt = f"reading table {family.data.nft} {name}"
        reply = self._get(attempt, _GETTABLE, family.data.nfproto, _string(1, name))
        if reply is None:
            return None
        return Table(name, u32(reply.get(2)), u32(reply.get(3)), u32(reply.get(7)), comment_in(reply.get(6, b"")))

    def chain(self, family: Family, table: str, name: str) -> Chain | None:
        attempt = f"reading chain {family.data.nft} {table} {name}"
        reply = self._get(attempt, _GETCHAIN, family.data.nfproto, _string(1, table) + _string(3, name))
        if reply is None:
            return None
        hook = dict(attributes(reply[4])) if 4 in reply else {}
        return Chain(
            name,
            handle=int.from_bytes(reply.get(2, b""), "big"),
            use=u32(reply.get(6)),
            flags=u32(reply.get(10)) & ~0x1,  # NFT_CHAIN_BASE says what `hook` says, on newer kernels alone
            hook=u32(hook[1]) if 1 in hook else None,
            priority=struct.unpack(">i", hook[2])[0] if 2 in hook else 0,
            type=text(reply.get(7)),
            policy=u32(reply[5]) if 5 in reply else None,
            comment=comment_in(reply.get(12, b"")),
        )

    def rules(self, family: Family, table: str, chain: str | None = None) -> tuple[KernelRule, ...]:
        """The rules of one chain, or of the whole table, in order; none where it does not exist."""
        place = f"{family.data.nft} {table} {chain or ''}".rstrip()
        request = _string(1, table) + (_string(2, chain) if chain else b"")
        for _ in range(_DUMP_TRIES):
            try:
                replies = self._ask(f"listing the rules of {place}", _GETRULE, family.data.nfproto, request, dump=True)
            except _Interrupted:
                continue
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    return ()
                raise
            rules = map(_rule, replies)
            # kernels that do not filter by table answer with more than was asked for
            return tuple(rule for found, rule in rules if found == table and chain in (None, rule.chain))
        raise KernelError(f"listing the rules of {place}", f"the ruleset changed during each of {_DUMP_TRIES} dumps")

    def fingerprint(self, look: Look) -> bytes:
        """The bytes that the kernel answers to these questions, counters left out: equal bytes, equal objects.

        A fraction of the cost of reading them. Raises KernelError where the ruleset changed meanwhile.
        """
        attempt = "glancing at the ruleset"
        found: list[bytes] = []
        if look.gets:
            self._send(attempt, b"".join(look.gets))
            for _ in look.gets:
                self._collect(attempt, found)
        for request in look.dumps:
            self._send(attempt, request)
            while not self._collect(attempt, found):
                pass
        joined = b"\n".join(found)
        return _COUNTER.sub(b"counter", joined) if b"counter" in joined else joined

    def _collect(self, attempt: str, found: list[bytes]) -> bool:
        """The payloads of one datagram; whether it ends a dump."""
        data = self._datagram(attempt)
        offset, last = 0, False
        while offset < len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if flags & _NLM_F_DUMP_INTR or length < HEADER.size or sequence != GLANCE_SEQUENCE:
                self._drain()
                raise _Interrupted(attempt, "the ruleset changed meanwhile")
            found.append(data[offset + HEADER.size + NFGENMSG.size : offset + length])
            last = kind in (_NLMSG_DONE, _NLMSG_ERROR)
            offset += (length + 3) & ~3
        return last

    def delete(self, family: Family, table: str, rules: tuple[tuple[str, int], ...], chain: str | None = None) -> None:
        """Delete just these rules (chain and handle), and then `chain` if given: one transaction or nothing."""
        family_number = family.data.nfproto
        messages: list[tuple[int, int, int, bytes, int]] = []
        for place, handle in rules:
            body = _string(1, table) + _string(2, place) + _attribute(3, handle.to_bytes(8, "big"))
            messages.append((_DELRULE, family_number, 0, body, 0))
        if chain is not None:
            body = _string(1, table) + _string(3, chain)
            messages.append((_DELCHAIN, family_number, 0, body, 0))
        attempt = f"deleting {len(rules)} rules" + (f" and chain {chain}" if chain else "")
        self._commit(f"{attempt} in table {family.data.nft} {table}", messages)

    def refill(
        self,
        family: Family,
        chains: Mapping[tuple[str, str], tuple[KernelRule, ...]],
        added: Iterable[tuple[str, KernelRule]] = (),
        *,
        ahead: bool = False,
        made: Iterable[tuple[str, Chain]] = (),
    ) -> None:
        """Empty these chains (table, chain) and put the rules into them, as they were once read; add the rules of
        `added` (table, rule) to the chains they were read from, `ahead` of all others or behind them. All in one
        transaction or nothing. The chains of `made` (table, chain) come back if they or their tables are gone; one
        that is there keeps its policy."""
        number = family.data.nfproto
        messages: list[tuple[int, int, int, bytes, int]] = []
        for table, missed in made:
            name = _string(1, table)
            messages.append((_NEWTABLE, number, 0, name, _NLM_F_CREATE))
            messages.append((_NEWCHAIN, number, 0, name + _new_chain(missed), _NLM_F_CREATE))
        for (table, chain), rules in chains.items():
            messages.append((_DELRULE, number, 0, _string(1, table) + _string(2, chain), 0))
            messages += [(_NEWRULE, number, 0, _new_rule(table, rule), _APPENDED) for rule in rules]
        flags = _APPENDED & ~_NLM_F_APPEND if ahead else _APPENDED
        messages += [(_NEWRULE, number, 0, _new_rule(table, rule), flags) for table, rule in added]
        places = ", ".join(f"{family.data.nft} {table} {chain}" for table, chain in chains)
        self._commit(f"writing chains {places}", messages)

    def rebuild(self, family: Family, table: str, chains: Mapping[Chain, tuple[KernelRule, ...]]) -> None:
        """Replace the table, whether it is there or not, by one that holds just these base chains and their rules."""
        number, name = family.data.nfproto, _string(1, table)
        messages: list[tuple[int, int, int, bytes, int]] = [
            (_NEWTABLE, number, 0, name, _NLM_F_CREATE),
            (_DELTABLE, number, 0, name, 0),
            (_NEWTABLE, number, 0, name, _NLM_F_CREATE),
        ]
        for chain, rules in chains.items():
            body = name + _new_chain(chain) + _policy(chain)
            messages.append((_NEWCHAIN, number, 0, body, _NLM_F_CREATE))
            messages += [(_NEWRULE, number, 0, _new_rule(table, rule), _APPENDED) for rule in rules]
        self._commit(f"writing table {family.data.nft} {table}", messages)

    def remove_table(self, family: Family, table: str) -> None:
        """With all that is in it. Raises KernelError where it is not there."""
        message = (_DELTABLE, family.data.nfproto, 0, _string(1, table), 0)
        self._commit(f"deleting table {family.data.nft} {table}", [message])

    def has_extension(self, family: Family, name: str, revision: int, *, target: bool) -> bool:
        """Whether the kernel's nft_compat offers an xtables match or target of that revision."""
        body = _string(1, name) + _attribute(2, revision.to_bytes(4, "big")) + _attribute(3, target.to_bytes(4, "big"))
        try:
            self._ask(f"asking for extension {name}", _COMPAT_GET, family.data.nfproto, body)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def _get(self, attempt: str, kind: int, family_number: int, body: bytes) -> Attributes | None:
        try:
            (reply,) = self._ask(attempt, kind, family_number, body)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT):
                return None
            raise
        return dict(attributes(reply))

    def _ask(self, attempt: str, kind: int, family_number: int, body: bytes, *, dump: bool = False) -> list[bytes]:
        """One request; the attribute streams of its replies."""
        flags = _NLM_F_REQUEST | (_NLM_F_DUMP if dump else 0)
        first = self._sequence
        self._send(attempt, self._message(kind, flags, family_number, 0, body))
        replies: list[bytes] = []
        while True:
            for reply_kind, reply_flags, payload in self._receive(attempt, first):
                if reply_flags & _NLM_F_DUMP_INTR and dump:
                    self._drain()
                    raise _Interrupted(attempt, "the ruleset changed during the dump")
                if reply_kind == _NLMSG_DONE:
                    return replies
                if reply_kind == _NLMSG_ERROR:
                    _raise_error(attempt, reply_flags, payload)
                    return replies
                replies.append(payload[NFGENMSG.size :])
            if replies and not dump:
                return replies

    def _commit(self, attempt: str, messages: list[tuple[int, int, int, bytes, int]]) -> None:
        """One transaction of messages: type, family, resource, body, flags.

        Of the last one an acknowledgement is asked for. Of those that fail the kernel tells all the same, and then it
        has done nothing at all.
        """
        first = self._sequence
        *others, (kind, number, resource, body, flags) = messages
        begin = (_BATCH_BEGIN, 0, SUBSYS_NFTABLES >> 8, b"", 0)
        end = (_BATCH_END, 0, SUBSYS_NFTABLES >> 8, b"", 0)
        batch = (begin, *others, (kind, number, resource, body, flags | _NLM_F_ACK), end)
        datagram = b"".join(
            self._message(kind, _NLM_F_REQUEST | flags, number, resource, body)
            for kind, number, resource, body, flags in batch
        )
        self._send(attempt, datagram)
        try:
            while not any(self._acknowledged(attempt, first)):
                pass
        except KernelError:
            self._drain()
            raise

    def _acknowledged(self, attempt: str, first: int) -> Iterator[bool]:
        """Of each answer to a transaction whether it is the acknowledgement. Raises KernelError of one that is not."""
        for kind, flags, payload in self._receive(attempt, first):
            if kind == _NLMSG_ERROR:
                _raise_error(attempt, flags, payload)
                yield True

    def _message(self, kind: int, flags: int, family_number: int, resource: int, body: bytes) -> bytes:
        self._sequence = (self._sequence + 1) % GLANCE_SEQUENCE
        return _message(kind, flags, family_number, resource, body, self._sequence)

    def _send(self, attempt: str, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, (0, 0))
        except OSError as error:
            raise KernelError(attempt, error.strerror or str(error), error.errno or 0) from error

    def _receive(self, attempt: str, first: int) -> Iterator[tuple[int, int, bytes]]:
        """The messages of one datagram (type, flags, payload) that answer what was sent after the number `first`."""
        data = self._datagram(attempt)
        asked = (self._sequence - first) % GLANCE_SEQUENCE
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, message_flags, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size or offset + length > len(data):
                raise KernelError(attempt, "the answer is cut short")
            if 0 < (sequence - first) % GLANCE_SEQUENCE <= asked:
                yield kind, message_flags, data[offset + HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def _datagram(self, attempt: str) -> bytes:
        try:
            data, _, flags, _ = self._socket.recvmsg(_BUFFER)
        except OSError as error:
            raise KernelError(attempt, error.strerror or str(error), error.errno or 0) from error
        if flags & _MSG_TRUNC:
            self._drain()
            raise KernelError(attempt, f"the answer is larger than {_BUFFER} bytes and was cut short")
        return data

    def _drain(self) -> None:
        """Throw away what is left of an answer, so that the next request does not read it."""
        self._socket.settimeout(0)  # with another timeout Python waits before it asks, whatever the flags
        try:
            while self._socket.recv(_BUFFER):
                pass
        except OSError:  # BlockingIOError: that was all
            return
        finally:
            self._socket.settimeout(_TIMEOUT)


@dataclass(frozen=True, **SLOTS)
class Look:
    """Questions that are asked again and again, encoded once."""

    gets: tuple[bytes, ...] = ()
    dumps: tuple[bytes, ...] = ()

    @classmethod
    @lru_cache(_CACHED)
    def at(cls, family: Family, table: str, chains: tuple[str, ...], dumped: tuple[str | None, ...]) -> Look:
        """At a table and its named chains, and at the rules of those in `dumped`, where None stands for all chains."""
        number = family.data.nfproto
        asked = [(_GETTABLE, _string(1, table))]
        asked += [(_GETCHAIN, _string(1, table) + _string(3, chain)) for chain in chains]
        dumps = [_string(1, table) + (_string(2, chain) if chain else b"") for chain in dumped]
        return cls(
            tuple(_message(kind, _NLM_F_REQUEST, number, 0, body, GLANCE_SEQUENCE) for kind, body in asked),
            tuple(_message(_GETRULE, _NLM_F_REQUEST | _NLM_F_DUMP, number, 0, body, GLANCE_SEQUENCE) for body in dumps),
        )

    def __add__(self, other: Look) -> Look:
        return Look(self.gets + other.gets, self.dumps + other.dumps)


class _Interrupted(KernelError):
    pass


def _raise_error(attempt: str, flags: int, payload: bytes) -> None:
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return
    reason = os.strerror(-code)
    if flags & _NLM_F_ACK_TLVS:
        (original,) = struct.unpack_from("=I", payload, 4)
        start = 4 + (HEADER.size if flags & _NLM_F_CAPPED else (original + 3) & ~3)
        extended = text(dict(attributes(payload[start:])).get(1))
        reason += f" ({extended})" if extended else ""
    raise KernelError(attempt, reason, -code)


@lru_cache(_CACHED)
def _raw(expressions: tuple[Expression, ...], userdata: bytes) -> str:
    return " ".join([*(f"{found.name}:{found.data.hex()}" for found in expressions), f"userdata:{userdata.hex()}"])


@lru_cache(_CACHED)
def _rule(reply: bytes) -> tuple[str, KernelRule]:
    found = dict(attributes(reply))
    expressions = []
    for _, element in attributes(found.get(4, b"")):
        parts = dict(attributes(element))
        name = text(parts.get(1))
        expressions.append(Expression(name, b"" if name in _VOLATILE else parts.get(2, b"")))
    rule = KernelRule(
        text(found.get(2)), int.from_bytes(found.get(3, b""), "big"), tuple(expressions), found.get(7, b"")
    )
    return text(found.get(1)), rule


def _message(kind: int, flags: int, family_number: int, resource: int, body: bytes, sequence: int) -> bytes:
    payload = struct.pack("=BB", family_number, 0) + resource.to_bytes(2, "big") + body
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def _new_chain(chain: Chain) -> bytes:
    """Without a policy: then a new base chain accepts, and one that is there stays as it is."""
    if chain.hook is None:
        return _string(3, chain.name)
    hook = _attribute(1, chain.hook.to_bytes(4, "big")) + _attribute(2, struct.pack(">i", chain.priority))
    return _string(3, chain.name) + _attribute(4 | _NLA_F_NESTED, hook) + _string(7, chain.type)


def _policy(chain: Chain) -> bytes:
    return b"" if chain.policy is None else _attribute(5, chain.policy.to_bytes(4, "big"))


def _new_rule(table: str, rule: KernelRule) -> bytes:
    expressions = b"".join(map(_expression, rule.expressions))
    userdata = _attribute(7, rule.userdata) if rule.userdata else b""
    return _string(1, table) + _string(2, rule.chain) + _attribute(4 | _NLA_F_NESTED, expressions) + userdata


def _expression(found: Expression) -> bytes:
    data = _attribute(2 | _NLA_F_NESTED, found.data)
    return _attribute(1 | _NLA_F_NESTED, _string(1, found.name) + data)


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def _string(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")
