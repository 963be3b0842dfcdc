"""The page in headless Chromium: hostile text makes no element and runs no script, and lines have their colours."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_masq.packet_path.evaluate import Node

from ...common import amount, patience, unable
from ..packet_path.nodes import DADDR, DROP, chain, match, rule, snapshot, table
from .hostile import ATTACK, hostile_node, page_of

GOOD, WRONG, DARK_PAPER = b"\x00\x79\x5a", b"\xb8\x40\x0b", b"\x16\x18\x1c"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """Opens pages without a window. Its profile is in `directory`."""

    def __init__(self, directory: Path) -> None:
        program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
        if program is None:
            unable("no Chromium; `scripts/setup-packaging browser` installs it, 400 MB")
        as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
        self._directory = directory
        self._argv = (program, "--headless", "--disable-gpu", f"--user-data-dir={directory}/profile", *as_root)

    def dom(self, content: str) -> str:
        """Return the page as the browser holds it once all of it is loaded."""
        return self._open(content, "--dump-dom").decode()

    def pixels(self, content: str, *options: str) -> bytes:
        """Return a picture of the page, three bytes for each pixel."""
        shot = self._directory / "shot.png"
        self._open(content, f"--screenshot={shot}", "--hide-scrollbars", *options)
        return b"".join(rows_of(shot.read_bytes()))

    def _open(self, content: str, *options: str) -> bytes:
        page = self._directory / "page.html"
        page.write_text(content)
        done = subprocess.run((*self._argv, *options, page.as_uri()), capture_output=True, timeout=patience(30))
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def rows_of(png: bytes) -> Iterator[bytes]:
    """Yield the rows of a picture of 8 bits in RGB, which Chromium writes. Source: the PNG specification, 9.2."""
    position, data, width = 8, b"", 0
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colours = struct.unpack_from(">IIBB", body)
            assert (depth, colours) == (8, 2)
        data += body if kind == b"IDAT" else b""
        position += length + 12
    raw, size = zlib.decompress(data), 3 * width + 1
    row = bytes(3 * width)
    for begin in range(0, len(raw), size):
        row = _unfiltered(raw[begin], raw[begin + 1 : begin + size], row)
        yield row


def _unfiltered(kind: int, given: bytes, above: bytes) -> bytes:
    row = bytearray(3)  # what is left of the first pixel
    corner = bytes(3) + above
    for index, value in enumerate(given):
        left, up, before = row[index], above[index], corner[index]
        guess = (0, left, up, (left + up) // 2, 0)[kind] if kind != 4 else _paeth(left, up, before)
        row.append((value + guess) & 255)
    return bytes(row[3:])


def _paeth(left: int, up: int, corner: int) -> int:
    near = left + up - corner
    return min((left, up, corner), key=lambda one: abs(near - one))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    if amount(usual=False, quick=True):
        pytest.skip("starts a browser three times; `make test` does")
    return Browser(tmp_path_factory.mktemp("browser"))


def test_hostile_text_makes_no_element(browser: Browser) -> None:
    found = browser.dom(page_of(hostile_node(), title=ATTACK))
    assert "<script" not in found
    assert "<img" not in found
    assert "<title>pwned" not in found
    assert found.count("<svg") > 10


def test_lines_have_the_colours_of_their_results(browser: Browser) -> None:
    objects = [table(), chain("p", "postrouting", "nat", prio=100), rule("p", {"masquerade": None})]
    to_other_node = match(DADDR, {"prefix": {"addr": "10.244.2.0", "len": 24}})
    node = Node(snapshot([*objects, chain("f", "forward"), rule("f", to_other_node, DROP)]))
    pixels = browser.pixels(page_of(node), "--window-size=1400,620", "--force-device-scale-factor=0.5")
    coloured = {pixels[index : index + 3] for index in range(0, len(pixels), 3)}
    assert {GOOD, WRONG} <= coloured
    assert DARK_PAPER not in coloured


def test_a_dark_desktop_gets_a_dark_page(browser: Browser) -> None:
    dark = ("--window-size=400,100", "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    pixels = browser.pixels(page_of(Node(snapshot())), *dark)
    assert pixels[:3] == DARK_PAPER
