"""Reads the connections that have seen no reply, and deletes those that a caller picks.

Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h of the kernel. The kernel leaves answered connections out of
the dump from Linux 5.15 on (CTA_STATUS_MASK); before that this module does. It never sends the request that deletes by
a filter: an older kernel does not know the filter and deletes every connection.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attribute, attributes, be32, nested, nfnl_msg_type, u32
from flanneld_masq.model import SLOTS, Address, Family, Flow, family_of

_GET = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_GET)
_DELETE = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_DELETE)
_UNANSWERED = be32(uapi.CTA_STATUS, 0) + be32(uapi.CTA_STATUS_MASK, uapi.IPS_SEEN_REPLY)
_LEFT_ALONE = uapi.IPS_SEEN_REPLY | uapi.IPS_EXPECTED | uapi.IPS_DYING
_READING, _DELETING = "reading the tracked connections", "deleting a tracked connection"
_ADDRESSES = {
    Family.IPV4: (uapi.CTA_IP_V4_SRC, uapi.CTA_IP_V4_DST),
    Family.IPV6: (uapi.CTA_IP_V6_SRC, uapi.CTA_IP_V6_DST),
}
_DISCARD_PORT = 9  # any port: nothing is sent


@dataclass(frozen=True, **SLOTS)
class Entry:
    """A connection that has seen no reply. `key` is the attribute stream by which the kernel finds it: the original
    tuple as it was read. `number` is its CTA_ID; a later connection of the same tuple may have the same."""

    flow: Flow
    key: bytes
    number: bytes


def parse_entry(data: bytes, family: Family) -> Entry | None:
    """Parse the attribute stream of one connection of a dump.

    Return None for a connection that must not be deleted: it was answered, another connection announced it (FTP), it
    ends, or it is in a zone of its own. Raises KernelError if the stream cannot be read.
    """
    values = dict(attributes(data))
    if u32(_value(values, uapi.CTA_STATUS)) & _LEFT_ALONE or uapi.CTA_ZONE in values:
        return None
    status, original = u32(values[uapi.CTA_STATUS]), _value(values, uapi.CTA_TUPLE_ORIG)
    tuples = [dict(attributes(each)) for each in (original, _value(values, uapi.CTA_TUPLE_REPLY))]
    if any(uapi.CTA_TUPLE_ZONE in each for each in tuples):
        return None
    (src, _), (dst, _) = (_addresses(_value(each, uapi.CTA_TUPLE_IP), family) for each in tuples)
    flow = Flow(src, dst, bool(status & uapi.IPS_SRC_NAT), bool(status & uapi.IPS_DST_NAT))
    return Entry(flow, nested(uapi.CTA_TUPLE_ORIG, original), _value(values, uapi.CTA_ID))


class Conntrack:
    """The tracked connections of one family, in the network namespace of the thread that makes this object.

    Every method raises KernelError if the kernel refuses, or answers what cannot be read.
    """

    def __init__(
        self, family: Family, reader: NetlinkSocket | None = None, writer: NetlinkSocket | None = None
    ) -> None:
        self._family = family
        self._reader = reader or NetlinkSocket()  # of its own: the dump goes on while connections are deleted
        self._writer = writer or NetlinkSocket()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def unanswered(self) -> Iterator[Iterator[Entry]]:
        """Yield the connections that have seen no reply, some at a time, while the kernel reads its table.

        The kernel reads on when the next ones are asked for. A connection that comes or goes meanwhile may be missing,
        or come twice. Call it once.
        """
        for batch in self._reader.dump(_READING, _GET, self._family.data.nfproto, _UNANSWERED):
            parsed = (parse_entry(data, self._family) for data in batch)
            yield (entry for entry in parsed if entry is not None)

    def delete_unanswered(self, entry: Entry) -> bool:
        """Delete a connection unless it was answered meanwhile, or is gone. Return True if it was deleted.

        The kernel has no request that does both. So this asks for the state again right before; about 10 us later the
        connection is gone.
        """
        now = self._now(entry)
        if now is None or now.number != entry.number or now.flow != entry.flow:
            return False
        try:
            key = entry.key + attribute(uapi.CTA_ID, entry.number)
            self._writer.order(_DELETING, _DELETE, self._family.data.nfproto, key)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _now(self, entry: Entry) -> Entry | None:
        try:
            replies = self._writer.request(_READING, _GET, self._family.data.nfproto, entry.key)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return parse_entry(replies[0], self._family) if replies else None


def is_local(address: Address) -> bool:
    """Return True if packets to an address end on this node, so that none of them reaches POSTROUTING. The kernel
    takes the destination for the source then. Nothing is sent."""
    kind = socket.AF_INET if family_of(address) is Family.IPV4 else socket.AF_INET6
    try:
        with socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            asking.connect((str(address), _DISCARD_PORT))
            return type(address)(asking.getsockname()[0]) == address
    except OSError:  # no route from here; that of pods may be another one
        return False


def _value(values: dict[int, bytes], kind: int) -> bytes:
    if kind not in values:
        raise KernelError(_READING, f"one lacks attribute {kind}")
    return values[kind]


def _addresses(data: bytes, family: Family) -> tuple[Address, Address]:
    """Read the source and the destination of a tuple."""
    values, length = dict(attributes(data)), family.data.width // 8
    source, destination = (_value(values, kind) for kind in _ADDRESSES[family])
    if len(source) != length or len(destination) != length:
        raise KernelError(_READING, f"one has an address that is not {length} bytes long")
    create = IPv4Address if family is Family.IPV4 else IPv6Address
    return create(source), create(destination)
