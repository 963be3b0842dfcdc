"""The options of `trace` and `probe`. The code behind these commands is imported when they run: the daemon has none."""

from __future__ import annotations

import argparse
import math
from ipaddress import ip_address

from flanneld_masq.model import Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
CLASSES = ("world", "remote-pod", "node", "pod")
_MAX_SECONDS = 3600.0
_MAX_PACKETS = 1000


def trace(options: argparse.Namespace) -> int:
    from flanneld_masq.cli import trace as command

    return command.trace(options)


def probe(options: argparse.Namespace) -> int:
    from flanneld_masq.cli import probe as command

    return command.probe(options)


def add_trace(command: argparse.ArgumentParser) -> None:
    command.add_argument("--src", type=address, required=True, metavar="POD", help="source address, as the pod has it")
    command.add_argument(
        "--dst", type=address, required=True, metavar="ADDRESS", help="destination address, as the pod sends to it"
    )
    command.add_argument(
        "--proto", type=_protocol, default=0, metavar="PROTOCOL", help="tcp, udp, sctp, icmp, icmpv6 or a number"
    )
    command.add_argument("--dport", type=_port, default=0, metavar="PORT", help="destination port; needs --proto")
    command.add_argument(
        "--seconds", type=_seconds, default=10.0, metavar="N", help="how long to wait for packets (default 10)"
    )
    command.add_argument(
        "--packets", type=_packets, default=5, metavar="N", help="end after this many packets (default 5)"
    )


def add_probe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dst",
        action="append",
        choices=CLASSES,
        default=None,
        metavar="CLASS",
        help=f"send to this class of destinations alone: {', '.join(CLASSES)}; may be given more than once",
    )


def address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 or IPv6 address") from error


def _protocol(text: str) -> int:
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    return _number(text, 1, 255, f"{text!r} is not one of {', '.join(PROTOCOLS)}, nor a number from 1 to 255")


def _port(text: str) -> int:
    return _number(text, 1, 65535, f"{text!r} is not a port from 1 to 65535")


def _packets(text: str) -> int:
    return _number(text, 1, _MAX_PACKETS, f"{text!r} is not a number from 1 to {_MAX_PACKETS}")


def _number(text: str, least: int, most: int, refusal: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(refusal)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 < value <= _MAX_SECONDS:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to {_MAX_SECONDS:g}")
