"""The packets that the wire can carry."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flanneld_masq.model import Packet
from flanneld_masq.selftest import packets


@pytest.mark.parametrize(
    ("src", "dst", "carried"),
    [
        ("10.1.2.3", "8.8.8.8", True),
        ("10.1.2.3", "239.0.0.1", True),
        ("169.254.1.1", "169.254.169.254", True),
        ("0.1.2.3", "8.8.8.8", False),
        ("127.0.0.1", "8.8.8.8", False),
        ("10.1.2.3", "255.255.255.255", False),
        ("224.0.0.1", "8.8.8.8", False),
        ("10.1.2.3", "203.0.113.1", False),
        ("fd00::1", "2001:db8::1", True),
        ("fd00::1", "ff15::1", True),
        ("fd00::1", "ff11::1", False),
        ("fd00::1", "::1", False),
        ("fd00::1", "::ffff:8.8.8.8", False),
    ],
)
def test_what_the_wire_can_carry(src: str, dst: str, carried: bool) -> None:
    assert packets.carries(Packet(ip_address(src), ip_address(dst))) is carried
