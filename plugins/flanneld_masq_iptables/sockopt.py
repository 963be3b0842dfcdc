"""Reads a table of ip_tables by getsockopt: its shape in microseconds, its entries in 0.6 µs each.

Formats: struct ipt_getinfo and ipt_get_entries in include/uapi/linux/netfilter_ipv4/ip_tables.h of the kernel.
The kernel makes a table that it is asked for and that does not exist, so ask only for those that do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Union

from flanneld_masq.errors import KernelError
from flanneld_masq.model import Family
from flanneld_masq_iptables.xt_entries import Entries, aligned

IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES = 64, 65  # IP6T_SO_* have the same numbers
XT_TABLE_MAXNAMELEN = 32
_GETINFO = struct.Struct("=I5I5III")  # after the name: valid hooks, entry and underflow by hook, entries, size
_PADDING = aligned(XT_TABLE_MAXNAMELEN + 4) - (XT_TABLE_MAXNAMELEN + 4)
_GET_ENTRIES = struct.Struct(f"={XT_TABLE_MAXNAMELEN}sI{_PADDING}x")  # name and size, before the entries
_MAX_TRIES = 10
_SMALL = 1 << 16  # bytes, some 150 rules: 0.1 ms
_DOMAINS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


def is_small(shape: bytes) -> bool:
    """Return True for the shape of a table (`TableInfo.read`) whose entries are read in 0.1 ms."""
    return bool(_GETINFO.unpack(shape)[-1] <= _SMALL)


class TableWatch:
    """An answer of the kernel to a getsockopt, without the bits that are not in `mask`.

    The daemon asks at each use of the lock if the answer is still the same, so that costs little more than the system
    call.
    """

    def __init__(self, descriptor: int, level: int, option: int, question: bytes, mask: bytes) -> None:
        self._buffer = bytearray(question)
        self._length = ctypes.c_uint32()
        self._arguments = (
            descriptor,
            level,
            option,
            ctypes.byref(ctypes.c_char.from_buffer(self._buffer)),
            ctypes.byref(self._length),
        )
        self._mask = int.from_bytes(mask, "little")
        self._seen = self._ask()

    def changed(self) -> bool:
        """Return True if the answer differs from the first one, or if there was no first one."""
        return self._seen < 0 or self._ask() != self._seen

    def _ask(self) -> int:
        """Return the answer as a number; negative if the kernel gives none, because the table has another size."""
        self._length.value = len(self._buffer)
        if _libc.getsockopt(*self._arguments):
            return -1
        return int.from_bytes(self._buffer, "little") & self._mask


class TableInfo:
    """The tables of a family, by one raw socket in the network namespace of the thread that first reads."""

    def __init__(self, family: Family) -> None:
        self._family = family

    @cached_property
    def _socket(self) -> socket.socket:
        domain, _ = _DOMAINS[self._family]
        return socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)

    def read(self, table: str) -> bytes:
        """Return hooks, offsets, number of entries and size of the table, as the kernel encodes them."""
        answer = bytearray(table.encode().ljust(XT_TABLE_MAXNAMELEN + _GETINFO.size, b"\0"))
        self._ask(table, IPT_SO_GET_INFO, answer)
        return bytes(answer[XT_TABLE_MAXNAMELEN:])

    def holds_rules(self, table: str) -> bool:
        """Return True if the table is not as the kernel made it: it has a rule, a chain, or a policy that drops."""
        hooks, *_, number, _ = _GETINFO.unpack(self.read(table))
        if number > bin(hooks).count("1") + 1:  # a policy for each built-in chain, and the end of the table
            return True
        with self.entries(table) as entries:
            return entries.drops_anything()

    def watch(self, table: str) -> TableWatch:
        """Watch the entries of a small table, counters left out. Of a large table watch what `read` returns, in which
        two entries that change places do not show."""
        _, level = _DOMAINS[self._family]
        name = table.encode()
        if is_small(self.read(table)):
            with contextlib.suppress(KernelError), self.entries(table) as entries:
                mask = b"\xff" * _GET_ENTRIES.size + entries.mask()
                question = _GET_ENTRIES.pack(name, len(mask) - _GET_ENTRIES.size).ljust(len(mask), b"\0")
                return TableWatch(self._socket.fileno(), level, IPT_SO_GET_ENTRIES, question, mask)
        question = name.ljust(XT_TABLE_MAXNAMELEN + _GETINFO.size, b"\0")
        return TableWatch(self._socket.fileno(), level, IPT_SO_GET_INFO, question, b"\xff" * len(question))

    @contextlib.contextmanager
    def entries(self, table: str) -> Iterator[Entries]:
        """Read the whole table. Its memory, which may be 20 MB, goes back to the kernel at the end of the context."""
        with contextlib.ExitStack() as stack:
            for tries_left in reversed(range(_MAX_TRIES)):
                numbers = _GETINFO.unpack(self.read(table))
                size = numbers[-1]
                memory = stack.enter_context(mmap.mmap(-1, _GET_ENTRIES.size + size))
                _GET_ENTRIES.pack_into(memory, 0, table.encode(), size)
                try:
                    self._ask(table, IPT_SO_GET_ENTRIES, memory)
                except KernelError as error:
                    if error.errno != errno.EAGAIN or not tries_left:  # EAGAIN: the size has changed in between
                        raise
                else:
                    yield Entries(self._family, numbers[1:6], numbers[6:11], memory, _GET_ENTRIES.size)
                    return

    def _ask(self, table: str, option: int, buffer: Union[bytearray, mmap.mmap]) -> None:
        """Call getsockopt; the buffer holds the question and then the answer."""
        attempt = f"asking the kernel for legacy table {table}"
        _, level = _DOMAINS[self._family]
        length = ctypes.c_uint32(len(buffer))
        try:
            descriptor = self._socket.fileno()
        except OSError as error:
            raise KernelError(attempt, error.strerror or "", error.errno or 0) from error
        answer = ctypes.c_char.from_buffer(buffer)
        refused = _libc.getsockopt(descriptor, level, option, ctypes.byref(answer), ctypes.byref(length))
        del answer  # memory is not given back while a pointer to it exists, for example in the frame of an error
        if refused:
            number = ctypes.get_errno()
            raise KernelError(attempt, os.strerror(number), number)

    def __del__(self) -> None:
        if "_socket" in self.__dict__:  # opened by the first request
            self._socket.close()
