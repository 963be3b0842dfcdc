"""A recorded terminal as SVG that plays once: each line appears when it did. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from flanneld_masq.model import SLOTS

COLUMNS = 112
TYPING_SECONDS = 0.04  # for a character
READING_SECONDS = 1.2  # before the next command
_CHARACTER, _LINE, _MARGIN, _SIZE = 7.85, 18, 16, 13
_COLOURS = {"prompt": "#7ee787", "comment": "#8b949e", "output": "#e6edf3"}
_STYLE = """\
text { font: %(size)dpx ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }
%(colours)s
.shown { animation: appear 1ms both }
@keyframes appear { from { opacity: 0 } to { opacity: 1 } }
@media (prefers-reduced-motion: reduce) { .shown { animation: none } }
"""


@dataclass(frozen=True, **SLOTS)
class Step:
    """A command that was typed, what it printed, and how many seconds it took. A comment begins with `#`."""

    command: str
    output: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, **SLOTS)
class Line:
    """One line of the terminal, and the second at which it appears."""

    text: str
    kind: str
    at: float


def lines(steps: Iterable[Step]) -> Iterator[Line]:
    """Yield the lines of a terminal of COLUMNS columns. Long lines of an output are wrapped between words."""
    now = 0.0
    for step in steps:
        comment = step.command.startswith("#")
        typed, kind = (step.command, "comment") if comment else (f"$ {step.command}", "prompt")
        yield from (Line(part, kind, now) for part in _wrapped(typed))
        now += len(step.command) * TYPING_SECONDS + step.seconds
        for line in step.output.splitlines():
            yield from (Line(part, "output", now) for part in _wrapped(line))
        now += READING_SECONDS


def _wrapped(line: str) -> list[str]:
    parts = textwrap.wrap(line, COLUMNS, subsequent_indent="    ", drop_whitespace=False)
    return [part.rstrip() for part in parts] or [""]


def drawn(steps: Sequence[Step], title: str) -> str:
    """Return the SVG. `title` describes it to those who cannot see it."""
    shown = list(lines(steps))
    width = round(COLUMNS * _CHARACTER) + 2 * _MARGIN
    height = len(shown) * _LINE + 2 * _MARGIN
    colours = "\n".join(f".{kind} {{ fill: {colour} }}" for kind, colour in _COLOURS.items())
    texts = "\n".join(
        f'<text class="shown {line.kind}" style="animation-delay: {line.at:.2f}s" x="{_MARGIN}"'
        f' y="{_MARGIN + _SIZE + number * _LINE}">{escape(line.text, quote=False)}</text>'
        for number, line in enumerate(shown)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img">\n'
        f"<title>{escape(title, quote=False)}</title>\n"
        f"<style>\n{_STYLE % {'size': _SIZE, 'colours': colours}}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>\n{texts}\n</svg>\n'
    )
