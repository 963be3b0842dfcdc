"""Decodes the entries of a table of ip_tables, as getsockopt gives them. Pure.

Formats: struct ipt_entry in include/uapi/linux/netfilter_ipv4/ip_tables.h of the kernel, struct ip6t_entry in
netfilter_ipv6/ip6_tables.h, and struct xt_entry_target, xt_standard_target and xt_error_target in
netfilter/x_tables.h. A built-in chain ends with its policy. A user-defined chain begins with an entry whose target is
ERROR and has the name of the chain, and ends with a return; the next entry with the target ERROR is not part of it.

The alignment of a 64-bit number is part of the formats: 4 bytes for a process of i386, 8 for all others. A kernel of 64
bits translates its tables for a process of 32 bits (struct compat_ipt_entry), so the process decides, not the kernel.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.model import COMMENT_PREFIX, SLOTS, Family, Traffic, tag_of
from flanneld_masq_iptables import rules
from flanneld_masq_iptables.forward_chain import OURS, Action, Analysis, Drop, Step

XT_EXTENSION_MAXNAMELEN = 29
XT_FUNCTION_MAXNAMELEN = 30
_OFFSETS = struct.Struct("=HH")  # target_offset and next_offset of the entry, from its start
_TARGET = struct.Struct(f"=H{XT_EXTENSION_MAXNAMELEN}sB")  # size, name, revision; the standard target has no name
_TARGET_SIZE = _TARGET.size
_VERDICT = struct.Struct("=i")  # of the standard target: the offset to go on at, or a negative verdict
_MARK, _MARK_REVISION = struct.Struct("=II"), 2  # struct xt_mark_tginfo2: mark, mask
_XT_COUNTERS = struct.Struct("=QQ")  # struct xt_counters: packets, bytes
_PACKETS = struct.Struct("=Q")  # the first number of struct xt_counters
_COUNTERS = bytes(16)  # struct xt_counters, of zeros
_ERROR_SIZE = 64  # of this target in bytes, as the kernel aligns it
_STANDARD_BYTES = 36  # of the standard target, before the kernel aligns it
_DROP = -uapi.NF_DROP - 1
ALIGNMENT = struct.calcsize("@BQ") - struct.calcsize("@Q")  # of a 64-bit number in this process, in bytes
XT_RETURN = -5  # -NF_REPEAT - 1
_ERROR = _TARGET.pack(_ERROR_SIZE, b"ERROR", 0)
_ATTEMPT = "reading an ip_tables table"
_MATCH = struct.Struct(f"=H{XT_EXTENSION_MAXNAMELEN}sB")  # size, name, revision
_COMMENT = b"comment"
_VERDICTS = {_DROP: Action.DROP, -uapi.NF_ACCEPT - 1: Action.ACCEPT, XT_RETURN: Action.RETURN}
_TARGETS = {b"REJECT": Action.DROP, **dict.fromkeys((b"NFQUEUE", b"SYNPROXY"), Action.OTHER)}


@dataclass(frozen=True, **SLOTS)
class Layout:
    """The positions, in bytes, of the parts that are read of an entry: masks of addresses, masks of interfaces,
    protocol with flags, target_offset, counters, and the matches. `goto` is the flag of a goto. In an entry that
    matches every packet, no other bit of the bytes `protocol` may be set."""

    addresses: slice
    interfaces: slice
    protocol: slice
    goto: int
    offsets: int
    counters: int
    matches: int


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """Return the multiple of the alignment that holds so many bytes."""
    return -(-size // alignment) * alignment


def _layouts(alignment: int) -> dict[Family, Layout]:
    # `protocol` is read as one number: proto (2 bytes), flags, invflags; in IPv6 proto (2), tos, flags, invflags
    four, six = (aligned(end, alignment) for end in (96, 148))  # of what stands before the counters
    return {
        Family.IPV4: Layout(slice(8, 16), slice(48, 80), slice(80, 84), 0x02 << 16, 88, four, four + len(_COUNTERS)),
        Family.IPV6: Layout(slice(32, 64), slice(96, 128), slice(128, 133), 0x04 << 24, 140, six, six + len(_COUNTERS)),
    }


_LAYOUTS = {alignment: _layouts(alignment) for alignment in (4, 8)}


@dataclass(frozen=True, **SLOTS)
class Entries:
    """A table. `first` and `policy` are the offsets, by hook (NF_INET_*), of the first and the last entry of each
    built-in chain. `alignment` is that of a 64-bit number in the process that read them, in bytes.

    Offsets are in bytes from the first entry, which `memory` has at `begin`. Methods raise KernelError if the entries
    are inconsistent.
    """

    family: Family
    first: tuple[int, ...]
    policy: tuple[int, ...]
    memory: mmap.mmap
    begin: int
    alignment: int = ALIGNMENT
    layout: Layout = field(init=False)  # a lookup for each entry would take a fifth of the time

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", _LAYOUTS[self.alignment][self.family])

    def drop(self, hook: int, own: str) -> Drop | None:
        """Return what in the built-in chain of the hook drops every packet that reaches it. `own` is the daemon's
        chain."""
        *steps, policy = [
            OURS if self._is_tagged(offset) else self._step(offset, after) for offset, after in self._built_in(hook)
        ]
        return Analysis(self._chain, self._start(own)).drop(steps, policy=policy.action is Action.DROP)

    def drops_anything(self) -> bool:
        """Return True if any rule or policy of the table drops."""
        offset, end = 0, len(self.memory) - self.begin
        while offset < end:
            if self._target(offset) == (b"", _DROP):
                return True
            offset = self._after(offset)
        return False

    def marks(self, chain: str) -> Iterator[tuple[int, int]]:
        """Yield value and mask of each mark that a user-defined chain sets; nothing if there is no such chain."""
        start = self._start(chain)
        for offset, _ in self._user_chain(start) if start is not None else ():
            target, _ = self._bounds(offset)
            _, name, revision = self._unpack(_TARGET, offset + target)
            if name.split(b"\0", 1)[0] == b"MARK" and revision == _MARK_REVISION:
                yield self._unpack(_MARK, offset + target + _TARGET.size)

    def targets(self, chain: str) -> frozenset[str] | None:
        """Return the names of the targets in a user-defined chain, empty for a verdict; None for no such chain."""
        start = self._start(chain)
        if start is None:
            return None
        return frozenset(self._target(offset)[0].decode("ascii", "replace") for offset, _ in self._user_chain(start))

    def fingerprint(self, chain: str, hook: int) -> bytes | None:
        """Return a digest of the chain and of the built-in chain of the hook, without counters.

        None if there is no such chain, and no rule whose comment has a tag of the daemon's. Empty if there is only such
        a rule, or if rules outside the built-in chain go to the chain: then read a listing.
        """
        start = self._start(chain)
        if start is None:
            return b"" if self._has_tag() else None
        jumps = sum(self._goes_to(*entry) == chain.encode() for entry in self._built_in(hook))
        if self._referred(start) != jumps:
            return b""
        return self._digest(self._built_in(hook), self._user_chain(start))

    def contents(self, chain: str, hook: int) -> bytes:
        """Return a digest of the built-in chain of the hook, and of a user-defined chain if it exists, without
        counters."""
        start = self._start(chain)
        return self._digest(self._built_in(hook), () if start is None else self._user_chain(start))

    def packets(self, hook: int) -> tuple[int, ...]:
        """Return how many packets each rule of the built-in chain of the hook has counted, without the policy."""
        rules = (offset for offset, _ in self._built_in(hook) if offset != self.policy[hook])
        return tuple(self._unpack(_PACKETS, offset + self.layout.counters)[0] for offset in rules)

    def counted(self, chain: str) -> Iterator[tuple[str, Traffic]]:
        """Yield the daemon's tag, empty for none, and the counters of each rule of a user-defined chain."""
        start = self._start(chain)
        for offset, _ in self._user_chain(start) if start is not None else ():
            counters = self._unpack(_XT_COUNTERS, offset + self.layout.counters)
            yield self._tag(offset), Traffic(*counters)

    def mask(self) -> bytes:
        """Return a mask as long as the entries, with zeros in place of counters."""
        counters = self.layout.counters
        mask = bytearray(b"\xff" * (len(self.memory) - self.begin))
        offset = 0
        while offset < len(mask):
            after = self._after(offset)
            mask[offset + counters : offset + counters + len(_COUNTERS)] = _COUNTERS
            offset = after
        return bytes(mask)

    @property
    def _standard_size(self) -> int:
        """Return the size of the standard target in bytes."""
        return aligned(_STANDARD_BYTES, self.alignment)

    def _chain(self, start: Hashable) -> tuple[Step, ...]:
        return tuple(self._step(*entry) for entry in self._user_chain(int(str(start))))

    def _step(self, offset: int, after: int) -> Step:
        name, verdict = self._target(offset)
        always = self._matches_all(offset)
        if name:
            return Step(_TARGETS.get(name, Action.NOTHING), always)
        if verdict < 0:
            return Step(_VERDICTS.get(verdict, Action.OTHER), always)
        if verdict == after:
            return Step(Action.NOTHING, always)
        goto = self._number(offset, self.layout.protocol) & self.layout.goto
        return Step(Action.GOTO if goto else Action.JUMP, always, verdict)

    def _matches_all(self, offset: int) -> bool:
        """Return True if an entry matches every packet: all masks are empty, and no match but a comment is there."""
        layout = self.layout
        if self._number(offset, layout.addresses) or self._number(offset, layout.interfaces):
            return False
        if self._number(offset, layout.protocol) & ~layout.goto:
            return False
        return all(name == _COMMENT for _, name in self._matches(offset))

    def _is_tagged(self, offset: int) -> bool:
        """Return True if the comment of an entry is a tag of the daemon's."""
        return bool(self._tag(offset))

    def _tag(self, offset: int) -> str:
        """Return the daemon's tag in the comment of an entry; empty for none."""
        comments = (self.begin + match + _MATCH.size for match, name in self._matches(offset) if name == _COMMENT)
        tags = (tag_of(match[0].decode()) for at in comments if (match := rules.TAG.match(self.memory, at)))
        return next(tags, "")

    def _matches(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and the name of each match of an entry."""
        target, _ = self._bounds(offset)
        position = offset + self.layout.matches
        while position < offset + target:
            size, name, _ = self._unpack(_MATCH, position)
            if size < _MATCH.size:
                raise KernelError("reading an ip_tables table", f"the match at offset {position} has a size of {size}")
            yield position, name.split(b"\0", 1)[0]
            position += size

    def _number(self, offset: int, field: slice) -> int:
        start = self.begin + offset
        return int.from_bytes(self.memory[start + field.start : start + field.stop], "little")

    def _built_in(self, hook: int) -> Iterator[tuple[int, int]]:
        offset, policy = self.first[hook], self.policy[hook]
        while offset < policy:
            after = self._after(offset)
            yield offset, after
            offset = after
        if offset != policy:
            raise KernelError(_ATTEMPT, f"no entry at offset {policy} ends the chain of hook {hook}")
        yield policy, self._after(policy)

    def _user_chain(self, start: int) -> Iterator[tuple[int, int]]:
        offset = start
        while self._target(offset)[0] != b"ERROR":
            after = self._after(offset)
            yield offset, after
            offset = after

    def _start(self, chain: str) -> int | None:
        """Return the offset of the first rule of a user-defined chain; None if there is no such chain."""
        heads = self._find(_ERROR + chain.encode() + b"\0")
        return heads[0] + _ERROR_SIZE if heads else None

    def _referred(self, start: int) -> int:
        """Return the number of rules of the table that jump or go to the chain that begins there."""
        return len(self._find(_TARGET.pack(self._standard_size, b"", 0) + _VERDICT.pack(start)))

    def _has_tag(self) -> bool:
        at = self.memory.find(COMMENT_PREFIX.encode(), self.begin)
        while at >= 0:
            if rules.TAG.match(self.memory, at):
                return True
            at = self.memory.find(COMMENT_PREFIX.encode(), at + 1)
        return False

    def _find(self, pattern: bytes) -> list[int]:
        return [match.start() - self.begin for match in re.finditer(re.escape(pattern), self.memory)]

    def _digest(self, *chains: Iterable[tuple[int, int]]) -> bytes:
        """Return a digest of the entries of chains, without counters. A chain that exists is never empty."""
        digest = hashlib.blake2b(digest_size=16)
        for entries in chains:
            for entry in entries:
                data, name = self._form(*entry)
                digest.update(b"%d %d " % (len(data), len(name)))
                digest.update(data + name)
            digest.update(b";")
        return digest.digest()

    def _form(self, offset: int, after: int) -> tuple[bytes, bytes]:
        """Return an entry without its position in the table, and the name of the chain that it goes to."""
        layout = self.layout
        data = bytearray(self.memory[self.begin + offset : self.begin + after])
        data[layout.counters : layout.counters + len(_COUNTERS)] = _COUNTERS
        name, verdict = self._target(offset)
        if not name and verdict >= 0:
            target, _ = self._bounds(offset)
            _VERDICT.pack_into(data, target + _TARGET.size, 0)
        return bytes(data), self._goes_to(offset, after)

    def _goes_to(self, offset: int, after: int) -> bytes:
        """Return the name of the chain that an entry goes to; empty for none."""
        name, verdict = self._target(offset)
        return b"" if name or verdict < 0 or verdict == after else self._chain_before(verdict)

    def _chain_before(self, start: int) -> bytes:
        """Return the name of the chain whose rules begin there."""
        header = self.begin + start - _ERROR_SIZE
        if header < self.begin or self.memory[header : header + len(_ERROR)] != _ERROR:
            raise KernelError(_ATTEMPT, f"no chain begins at offset {start}")
        name = self.memory[header + len(_ERROR) : header + len(_ERROR) + XT_FUNCTION_MAXNAMELEN]
        return name.split(b"\0", 1)[0]

    def _target(self, offset: int) -> tuple[bytes, int]:
        """Return the name of the target of an entry, and if that is the standard one (no name) its verdict."""
        target, length = self._bounds(offset)
        name = self._unpack(_TARGET, offset + target)[1].split(b"\0", 1)[0]
        if not name and target + self._standard_size > length:
            raise KernelError(_ATTEMPT, f"the entry at offset {offset} has no verdict")
        return name, 0 if name else self._unpack(_VERDICT, offset + target + _TARGET.size)[0]

    def _after(self, offset: int) -> int:
        """Return the offset of the next entry."""
        return offset + self._bounds(offset)[1]

    def _bounds(self, offset: int) -> tuple[int, int]:
        """Return where the target of an entry begins and where the entry ends, from its start."""
        layout, start = self.layout, self.begin + offset
        try:
            target, length = _OFFSETS.unpack_from(self.memory, start + layout.offsets)
        except struct.error as error:
            raise KernelError(_ATTEMPT, f"nothing is at offset {offset} ({error})") from error
        if not layout.matches <= target <= length - _TARGET_SIZE or start + length > len(self.memory):
            raise KernelError(_ATTEMPT, f"the entry at offset {offset} has an impossible length")
        return target, length

    def _unpack(self, form: struct.Struct, offset: int) -> tuple[Any, ...]:
        try:
            return form.unpack_from(self.memory, self.begin + offset)
        except struct.error as error:
            raise KernelError(_ATTEMPT, f"nothing is at offset {offset} ({error})") from error
