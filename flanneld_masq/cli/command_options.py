"""The options of each command, beside the common ones. This imports no code of a command."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from flanneld_masq.errors import ConfigError

if TYPE_CHECKING:
    from flanneld_masq.model import Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
CLASSES = ("world", "remote-pod", "node", "pod")
_WITH_PORTS = frozenset(PROTOCOLS[name] for name in ("tcp", "udp", "sctp"))
_MAX_SECONDS = 3600.0
_MAX_WAIT_SECONDS = 86400.0
_MAX_PACKETS = 1000
_BRIEF_SECONDS = 4.0  # node-problem-detector ends a program after 5 s


def add(name: str, command: argparse.ArgumentParser) -> None:
    """Add the options of the command of that name, which may have none."""
    if name in _ADDERS:
        _ADDERS[name](command)


def _add_status(command: argparse.ArgumentParser) -> None:
    how = command.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="print the status again after each change, until Ctrl-C")
    how.add_argument(
        "--check",
        action="store_true",
        help="exit status 0 if the rules are in sync or the daemon waits for a first subnet file, 1 if degraded, "
        "contended or starting, 2 if no daemon runs",
    )


def _add_wait(command: argparse.ArgumentParser) -> None:
    from flanneld_masq.controller.status import State  # the other commands that need it are few

    states = tuple(state.value for state in State if state is not State.UNKNOWN)
    command.add_argument(
        "--for",
        dest="state",
        choices=states,
        default=State.SYNCED.value,
        metavar="STATE",
        help=f"the state to wait for: {', '.join(states)} (default synced)",
    )
    command.add_argument(
        "--timeout",
        type=partial(_seconds, most=_MAX_WAIT_SECONDS, zero=True),
        default=60.0,
        metavar="S",
        help="give up after so many seconds (default 60)",
    )


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="validate the text of this file alone, without regard to its owner, instead of the configuration in force",
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file",
        nargs="?",
        default=None,
        metavar="FILE",
        help="file to write (default flanneld-masq-report-HOST-DATE.tar.gz); an existing file is not replaced",
    )


def _add_metrics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--write",
        action="store_true",
        help="replace the file of metrics.textfile, if no daemon runs; the service does so after the daemon has ended",
    )


def _add_cleanup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--flannel",
        action="store_true",
        help="also remove the rules that any release of flannel left; while the daemon runs, remove only these",
    )


def _add_trace(command: argparse.ArgumentParser) -> None:
    command.add_argument("--src", type=address, required=True, metavar="POD", help="source address, as the pod uses it")
    command.add_argument(
        "--dst", type=address, required=True, metavar="ADDRESS", help="destination address, as the pod uses it"
    )
    command.add_argument(
        "--proto", type=_protocol, default=0, metavar="PROTOCOL", help="tcp, udp, sctp, icmp, icmpv6 or a number"
    )
    command.add_argument("--dport", type=_port, default=0, metavar="PORT", help="destination port; needs --proto")
    command.add_argument(
        "--seconds",
        type=partial(_seconds, most=_MAX_SECONDS),
        default=10.0,
        metavar="N",
        help="how long to wait for packets (default 10)",
    )
    command.add_argument(
        "--packets", type=_packets, default=5, metavar="N", help="end after this many packets (default 5)"
    )


def _add_probe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dst",
        action="append",
        choices=CLASSES,
        default=None,
        metavar="CLASS",
        help=f"send to this class of destinations alone: {', '.join(CLASSES)}; may be given more than once",
    )


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--snapshot",
        default=None,
        metavar="FILE",
        help="examine the packets of pods on a saved node instead: an archive of report, or its snapshot.json with "
        "--subnet-file; needs no root",
    )
    command.add_argument(
        "--brief",
        action="store_true",
        help="print one line of at most 80 bytes with the ids of the worst findings, for node-problem-detector; exit "
        "status 2 after any error",
    )
    command.add_argument(
        "--timeout",
        type=partial(_seconds, most=_MAX_SECONDS),
        default=_BRIEF_SECONDS,
        metavar="S",
        help=f"with --brief, give up after so many seconds (default {_BRIEF_SECONDS:g})",
    )


def _add_explain(command: argparse.ArgumentParser) -> None:
    command.add_argument("--src", type=address, required=True, metavar="ADDRESS", help="source address of the packet")
    command.add_argument("--dst", type=address, required=True, metavar="ADDRESS", help="destination address")
    command.add_argument(
        "--mark",
        type=_mark,
        default=0,
        metavar="MARK",
        help="mark of the packet, hexadecimal (0x4000) or decimal (default 0)",
    )
    command.add_argument(
        "--proto",
        type=_protocol,
        default=PROTOCOLS["tcp"],
        metavar="PROTOCOL",
        help="tcp (the default), udp, sctp, icmp, icmpv6 or a number",
    )
    command.add_argument("--dport", type=_port, default=0, metavar="PORT", help="destination port (default: any)")
    command.add_argument(
        "--from",
        dest="iif",
        default="",
        metavar="IFACE",
        help="interface by which the packet comes in (default: the one that leads to its source)",
    )
    command.add_argument(
        "--ours",
        action="store_true",
        help="answer by the policy of flanneld-masq alone; needs neither a kernel nor root",
    )
    command.add_argument(
        "--html",
        default=None,
        metavar="FILE",
        help="also write a page that shows the packet's way through the rules of every program; needs root",
    )


def check_flow(options: argparse.Namespace) -> None:
    """Raise ConfigError if the options contradict each other."""
    if options.src.version != options.dst.version:
        raise ConfigError("command line", "--dst", f"{options.dst} is not of the same family as {options.src}")
    if options.dport and options.proto not in _WITH_PORTS:
        raise ConfigError("command line", "--dport", "only tcp, udp and sctp have ports; name one with --proto")


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


def _seconds(text: str, *, most: float, zero: bool = False) -> float:
    """Return a number of seconds up to `most`: more than 0, or 0 too. Raises ArgumentTypeError for another text."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value <= most or (zero and value == 0):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds {'from 0' if zero else 'up'} to {most:g}")


def _mark(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text} is not a mark of 32 bits")
    return value


_ADDERS = {
    "status": _add_status,
    "wait": _add_wait,
    "check": _add_check,
    "report": _add_report,
    "metrics": _add_metrics,
    "cleanup": _add_cleanup,
    "trace": _add_trace,
    "probe": _add_probe,
    "doctor": _add_doctor,
    "explain": _add_explain,
}
