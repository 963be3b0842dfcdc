"""Writes the page of one packet, for `explain --html`."""

from __future__ import annotations

import os
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.packet_path.evaluate import Node, Result
from flanneld_masq.report.archive import new_file
from flanneld_masq.report.page import of_result, page
from flanneld_masq.report.wording import packet_text


def write(file: str, node: Node, result: Result) -> None:
    """Write the page of a packet that the node evaluated. Raises MasqError if the file exists, or cannot be written."""
    host, packet = os.uname(), result.packet
    about = (packet_text(packet), f"{host.nodename}, flanneld-masq {__version__}, Linux {host.release}")
    title = f"The way of a packet from {packet.src} to {packet.dst}"
    text = page(node, [of_result(result)], title=title, about=about)
    with new_file(Path(file)) as written:
        written.write(text.encode("utf-8", "backslashreplace"))
