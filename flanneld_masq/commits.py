"""A record of who changed the ruleset of a namespace, and when. For the self-test, which times repairs with it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass

from .errors import KernelError
from .model import SLOTS
from .netlink import attributes, text

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7
_NEWGEN = (10 << 8) | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN: one for each transaction
_HEADER = struct.Struct("=IHHII")
_PAYLOAD = _HEADER.size + 4  # what follows the header of nfnetlink
_PROCESS_NAME = 3


@dataclass(frozen=True, **SLOTS)
class Commit:
    """`moment` is of the monotonic clock; `program` is the name of the process as the kernel has it."""

    moment: float
    program: str


class Commits:
    """Listens, in a thread, to the namespace of the thread that makes it. Legacy iptables tells nobody."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            raise KernelError("listening to changes of the ruleset", reason, error.errno or 0) from error
        self._found: list[Commit] = []
        self._end, self._end_here = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="commits", daemon=True)
        self._thread.start()

    def since(self, moment: float) -> tuple[Commit, ...]:
        return tuple(commit for commit in tuple(self._found) if commit.moment >= moment)

    def close(self) -> None:
        os.close(self._end_here)
        self._thread.join()
        os.close(self._end)
        self._socket.close()

    def _listen(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._end)
        while not any(descriptor == self._end for descriptor, _ in poller.poll()):
            # A flood that overruns the buffer (ENOBUFS) loses records, and those are for people.
            with contextlib.suppress(OSError):
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
                self._note(data, time.monotonic())

    def _note(self, data: bytes, moment: float) -> None:
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind == _NEWGEN:
                found = dict(attributes(data[offset + _PAYLOAD : offset + length]))
                self._found.append(Commit(moment, text(found.get(_PROCESS_NAME))))
            offset += max((length + 3) & ~3, _HEADER.size)
