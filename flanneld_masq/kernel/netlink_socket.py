"""A netlink socket: sends requests and transactions, and collects the answers to them.

Formats: include/uapi/linux/netlink.h and linux/netfilter/nfnetlink.h of the kernel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel.fingerprint import FingerprintRequest
from flanneld_masq.kernel.netlink_wire import (
    FIXED_SEQUENCE,
    NFGENMSG,
    NLMSGHDR,
    aligned,
    attributes,
    message,
    messages_in,
    text,
)
from flanneld_masq.kernel.transactions import Message
from flanneld_masq.kernel.uapi import (
    NETLINK_EXT_ACK,
    NETLINK_NETFILTER,
    NETLINK_NO_ENOBUFS,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_UNSPEC,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
    SO_SNDBUFFORCE,
    SOL_NETLINK,
)

_BUFFER = 1 << 16  # bytes; the kernel fills at most 32 KiB, and more than 128 KiB would be mapped for each call
_SMALL = 1 << 15  # bytes, of a transaction that fits into any send buffer
_ERROR, _MAX_ERRNO = struct.Struct("=i"), 4095  # struct nlmsgerr begins with the error; MAX_ERRNO of linux/err.h
_MSG_TRUNC = int(socket.MSG_TRUNC)
_TIMEOUT = 10.0  # seconds; the kernel answers during the send, so this only ends a bug


class Interrupted(KernelError):
    """The ruleset changed while it was read, so the answer may mix old and new rules."""


class NetlinkSocket:
    """Requests and transactions over one socket, in the network namespace of the thread that makes it.

    `attempt` says in errors what the caller is doing.
    Every method raises KernelError if the kernel refuses, or answers what cannot be read.
    """

    def __init__(self, opened: socket.socket | None = None) -> None:
        # opened here, later than this object is made: the garbage collector then calls its __del__ first
        self._socket = opened or _open_socket()
        self._sequence = 0

    @classmethod
    def inherited(cls, opened: socket.socket) -> NetlinkSocket:
        """Take a socket of an earlier process, which may have left answers unread."""
        netlink = cls(opened)
        netlink._drain()
        return netlink

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The netlink port of the socket, by which the kernel names the owner of a table."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # absent if opening it failed
            self._socket.close()

    def request(self, attempt: str, kind: int, nfproto: int, body: bytes, *, dump: bool = False) -> list[bytes]:
        """Send one request of this nlmsg_type. Return the attribute streams of its replies. Raises Interrupted if the
        ruleset changes during a dump."""
        flags = NLM_F_DUMP if dump else 0
        return [reply for some in self._answers(attempt, kind, flags, nfproto, body) for reply in some]

    def order(self, attempt: str, kind: int, nfproto: int, body: bytes) -> None:
        """Send one request of this nlmsg_type that the kernel acknowledges, and answers in no other way."""
        for _ in self._answers(attempt, kind, NLM_F_ACK, nfproto, body):
            pass

    def dump(self, attempt: str, kind: int, nfproto: int, body: bytes) -> Iterator[list[bytes]]:
        """Send one request for a dump. Yield the attribute streams of each datagram while the kernel makes it: it goes
        on with the dump when the next ones are asked for. Until its end, send no other request over this socket."""
        return self._answers(attempt, kind, NLM_F_DUMP, nfproto, body)

    def _answers(self, attempt: str, kind: int, flags: int, nfproto: int, body: bytes) -> Iterator[list[bytes]]:
        """Yield the attribute streams of each datagram up to the end of a dump, or to the first reply or
        acknowledgement."""
        first, dump = self._sequence, bool(flags & NLM_F_DUMP)
        self._send(attempt, self._numbered(kind, NLM_F_REQUEST | flags, nfproto, body))
        while True:
            replies: list[bytes] = []
            for reply_kind, reply_flags, payload in self._receive(attempt, first):
                if reply_flags & NLM_F_DUMP_INTR and dump:
                    self._drain()
                    raise Interrupted(attempt, "the ruleset changed during the dump")
                if reply_kind in (NLMSG_DONE, NLMSG_ERROR):
                    if reply_kind == NLMSG_ERROR:
                        raise_error(attempt, reply_flags, payload)
                    yield replies
                    return
                replies.append(payload[NFGENMSG.size :])
            yield replies
            if replies and not dump:
                return

    def begins(self, attempt: str, kind: int, nfproto: int, body: bytes) -> bool:
        """Start a dump and read its first datagram. Return True if an object is in it. Nothing else can be asked of the
        socket afterwards."""
        first = self._sequence
        self._send(attempt, self._numbered(kind, NLM_F_REQUEST | NLM_F_DUMP, nfproto, body))
        for reply_kind, reply_flags, payload in self._receive(attempt, first):
            if reply_kind == NLMSG_ERROR:
                raise_error(attempt, reply_flags, payload)
            return reply_kind not in (NLMSG_DONE, NLMSG_ERROR)
        raise KernelError(attempt, "the answer is empty")

    def replies(self, attempt: str, request: FingerprintRequest) -> list[bytes]:
        """Send these requests. Return the payloads of all replies, errors among them. Raises Interrupted if the ruleset
        changes meanwhile."""
        payloads: list[bytes] = []
        try:
            if request.gets:
                self._send(attempt, b"".join(request.gets))
                for _ in request.gets:
                    self._collect(attempt, payloads)
            for dump in request.dumps:
                self._send(attempt, dump)
                while not self._collect(attempt, payloads):
                    pass
        except KernelError:
            self._drain()
            raise
        return payloads

    def commit(self, attempt: str, nfproto: int, messages: Sequence[Message], *, dry_run: bool = False) -> None:
        """Commit one transaction of nf_tables: all of the messages take effect, or none does.

        The kernel acknowledges the last message, as asked. It reports the error of any message unasked, and then it
        has changed nothing. A `dry_run` lacks the end of the batch: the kernel checks each message, then aborts, and
        the generation stays (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
        """
        first = self._sequence
        *others, last = messages
        batch = [self._batch(NFNL_MSG_BATCH_BEGIN)]
        for change in (*others, Message(last.kind, last.body, last.flags | NLM_F_ACK)):
            flags = NLM_F_REQUEST | change.flags
            batch.append(self._numbered(change.kind, flags, nfproto, change.body))
        if not dry_run:
            batch.append(self._batch(NFNL_MSG_BATCH_END))
        self._send_whole(attempt, b"".join(batch))
        try:
            while not any(self._acknowledged(attempt, first)):
                pass
        except KernelError:
            self._drain()
            raise

    def _batch(self, kind: int) -> bytes:
        return self._numbered(kind, NLM_F_REQUEST, NFPROTO_UNSPEC, b"", NFNL_SUBSYS_NFTABLES)

    def _acknowledged(self, attempt: str, first: int) -> Iterator[bool]:
        """Yield True for the acknowledgement of a transaction. Raises KernelError for the error of a message."""
        for kind, flags, payload in self._receive(attempt, first):
            if kind == NLMSG_ERROR:
                raise_error(attempt, flags, payload)
                yield True

    def _numbered(self, kind: int, flags: int, nfproto: int, body: bytes, resource: int = 0) -> bytes:
        self._sequence = (self._sequence + 1) % FIXED_SEQUENCE
        return message(kind, flags, nfproto, resource, body, self._sequence)

    def _send_whole(self, attempt: str, datagram: bytes) -> None:
        """Send a transaction. The send buffer grows to hold it, for a user without the right up to wmem_max."""
        if len(datagram) > _SMALL:
            for option in (SO_SNDBUFFORCE, socket.SO_SNDBUF):
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, 2 * len(datagram))
                    break
        self._send(attempt, datagram)

    def _send(self, attempt: str, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, (0, 0))
        except OSError as error:
            raise KernelError(attempt, error.strerror or str(error), error.errno or 0) from error

    def _receive(self, attempt: str, first: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield the messages of one datagram (type, flags, payload) that answer requests sent after the sequence number
        `first`."""
        requests = (self._sequence - first) % FIXED_SEQUENCE
        for kind, flags, sequence, _, payload in messages_in(self._datagram(attempt), attempt):
            if 0 < (sequence - first) % FIXED_SEQUENCE <= requests:
                yield kind, flags, payload

    def _collect(self, attempt: str, payloads: list[bytes]) -> bool:
        """Append the payloads of one datagram. Return True if it ends a dump."""
        last = False
        for kind, flags, sequence, _, payload in messages_in(self._datagram(attempt), attempt):
            if flags & NLM_F_DUMP_INTR or sequence != FIXED_SEQUENCE:
                raise Interrupted(attempt, "the ruleset changed meanwhile")
            payloads.append(payload[NFGENMSG.size :])
            last = kind in (NLMSG_DONE, NLMSG_ERROR)
        return last

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
        """Discard the rest of an answer, so that the next request does not read it."""
        self._socket.settimeout(0)  # with another timeout Python waits before it receives, whatever the flags
        try:
            while self._socket.recv(_BUFFER):
                pass
        except OSError:  # BlockingIOError: nothing is left
            return
        finally:
            self._socket.settimeout(_TIMEOUT)


def _open_socket() -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        reason = f"{error.strerror}; is the kernel built with nfnetlink?"
        raise KernelError("opening a netfilter netlink socket", reason, error.errno or 0) from error
    opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    # of more errors than the socket holds the first are enough
    opened.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    opened.settimeout(_TIMEOUT)
    opened.bind((0, 0))
    return opened


def raise_error(attempt: str, flags: int, payload: bytes) -> None:
    """Raise KernelError for the payload of NLMSG_ERROR, with the kernel's explanation if it gives one. An error of 0
    is an acknowledgement."""
    if len(payload) < _ERROR.size:
        raise KernelError(attempt, "the answer is cut short")
    (code,) = _ERROR.unpack_from(payload)
    if code == 0:
        return
    if not 0 < -code <= _MAX_ERRNO:
        raise KernelError(attempt, f"the answer has the error {code}, which does not exist")
    reason = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        original = int.from_bytes(payload[4:8], sys.byteorder)  # the length of the request
        start = 4 + (NLMSGHDR.size if flags & NLM_F_CAPPED else aligned(original))
        explanation = text(dict(attributes(payload[start:])).get(NLMSGERR_ATTR_MSG))
        reason += f" ({explanation})" if explanation else ""
    raise KernelError(attempt, reason, -code)
