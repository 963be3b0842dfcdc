"""Hears of every change of the ruleset, by anyone: the nfnetlink multicast group of nf_tables.

Formats: as in `netlink`, and include/uapi/linux/filter.h of the kernel for the filter.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from dataclasses import dataclass

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.nfnetlink import (
    HEADER,
    NETLINK_NETFILTER,
    NFGENMSG,
    SUBSYS_NFTABLES,
    attributes,
    is_after,
    text,
    u32,
)
from flanneld_masq.model import SLOTS

_SO_RCVBUF, _SO_ATTACH_FILTER, _NFNLGRP_NFTABLES = 8, 26, 7
_EVENT_QUEUE = 1 << 20
_EVENT_BUFFER = 1 << 12
_NEWGEN = SUBSYS_NFTABLES | 15
# linux/filter.h: load the half word at nlmsg_type (the filter sees it in network order), take or drop all
_ONLY_NEWGEN = ((0x28, 0, 0, 4), (0x15, 0, 1, socket.htons(_NEWGEN)), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))


@dataclass(frozen=True, **SLOTS)
class Transaction:
    """A commit to nf_tables: the generation that it made, and the pid and command name of who made it."""

    generation: int
    pid: int
    name: str

    def after(self, generation: int) -> bool:
        """Whether it came after that generation."""
        return is_after(self.generation, generation)


class RulesetEvents:
    """Tells of every transaction that anyone commits to nf_tables in this network namespace.

    The kernel sends many messages for one transaction; a filter on the socket lets the one through that
    ends it (NEWGEN), so that a large transaction costs us no more than a small one.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
            )
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUF, _EVENT_QUEUE)
            program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _ONLY_NEWGEN))
            descriptor = struct.pack("@HP", len(_ONLY_NEWGEN), ctypes.addressof(program))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
            self._socket.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        except OSError as error:
            raise KernelError("listening for ruleset events", error.strerror or "", error.errno or 0) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[tuple[Transaction, ...], bool]:
        """The transactions since the last call, and whether some were lost because they were too many."""
        found: list[Transaction] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_EVENT_BUFFER)
            except BlockingIOError:
                return tuple(found), lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("reading ruleset events", error.strerror or "", error.errno or 0) from error
                lost = True
                continue
            parts = dict(attributes(data[HEADER.size + NFGENMSG.size :]))
            found.append(Transaction(u32(parts.get(1)), u32(parts.get(2)), text(parts.get(3))))

    def close(self) -> None:
        self._socket.close()
