"""Tracked connections as bytes, and the requests about them."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import conntrack, uapi
from flanneld_masq.kernel.conntrack import Conntrack, Entry, parse_entry
from flanneld_masq.kernel.netlink_socket import NetlinkSocket
from flanneld_masq.kernel.netlink_wire import attribute, attributes, be32, nested, nfnl_msg_type
from flanneld_masq.model import Family, Flow

from .answers import NFGENMSG, Socket, done, error, message

V4, V6 = Family.IPV4, Family.IPV6
NEW = nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_NEW)
CONFIRMED, NUMBER = 1 << 3, b"\1\2\3\4"
POD, SERVICE, WORLD, NODE = "10.244.1.5", "10.96.0.10", "203.0.113.9", "192.0.2.1"


def ip_tuple(kind: int, src: str, dst: str, extra: bytes = b"") -> bytes:
    first = uapi.CTA_IP_V4_SRC if ":" not in src else uapi.CTA_IP_V6_SRC
    addresses = attribute(first, ip_address(src).packed) + attribute(first + 1, ip_address(dst).packed)
    protocol = attribute(1, b"\x11") + attribute(2, b"\x9c\x40") + attribute(3, b"\0\x35")
    return nested(kind, nested(uapi.CTA_TUPLE_IP, addresses) + nested(2, protocol) + extra)


def connection(
    status: int = 0, *, src: str = POD, dst: str = WORLD, back: tuple[str, str] = (WORLD, POD), extra: bytes = b""
) -> bytes:
    body = ip_tuple(uapi.CTA_TUPLE_ORIG, src, dst) + ip_tuple(uapi.CTA_TUPLE_REPLY, *back)
    return body + be32(uapi.CTA_STATUS, CONFIRMED | status) + attribute(uapi.CTA_ID, NUMBER) + extra


def parsed(data: bytes, family: Family = V4) -> Entry:
    entry = parse_entry(data, family)
    assert entry is not None
    return entry


def test_a_connection_is_found_by_the_tuple_as_it_was_read() -> None:
    entry = parsed(connection())
    assert entry.flow == Flow(ip_address(POD), ip_address(WORLD))
    assert (entry.key, entry.number) == (ip_tuple(uapi.CTA_TUPLE_ORIG, POD, WORLD), NUMBER)


def test_the_destination_is_the_one_behind_destination_nat() -> None:
    flow = parsed(connection(uapi.IPS_DST_NAT, dst=SERVICE)).flow
    assert flow == Flow(ip_address(POD), ip_address(WORLD), destination_nat=True)


def test_source_nat_is_seen() -> None:
    assert parsed(connection(uapi.IPS_SRC_NAT, back=(WORLD, NODE))).flow.source_nat


def test_the_other_family() -> None:
    flow = parsed(connection(src="fd00::5", dst="2001:db8::9", back=("2001:db8::9", "fd00::5")), V6).flow
    assert flow == Flow(ip_address("fd00::5"), ip_address("2001:db8::9"))


@pytest.mark.parametrize(
    "data",
    [
        connection(uapi.IPS_SEEN_REPLY),
        connection(uapi.IPS_EXPECTED),
        connection(uapi.IPS_DYING),
        connection(extra=attribute(uapi.CTA_ZONE, b"\0\1")),
        ip_tuple(uapi.CTA_TUPLE_ORIG, POD, WORLD, attribute(uapi.CTA_TUPLE_ZONE, b"\0\1"))
        + ip_tuple(uapi.CTA_TUPLE_REPLY, WORLD, POD)
        + be32(uapi.CTA_STATUS, CONFIRMED),
    ],
    ids=["answered", "expected", "dying", "zone", "zone of one direction"],
)
def test_others_are_left_alone(data: bytes) -> None:
    assert parse_entry(data, V4) is None


@pytest.mark.parametrize(
    ("data", "family"),
    [
        (b"", V4),
        (connection()[:-1], V4),
        (be32(uapi.CTA_STATUS, 0), V4),
        (ip_tuple(uapi.CTA_TUPLE_ORIG, POD, WORLD) + be32(uapi.CTA_STATUS, 0), V4),
        (connection().replace(attribute(uapi.CTA_ID, NUMBER), b""), V4),
        (connection(), V6),
        (connection().replace(attribute(1, ip_address(POD).packed), attribute(1, b"\1\2\3")), V4),
    ],
)
def test_what_cannot_be_read_is_an_error(data: bytes, family: Family) -> None:
    with pytest.raises(KernelError):
        parse_entry(data, family)


@given(st.binary(max_size=200), st.sampled_from(Family))
def test_any_bytes_are_an_entry_or_an_error(data: bytes, family: Family) -> None:
    try:
        parse_entry(data, family)
    except KernelError:
        return


@given(st.data())
def test_a_damaged_connection_is_an_entry_or_an_error(data: st.DataObject) -> None:
    damaged = bytearray(connection())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_entry(bytes(damaged), V4)
    except KernelError:
        return


def table(reader: Socket, writer: Socket) -> Conntrack:
    sockets = [NetlinkSocket(each) for each in (reader, writer)]  # type: ignore[arg-type]
    return Conntrack(V4, *sockets)


def reply(data: bytes, sequence: int = 1) -> bytes:
    return message(NEW, NFGENMSG + data, sequence)


def test_the_kernel_lists_unanswered_connections_of_the_family() -> None:
    reader = Socket(reply(connection()) + reply(connection(uapi.IPS_SEEN_REPLY)), reply(connection()), done())
    found = [list(batch) for batch in table(reader, Socket()).unanswered()]
    assert [len(batch) for batch in found] == [1, 1, 0]
    (request,) = reader.sent
    assert request[16] == V4.data.nfproto
    wanted = {uapi.CTA_STATUS: bytes(4), uapi.CTA_STATUS_MASK: struct.pack(">I", uapi.IPS_SEEN_REPLY)}
    assert dict(attributes(request[20:])) == wanted


def test_the_dump_goes_on_only_when_asked() -> None:
    reader = Socket(reply(connection()), reply(connection()), done())
    batches = table(reader, Socket()).unanswered()
    next(batches)
    assert len(list(reader.datagrams)) == 2


def test_a_connection_is_deleted_by_tuple_and_id() -> None:
    writer = Socket(reply(connection()), error(0, 2))
    assert table(Socket(), writer).delete_unanswered(parsed(connection()))
    _, delete = writer.sent
    assert delete[4:6] == struct.pack("=H", nfnl_msg_type(uapi.NFNL_SUBSYS_CTNETLINK, uapi.IPCTNL_MSG_CT_DELETE))
    assert struct.unpack_from("=H", delete, 6)[0] == uapi.NLM_F_REQUEST | uapi.NLM_F_ACK
    assert delete[20:] == ip_tuple(uapi.CTA_TUPLE_ORIG, POD, WORLD) + attribute(uapi.CTA_ID, NUMBER)


@pytest.mark.parametrize(
    "now",
    [
        reply(connection(uapi.IPS_SEEN_REPLY)),
        reply(connection(uapi.IPS_SRC_NAT, back=(WORLD, NODE))),
        reply(connection().replace(NUMBER, b"\4\3\2\1")),
        error(errno.ENOENT),
    ],
    ids=["answered", "begun again", "another id", "gone"],
)
def test_a_connection_that_has_changed_stays(now: bytes) -> None:
    writer = Socket(now)
    assert not table(Socket(), writer).delete_unanswered(parsed(connection()))
    assert len(writer.sent) == 1


def test_a_connection_that_ends_by_itself_is_no_error() -> None:
    writer = Socket(reply(connection()), error(errno.ENOENT, 2))
    assert not table(Socket(), writer).delete_unanswered(parsed(connection()))


@pytest.mark.parametrize("answers", [(error(errno.EPERM),), (reply(connection()), error(errno.EPERM, 2))])
def test_a_refusal_is_an_error(answers: tuple[bytes, ...]) -> None:
    with pytest.raises(KernelError, match="not permitted"):
        table(Socket(), Socket(*answers)).delete_unanswered(parsed(connection()))


@pytest.mark.parametrize(("source", "local"), [(WORLD, True), (NODE, False), ("", False)])
def test_an_address_is_local_if_the_kernel_makes_it_the_source(
    monkeypatch: pytest.MonkeyPatch, source: str, local: bool
) -> None:
    opened = MagicMock(name="socket")
    asking = opened.return_value.__enter__.return_value
    asking.getsockname.return_value = (source, 9)
    asking.connect.side_effect = None if source else OSError(errno.ENETUNREACH, "Network is unreachable")
    monkeypatch.setattr(socket, "socket", opened)
    assert conntrack.is_local(ip_address(WORLD)) is local
