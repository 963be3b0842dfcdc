"""Writes the page of one packet, for `explain --html`."""

from __future__ import annotations

import os
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Address, Packet, family_of
from flanneld_masq.packet_path.collect import collect
from flanneld_masq.packet_path.evaluate import Node
from flanneld_masq.packet_path.packet import TCP
from flanneld_masq.packet_path.packet import Packet as PathPacket
from flanneld_masq.packet_path.routing import LOCAL
from flanneld_masq.process import ProcessRunner
from flanneld_masq.report.archive import new_file
from flanneld_masq.report.page import of_result, page
from flanneld_masq.report.wording import packet_text

_CLIENT_PORT, _PORT = 40000, 443


def follow(file: str, packet: Packet, root: Path) -> None:
    """Follow a packet of the policy, as TCP, through the node as it is now, and write its page.

    Raises MasqError if the file exists, or if the rules cannot be read.
    """
    node = Node(collect(ProcessRunner(), root))
    if os.geteuid() != 0 and node.snapshot.unread:
        raise MasqError(f"--html needs root: {node.snapshot.unread[0]}")
    device = _device(node, packet.src)
    write(file, node, PathPacket(packet.src, packet.dst, TCP, _CLIENT_PORT, _PORT, device, packet.mark))


def write(file: str, node: Node, packet: PathPacket) -> None:
    """Write the page of a packet. Raises MasqError if the file exists, or cannot be written."""
    host = os.uname()
    about = (packet_text(packet), f"{host.nodename}, flanneld-masq {__version__}, Linux {host.release}")
    title = f"The way of a packet from {packet.src} to {packet.dst}"
    text = page(node, [of_result(node.evaluate(packet))], title=title, about=about)
    with new_file(Path(file)) as written:
        written.write(text.encode("utf-8", "backslashreplace"))


def _device(node: Node, src: Address) -> str:
    """Return the device by which a packet with this source arrives, empty for the node's own."""
    found = node.routing[family_of(src)].route(None, src, "", 0)[0]
    return "" if found.kind == LOCAL else found.device
