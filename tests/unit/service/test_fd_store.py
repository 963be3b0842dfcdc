"""Sockets that systemd passes to the next process of the service."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.service import fd_store
from flanneld_masq.service.fd_store import FdStore
from flanneld_masq.service.sd_notify import Notifier

QUIET = Notifier({})


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The descriptor of the first passed socket, which is 3 in the service."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    monkeypatch.setattr(fd_store, "_FIRST", opened)
    yield opened
    try:
        os.close(opened)
    except OSError:
        return


def environ(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "nft-ipv4", **changes}


def test_a_passed_socket_is_taken_once_by_its_name(passed: int) -> None:
    store = FdStore(QUIET, environ())
    assert store.take("nft-ipv6") is None
    taken = store.take("nft-ipv4")
    assert taken is not None and taken.fileno() == passed and not taken.get_inheritable()
    assert store.take("nft-ipv4") is None
    taken.close()


@pytest.mark.parametrize(
    "changes",
    [{"LISTEN_PID": "1"}, {"LISTEN_PID": "x"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "x"}],
    ids=str,
)
def test_what_was_not_passed_to_this_process_is_left_alone(passed: int, changes: dict[str, str]) -> None:
    store = FdStore(QUIET, environ(**changes))
    assert store.take("nft-ipv4") is None


def test_a_descriptor_that_is_no_socket_is_passed_over(passed: int) -> None:
    with Path(os.devnull).open() as other:
        os.dup2(other.fileno(), passed)
    assert FdStore(QUIET, environ()).take("nft-ipv4") is None


def test_nothing_is_passed_without_systemd() -> None:
    assert FdStore(QUIET, {}).take("nft-ipv4") is None
