"""The kernel's messages about traced packets are read as values."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import attribute, be32, nested, nfnl_msg_type, nft_msg_type, string
from flanneld_masq.kernel.trace_events import Header, LegacyStep, NftStep, StepKind, TraceSocket, parse_steps

from .answers import message

TRACE = nft_msg_type(uapi.NFT_MSG_TRACE)
LOG = nfnl_msg_type(uapi.NFNL_SUBSYS_ULOG, uapi.NFULNL_MSG_PACKET)
INET, IP = b"\1\0\0\0", b"\2\0\0\0"
SRC, DST = ip_address("10.244.1.5"), ip_address("192.0.2.7")
IP_HEADER = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, SRC.packed, DST.packed)
PORTS = struct.pack(">HH", 4000, 443)


def trace(kind: int, *extra: bytes, chain: str = "FORWARD") -> bytes:
    body = string(uapi.NFTA_TRACE_TABLE, "filter") + string(uapi.NFTA_TRACE_CHAIN, chain)
    body += be32(uapi.NFTA_TRACE_TYPE, kind) + be32(uapi.NFTA_TRACE_ID, 77)
    return message(TRACE, INET + body + b"".join(extra))


def verdict(code: int, chain: str = "") -> bytes:
    body = be32(uapi.NFTA_VERDICT_CODE, code & 0xFFFFFFFF)
    return nested(uapi.NFTA_TRACE_VERDICT, body + (string(uapi.NFTA_VERDICT_CHAIN, chain) if chain else b""))


def log(prefix: str, payload: bytes = IP_HEADER + PORTS) -> bytes:
    body = attribute(uapi.NFULA_PACKET_HDR, b"\x08\0\2\0") + string(uapi.NFULA_PREFIX, prefix)
    body += be32(uapi.NFULA_IFINDEX_INDEV, 3) + be32(uapi.NFULA_IFINDEX_OUTDEV, 4)
    return message(LOG, IP + body + attribute(uapi.NFULA_PAYLOAD, payload))


def test_a_rule_with_its_verdict_and_headers() -> None:
    datagram = trace(
        uapi.NFT_TRACETYPE_RULE,
        attribute(uapi.NFTA_TRACE_RULE_HANDLE, (9).to_bytes(8, "big")),
        verdict(uapi.NFT_JUMP, "ufw-user-forward"),
        attribute(uapi.NFTA_TRACE_NETWORK_HEADER, IP_HEADER),
        attribute(uapi.NFTA_TRACE_TRANSPORT_HEADER, PORTS + bytes(16)),
        be32(uapi.NFTA_TRACE_IIF, 3),
        be32(uapi.NFTA_TRACE_OIF, 4),
        be32(uapi.NFTA_TRACE_MARK, 0x4000),
    )
    header = Header(SRC, DST, 6, 4000, 443, 3, 4)
    kind = StepKind.RULE
    assert list(parse_steps(datagram)) == [
        NftStep(1, "filter", "FORWARD", kind, 77, 9, "jump", "ufw-user-forward", header, 0x4000)
    ]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (uapi.NF_DROP, "drop"),
        (uapi.NF_ACCEPT, "accept"),
        (uapi.NFT_RETURN, "return"),
        (0x70003, "queue"),
        (9, "verdict 9"),
    ],
)
def test_verdicts_have_names(code: int, name: str) -> None:
    (step,) = parse_steps(trace(uapi.NFT_TRACETYPE_RULE, verdict(code)))
    assert isinstance(step, NftStep) and step.verdict == name


def test_a_policy_is_a_verdict_too() -> None:
    (step,) = parse_steps(trace(uapi.NFT_TRACETYPE_POLICY, be32(uapi.NFTA_TRACE_POLICY, uapi.NF_DROP)))
    assert isinstance(step, NftStep) and (step.kind, step.verdict, step.header) == (StepKind.POLICY, "drop", None)


def test_a_rule_of_ip_tables() -> None:
    header = Header(SRC, DST, 6, 4000, 443, 3, 4)
    expected = LegacyStep("filter", "FORWARD", StepKind.RULE, 12, 2, header)
    assert list(parse_steps(log("TRACE: filter:FORWARD:rule:12 "))) == [expected]


def test_logs_of_other_rules_are_left_out() -> None:
    assert list(parse_steps(log("DROPPED: ") + log("TRACE: filter:FORWARD:drop:12 "))) == []


def test_names_of_other_programs_are_escaped() -> None:
    (step,) = parse_steps(trace(uapi.NFT_TRACETYPE_RETURN, chain="a\x1b[2J"))
    assert step.chain == "a\\x1b[2J"


def test_a_fragment_has_no_ports() -> None:
    fragment = IP_HEADER[:6] + b"\0\5" + IP_HEADER[8:]
    (step,) = parse_steps(log("TRACE: raw:PREROUTING:policy:1 ", fragment + PORTS))
    assert step.header is not None and (step.header.sport, step.header.dport) == (0, 0)


@pytest.mark.parametrize("payload", [b"", b"\x45", IP_HEADER[:19], b"\x60" + bytes(38), b"\x10" * 60])
def test_no_ip_header_is_none(payload: bytes) -> None:
    (step,) = parse_steps(log("TRACE: raw:PREROUTING:policy:1 ", payload))
    assert step.header is None


@pytest.mark.parametrize("datagram", [trace(9), trace(1)[:-3], message(TRACE, b"\1\0")])
def test_what_cannot_be_read_is_refused(datagram: bytes) -> None:
    with pytest.raises(KernelError):
        list(parse_steps(datagram))


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, TraceSocket]]:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    traces = TraceSocket.__new__(TraceSocket)
    traces._socket = ours
    yield kernel, traces
    traces.close()
    kernel.close()


class Flooded(socket.socket):
    """A message is there whenever one is read, up to so many."""

    left = 1000

    def recv(self, *_: int) -> bytes:
        if self.left == 0:
            raise BlockingIOError
        self.left -= 1
        return trace(uapi.NFT_TRACETYPE_RETURN)


def test_one_call_reads_a_bounded_number_of_messages() -> None:
    traces = TraceSocket.__new__(TraceSocket)
    traces._socket = Flooded(socket.AF_UNIX, socket.SOCK_DGRAM)
    counts = [len(traces.read()[0]) for _ in range(5)]
    traces.close()
    assert counts == [256, 256, 256, 232, 0]


def test_an_unreadable_message_counts_as_lost(sockets: tuple[socket.socket, TraceSocket]) -> None:
    kernel, traces = sockets
    assert traces.read() == ((), False)
    kernel.send(trace(uapi.NFT_TRACETYPE_RETURN))
    kernel.send(trace(9))
    steps, lost = traces.read()
    assert (len(steps), lost) == (1, True)
