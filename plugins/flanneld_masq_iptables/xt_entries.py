"""Decodes the entries of a table of ip_tables, as getsockopt gives them. Pure.

Formats: struct ipt_entry in include/uapi/linux/netfilter_ipv4/ip_tables.h of the kernel, struct ip6t_entry in
netfilter_ipv6/ip6_tables.h, and struct xt_entry_target, xt_standard_target and xt_error_target in
netfilter/x_tables.h. A built-in chain ends with its policy. A user-defined chain begins with an entry whose target is
ERROR and has the name of the chain, and ends with a return; the next entry with the target ERROR is not part of it.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.model import COMMENT_PREFIX, SLOTS, Family
from flanneld_masq_iptables import rules

XT_EXTENSION_MAXNAMELEN = 29
XT_FUNCTION_MAXNAMELEN = 30
_OFFSETS = struct.Struct("=HH")  # target_offset and next_offset of the entry, from its start
_TARGET = struct.Struct(f"=H{XT_EXTENSION_MAXNAMELEN}sB")  # size, name, revision; the standard target has no name
_VERDICT = struct.Struct("=i")  # of the standard target: the offset to go on at, or a negative verdict
_COUNTERS = bytes(16)  # struct xt_counters, of zeros
_ERROR_SIZE, _STANDARD_SIZE = 64, 40  # of these targets in bytes, as the kernel aligns them
_DROP = -uapi.NF_DROP - 1
_ERROR = _TARGET.pack(_ERROR_SIZE, b"ERROR", 0)
_STANDARD = _TARGET.pack(_STANDARD_SIZE, b"", 0)


@dataclass(frozen=True, **SLOTS)
class Layout:
    """The positions, in bytes, of target_offset and of the counters in an entry."""

    offsets: int
    counters: int


_LAYOUTS = {Family.IPV4: Layout(88, 96), Family.IPV6: Layout(140, 152)}


@dataclass(frozen=True, **SLOTS)
class Entries:
    """A table. `first` and `policy` are the offsets, by hook (NF_INET_*), of the first and the last entry of each
    built-in chain.

    Offsets are in bytes from the first entry, which `memory` has at `begin`. Methods raise KernelError if the entries
    are inconsistent.
    """

    family: Family
    first: tuple[int, ...]
    policy: tuple[int, ...]
    memory: mmap.mmap
    begin: int

    def drop(self, hook: int) -> str:
        """Return "policy DROP" or "a dropping rule" if the built-in chain of the hook has one; otherwise ""."""
        for offset, _ in self._built_in(hook):
            name, verdict = self._target(offset)
            if name == b"REJECT" or verdict == _DROP:
                return "policy DROP" if offset == self.policy[hook] else "a dropping rule"
        return ""

    def has_ours(self, chain: str) -> bool:
        """Return True if there is a chain of that name, or a rule whose comment has a tag of the daemon's."""
        return self._start(chain) is not None or self._has_tag()

    def fingerprint(self, chain: str, hook: int) -> bytes:
        """Return a digest of the chain and of the built-in chain of the hook, without counters.

        It is empty if there is no such chain, or if rules outside the built-in one go to it: then read a listing.
        """
        start = self._start(chain)
        if start is None:
            return b""
        base = [self._form(*entry) for entry in self._built_in(hook)]
        if self._referred(start) != sum(name == chain.encode() for _, name in base):
            return b""
        own = [self._form(*entry) for entry in self._user_chain(start)]
        return hashlib.blake2b(repr((base, own)).encode(), digest_size=16).digest()

    def mask(self) -> bytes:
        """Return a mask as long as the entries, with zeros in place of counters."""
        counters = _LAYOUTS[self.family].counters
        mask = bytearray(b"\xff" * (len(self.memory) - self.begin))
        offset = 0
        while offset < len(mask):
            mask[offset + counters : offset + counters + len(_COUNTERS)] = _COUNTERS
            offset = self._after(offset)
        return bytes(mask)

    def _built_in(self, hook: int) -> Iterator[tuple[int, int]]:
        offset = self.first[hook]
        while offset <= self.policy[hook]:
            after = self._after(offset)
            yield offset, after
            offset = after

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
        return len(self._find(_STANDARD + _VERDICT.pack(start)))

    def _has_tag(self) -> bool:
        at = self.memory.find(COMMENT_PREFIX.encode(), self.begin)
        while at >= 0:
            if rules.TAG.match(self.memory, at):
                return True
            at = self.memory.find(COMMENT_PREFIX.encode(), at + 1)
        return False

    def _find(self, pattern: bytes) -> list[int]:
        return [match.start() - self.begin for match in re.finditer(re.escape(pattern), self.memory)]

    def _form(self, offset: int, after: int) -> tuple[bytes, bytes]:
        """Return an entry without its position in the table, and the name of the chain that it goes to."""
        layout = _LAYOUTS[self.family]
        data = bytearray(self.memory[self.begin + offset : self.begin + after])
        data[layout.counters : layout.counters + len(_COUNTERS)] = _COUNTERS
        name, verdict = self._target(offset)
        if name or verdict < 0:
            return bytes(data), b""
        target, _ = _OFFSETS.unpack_from(data, layout.offsets)
        _VERDICT.pack_into(data, target + _TARGET.size, 0)
        return bytes(data), b"" if verdict == after else self._chain_before(verdict)

    def _chain_before(self, start: int) -> bytes:
        """Return the name of the chain whose rules begin there."""
        header = self.begin + start - _ERROR_SIZE
        if header < self.begin or self.memory[header : header + len(_ERROR)] != _ERROR:
            raise KernelError("reading an ip_tables table", f"no chain begins at offset {start}")
        name = self.memory[header + len(_ERROR) : header + len(_ERROR) + XT_FUNCTION_MAXNAMELEN]
        return name.split(b"\0", 1)[0]

    def _target(self, offset: int) -> tuple[bytes, int]:
        """Return the name of the target of an entry, and if that is the standard one (no name) its verdict."""
        target, _ = self._unpack(_OFFSETS, offset + _LAYOUTS[self.family].offsets)
        name = self._unpack(_TARGET, offset + target)[1].split(b"\0", 1)[0]
        return name, 0 if name else self._unpack(_VERDICT, offset + target + _TARGET.size)[0]

    def _after(self, offset: int) -> int:
        """Return the offset of the next entry."""
        _, length = self._unpack(_OFFSETS, offset + _LAYOUTS[self.family].offsets)
        if not length:
            raise KernelError("reading an ip_tables table", f"the entry at offset {offset} has no length")
        return int(offset + length)

    def _unpack(self, form: struct.Struct, offset: int) -> tuple[Any, ...]:
        try:
            return form.unpack_from(self.memory, self.begin + offset)
        except struct.error as error:
            raise KernelError("reading an ip_tables table", f"nothing is at offset {offset} ({error})") from error
