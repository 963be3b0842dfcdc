"""The kernel's messages about commits to nf_tables are read as transactions."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from flanneld_masq.errors import KernelError
from flanneld_masq.kernel import uapi
from flanneld_masq.kernel.netlink_wire import be32, string
from flanneld_masq.kernel.ruleset_events import RulesetEvents, Transaction, parse_transaction

from .answers import NEWGEN, NFGENMSG, message


def newgen(generation: int) -> bytes:
    author = be32(uapi.NFTA_GEN_PROC_PID, 77) + string(uapi.NFTA_GEN_PROC_NAME, "nft")
    return message(NEWGEN, NFGENMSG + be32(uapi.NFTA_GEN_ID, generation) + author)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, RulesetEvents]]:
    """The kernel's end, and a listener at the other."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    events = RulesetEvents.__new__(RulesetEvents)
    events._socket = ours
    yield kernel, events
    events.close()
    kernel.close()


def test_each_commit_is_read_with_its_author(sockets: tuple[socket.socket, RulesetEvents]) -> None:
    kernel, events = sockets
    assert events.read() == ((), False)
    kernel.send(newgen(5))
    kernel.send(newgen(6))
    assert events.read() == ((Transaction(5, 77, "nft"), Transaction(6, 77, "nft")), False)


@pytest.mark.parametrize("damaged", [newgen(6)[:15], newgen(6)[:-8], b"\0"])
def test_a_damaged_event_counts_as_lost(damaged: bytes, sockets: tuple[socket.socket, RulesetEvents]) -> None:
    kernel, events = sockets
    for data in (newgen(5), damaged, newgen(7)):
        kernel.send(data)
    assert events.read() == ((Transaction(5, 77, "nft"), Transaction(7, 77, "nft")), True)


def test_an_empty_message_is_no_commit() -> None:
    with pytest.raises(KernelError, match="empty"):
        parse_transaction(b"")
