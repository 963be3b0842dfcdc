"""Asks ip_tables for a table by getsockopt: in microseconds what shape it has, in 0.6 µs a rule its entries.

Formats: struct ipt_getinfo and ipt_get_entries in include/uapi/linux/netfilter_ipv4/ip_tables.h of the kernel.
Asking for a table that does not exist makes it, so ask for those alone that do.
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
from flanneld_masq_iptables.xt_entries import Entries

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_* and IP6T_SO_* alike
_NAME = 32
_INFO = struct.Struct("=I5I5III")  # valid hooks, entry and underflow by hook, entries, size
_HEADER = struct.Struct("=32sI4x")  # a name, a size
_TRIES = 10
_SMALL = 1 << 16  # bytes, some 150 rules: 0.1 ms
_DOMAINS = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6),
}
_libc = ctypes.CDLL(None, use_errno=True)


class Look:
    """What the kernel answers to a getsockopt, but for the bits that are not in `mask`: to ask again and again whether
    it still does, with little more than the system call, for this is what an idle daemon does."""

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
        """Of what could not be asked even once, always: whoever looks anew asks another question."""
        return self._seen < 0 or self._ask() != self._seen

    def _ask(self) -> int:
        """Negative where the kernel has no such answer, as where the table has another size by now."""
        self._length.value = len(self._buffer)
        if _libc.getsockopt(*self._arguments):
            return -1
        return int.from_bytes(self._buffer, "little") & self._mask


class TableInfo:
    """One raw socket in the network namespace of the thread that first asks."""

    def __init__(self, family: Family) -> None:
        self._family = family

    @cached_property
    def _socket(self) -> socket.socket:
        domain, _ = _DOMAINS[self._family]
        return socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)

    def read(self, table: str) -> bytes:
        """Hooks, offsets, number of entries and size of the table, as the kernel holds them."""
        answer = bytearray(table.encode().ljust(_NAME + _INFO.size, b"\0"))
        self._ask(table, _GET_INFO, answer)
        return bytes(answer[_NAME:])

    def look(self, table: str) -> Look:
        """At its entries, counters left out; if it is a large one at what `read` reads, which does not tell of entries
        that change places."""
        _, level = _DOMAINS[self._family]
        name = table.encode()
        if _INFO.unpack(self.read(table))[-1] <= _SMALL:
            with contextlib.suppress(KernelError), self.entries(table) as entries:
                mask = b"\xff" * _HEADER.size + entries.mask()
                question = _HEADER.pack(name, len(mask) - _HEADER.size).ljust(len(mask), b"\0")
                return Look(self._socket.fileno(), level, _GET_ENTRIES, question, mask)
        question = name.ljust(_NAME + _INFO.size, b"\0")
        return Look(self._socket.fileno(), level, _GET_INFO, question, b"\xff" * len(question))

    @contextlib.contextmanager
    def entries(self, table: str) -> Iterator[Entries]:
        """The whole table, until the end of the context; then its memory goes back to the kernel, be it 20 MB."""
        with contextlib.ExitStack() as stack:
            for tries_left in reversed(range(_TRIES)):
                numbers = _INFO.unpack(self.read(table))
                size = numbers[-1]
                memory = stack.enter_context(mmap.mmap(-1, _HEADER.size + size))
                _HEADER.pack_into(memory, 0, table.encode(), size)
                try:
                    self._ask(table, _GET_ENTRIES, memory)
                except KernelError as error:
                    if error.errno != errno.EAGAIN or not tries_left:  # which is: the size has changed in between
                        raise
                else:
                    yield Entries(self._family, numbers[1:6], numbers[6:11], memory, _HEADER.size)
                    return

    def _ask(self, table: str, option: int, buffer: Union[bytearray, mmap.mmap]) -> None:
        """A getsockopt, whose question and answer are in the buffer."""
        attempt = f"asking the kernel for legacy table {table}"
        _, level = _DOMAINS[self._family]
        length = ctypes.c_uint32(len(buffer))
        try:
            descriptor = self._socket.fileno()
        except OSError as error:
            raise KernelError(attempt, error.strerror or "", error.errno or 0) from error
        answer = ctypes.c_char.from_buffer(buffer)
        refused = _libc.getsockopt(descriptor, level, option, ctypes.byref(answer), ctypes.byref(length))
        del answer  # no memory is given back that something points to, an error's frame for one
        if refused:
            number = ctypes.get_errno()
            raise KernelError(attempt, os.strerror(number), number)

    def __del__(self) -> None:
        if "_socket" in self.__dict__:  # made only when it was first asked for
            self._socket.close()
