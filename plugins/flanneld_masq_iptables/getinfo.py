"""What ip_tables says of a table without listing it: getsockopt IPT_SO_GET_INFO, a few microseconds.

Format: struct ipt_getinfo in include/uapi/linux/netfilter_ipv4/ip_tables.h of the kernel, and the same for
IPv6. Asking for a table that does not exist makes it, so ask for those alone that do.
"""

from __future__ import annotations

import ctypes
import os
import socket
from functools import cached_property

from flanneld_masq.errors import KernelError
from flanneld_masq.model import Family

_GET_INFO = 64  # IPT_SO_GET_INFO and IP6T_SO_GET_INFO alike
_NAME, _SIZE = 32, 84
_LEVELS = {Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP), Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
_libc = ctypes.CDLL(None, use_errno=True)


class TableInfo:
    """One raw socket in the network namespace of the thread that first asks."""

    def __init__(self, family: Family) -> None:
        self._domain, self._level = _LEVELS[family]

    @cached_property
    def _socket(self) -> socket.socket:
        return socket.socket(self._domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)

    def read(self, table: str) -> bytes:
        """Hooks, offsets, number of entries and size of the table, as the kernel holds them."""
        buffer = ctypes.create_string_buffer(table.encode(), _SIZE)
        length = ctypes.c_uint32(_SIZE)
        try:
            descriptor = self._socket.fileno()
        except OSError as error:
            raise KernelError(f"asking for table {table}", error.strerror or "", error.errno or 0) from error
        if _libc.getsockopt(descriptor, self._level, _GET_INFO, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            raise KernelError(f"asking for table {table}", os.strerror(number), number)
        return buffer.raw[_NAME:]

    def __del__(self) -> None:
        if "_socket" in self.__dict__:  # made only when it was first asked for
            self._socket.close()
