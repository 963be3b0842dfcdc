"""What ip_tables says of a table by getsockopt, in microseconds and without a process.

Formats: struct ipt_getinfo, ipt_get_entries and ipt_entry in include/uapi/linux/netfilter_ipv4/ip_tables.h of
the kernel, struct ip6t_entry in netfilter_ipv6/ip6_tables.h, and struct xt_entry_target in
netfilter/x_tables.h. Asking for a table that does not exist makes it, so ask for those alone that do.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from flanneld_masq.errors import KernelError
from flanneld_masq.model import SLOTS, Family

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_* and IP6T_SO_* alike
_NAME = 32
_INFO = struct.Struct("=I5I5III")  # valid hooks, entry and underflow by hook, entries, size
_ENTRIES_HEADER = 40  # a name, a size, and padding
_FORWARD = 2  # NF_INET_FORWARD
_TARGET = struct.Struct("=H29sB")
_VERDICT = struct.Struct("=i")
_DROP = -1  # -NF_DROP - 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, **SLOTS)
class _Layout:
    """Socket domain and level, and where an entry keeps the offsets of its target and of the next entry."""

    domain: int
    level: int
    offsets: int


_LAYOUTS = {
    Family.IPV4: _Layout(socket.AF_INET, socket.IPPROTO_IP, 88),
    Family.IPV6: _Layout(socket.AF_INET6, socket.IPPROTO_IPV6, 140),
}


class TableInfo:
    """One raw socket in the network namespace of the thread that first asks."""

    def __init__(self, family: Family) -> None:
        self._layout = _LAYOUTS[family]

    @cached_property
    def _socket(self) -> socket.socket:
        return socket.socket(self._layout.domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)

    def read(self, table: str) -> bytes:
        """Hooks, offsets, number of entries and size of the table, as the kernel holds them."""
        return self._ask(table, _GET_INFO, _NAME + _INFO.size, b"")[_NAME:]

    def forward_drop(self, table: str) -> str:
        """Whether the FORWARD chain of the table drops: by policy, by a rule of its own, or ("") not at all."""
        info = _INFO.unpack(self.read(table))
        size, first, last = info[12], info[1 + _FORWARD], info[6 + _FORWARD]
        data = self._ask(table, _GET_ENTRIES, _ENTRIES_HEADER + size, struct.pack("=I", size))[_ENTRIES_HEADER:]
        for offset, verdict in self._verdicts(data, first, last):
            if verdict in (_DROP, "REJECT"):
                return "policy DROP" if offset == last else "a dropping rule"
        return ""

    def _verdicts(self, data: bytes, first: int, last: int) -> Iterator[tuple[int, int | str]]:
        """Offset of each entry from `first` to `last`, and its standard verdict, or the name of its target."""
        offset = first
        while offset <= last:
            target, step = struct.unpack_from("=HH", data, offset + self._layout.offsets)
            _, name, _ = _TARGET.unpack_from(data, offset + target)
            named = name.split(b"\0", 1)[0].decode()
            yield offset, named or _VERDICT.unpack_from(data, offset + target + _TARGET.size)[0]
            if not step:
                raise KernelError("reading an ip_tables table", "an entry has no length")
            offset += step

    def _ask(self, table: str, option: int, size: int, rest: bytes) -> bytes:
        attempt = f"asking the kernel for legacy table {table}"
        buffer = ctypes.create_string_buffer(table.encode().ljust(_NAME, b"\0") + rest, size)
        length = ctypes.c_uint32(size)
        try:
            descriptor = self._socket.fileno()
        except OSError as error:
            raise KernelError(attempt, error.strerror or "", error.errno or 0) from error
        if _libc.getsockopt(descriptor, self._layout.level, option, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            raise KernelError(attempt, os.strerror(number), number)
        return buffer.raw

    def __del__(self) -> None:
        if "_socket" in self.__dict__:  # made only when it was first asked for
            self._socket.close()
