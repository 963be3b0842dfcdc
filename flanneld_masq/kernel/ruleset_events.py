"""Listens for changes of the ruleset by any program: the nfnetlink multicast group of nf_tables.

Formats: include/uapi/linux/netfilter/nf_tables.h of the kernel for the messages, linux/filter.h for the filter.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import NFGENMSG, attributes, messages_in, nft_msg_type, text, u32
from flanneld_masq.kernel.objects import is_after
from flanneld_masq.model import SLOTS

_EVENT_QUEUE = 1 << 20  # bytes
_EVENT_BUFFER = 1 << 12  # bytes
_USUAL_DESCRIPTORS = 256  # a process has far fewer
_NLMSG_TYPE_OFFSET = 4  # bytes, of nlmsg_type in struct nlmsghdr
_WHOLE_MESSAGE = 0xFFFFFFFF
# struct sock_filter: code, offset to jump to if true, the same if false, operand. The filter loads nlmsg_type as a
# number in network byte order, and takes the whole message or nothing of it.
_ONLY_NEWGEN = (
    (uapi.BPF_LD | uapi.BPF_H | uapi.BPF_ABS, 0, 0, _NLMSG_TYPE_OFFSET),
    (uapi.BPF_JMP | uapi.BPF_JEQ | uapi.BPF_K, 0, 1, socket.htons(nft_msg_type(uapi.NFT_MSG_NEWGEN))),
    (uapi.BPF_RET | uapi.BPF_K, 0, 0, _WHOLE_MESSAGE),
    (uapi.BPF_RET | uapi.BPF_K, 0, 0, 0),
)


@dataclass(frozen=True, **SLOTS)
class Transaction:
    """A commit to nf_tables: the generation that it made, and the pid and command name of the process that made it.

    `pid` is a number of the initial pid namespace. `port` is the address of the netlink socket that the commit came
    from, which no other socket of the network namespace has; 0 if unknown.
    """

    generation: int
    pid: int
    name: str
    port: int = 0

    def after(self, generation: int) -> bool:
        """Return True if the commit made a later generation."""
        return is_after(self.generation, generation)


class RulesetEvents:
    """Receives every transaction that any program commits to nf_tables in this network namespace.

    The kernel sends many messages for one transaction. A filter on the socket lets only the last one through
    (NEWGEN), so that a large transaction costs no more than a small one.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, uapi.NETLINK_NETFILTER
            )
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_QUEUE)
            program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _ONLY_NEWGEN))
            descriptor = struct.pack("@HP", len(_ONLY_NEWGEN), ctypes.addressof(program))
            self._socket.setsockopt(socket.SOL_SOCKET, uapi.SO_ATTACH_FILTER, descriptor)
            self._socket.bind((0, 1 << (uapi.NFNLGRP_NFTABLES - 1)))
        except OSError as error:
            raise KernelError("listening for ruleset events", error.strerror or "", error.errno or 0) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[tuple[Transaction, ...], bool]:
        """Return the transactions since the last call, and True if some are lost: they were too many, or cannot be
        read."""
        transactions: list[Transaction] = []
        lost = False
        while True:
            try:
                data = self._socket.recv(_EVENT_BUFFER)
            except BlockingIOError:
                return tuple(transactions), lost
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("reading ruleset events", error.strerror or "", error.errno or 0) from error
                lost = True
                continue
            try:
                transactions.append(parse_transaction(data))
            except KernelError:
                lost = True

    def close(self) -> None:
        self._socket.close()


def own_ports() -> frozenset[int]:
    """Return the ports of all netlink sockets that this process has open, also those of libraries."""
    return frozenset(filter(None, map(_port, _descriptors())))


def _descriptors() -> Iterable[int]:
    try:
        return [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:  # /proc is that of another pid namespace
        return range(_USUAL_DESCRIPTORS)


def _port(descriptor: int) -> int:
    """Return the port of a netlink socket; 0 for any other file."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                return int(copy.getsockname()[0]) if copy.family == socket.AF_NETLINK else 0
    return 0


def parse_transaction(message: bytes) -> Transaction:
    """Decode an NFT_MSG_NEWGEN message. The kernel puts the port of the committing socket into its header. Raises
    KernelError."""
    attempt = "reading ruleset events"
    for *_, port, payload in messages_in(message, attempt):
        values = dict(attributes(payload[NFGENMSG.size :]))
        return Transaction(
            u32(values.get(uapi.NFTA_GEN_ID)),
            u32(values.get(uapi.NFTA_GEN_PROC_PID)),
            text(values.get(uapi.NFTA_GEN_PROC_NAME)),
            port,
        )
    raise KernelError(attempt, "the message is empty")
