"""A chart as SVG, by hand: series over named places on the x axis, and a logarithmic y axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Callable, Optional

from flanneld_masq.model import SLOTS

WIDTH, HEIGHT = 920, 480
LEFT, RIGHT, TOP, BOTTOM = 84, 280, 84, 64
_STYLE = (
    "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:13px;fill:#222}"
    ".title{font-size:17px;font-weight:600}.note{fill:#555;font-size:12px}"
    ".grid{stroke:#ddd}.axis{stroke:#555}"
)
_STEP = 20  # between the lines of the legend


@dataclass(frozen=True, **SLOTS)
class Point:
    """`high` is the upper end of the whisker, a vertical line from the mark; None for no whisker."""

    value: float
    high: Optional[float] = None


@dataclass(frozen=True, **SLOTS)
class Series:
    """`points` by the number of their place on the x axis."""

    name: str
    colour: str
    dashed: bool
    points: Mapping[int, Point]


@dataclass(frozen=True, **SLOTS)
class Chart:
    title: str
    notes: Sequence[str]
    x_label: str
    y_label: str
    places: Sequence[str]
    series: Sequence[Series]
    ticks: Callable[[float], str]  # names a power of ten on the y axis

    def render(self) -> str:
        return document(self.title, WIDTH, HEIGHT, _STYLE, (*self._frame(), *self._all_series(), *self._legend()))

    def _decades(self) -> tuple[int, int]:
        values = [value for each in self.series for point in each.points.values() for value in _ends(point)]
        return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def _x(self, place: float) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(self.places)

    def _y(self, value: float) -> float:
        low, high = self._decades()
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def _frame(self) -> Iterator[str]:
        yield text_element(LEFT, 26, self.title, "title")
        for number, line in enumerate(self.notes):
            yield text_element(LEFT, 46 + 16 * number, line, "note")
        low, high = self._decades()
        for decade in range(low, high + 1):
            y = self._y(10.0**decade)
            yield line_element(LEFT, y, WIDTH - RIGHT, y, 'class="grid"')
            yield text_element(LEFT - 8, y + 4, self.ticks(10.0**decade), anchor="end")
        bottom = HEIGHT - BOTTOM
        yield line_element(LEFT, bottom, WIDTH - RIGHT, bottom, 'class="axis"')
        yield line_element(LEFT, TOP, LEFT, bottom, 'class="axis"')
        for place, name in enumerate(self.places):
            yield line_element(self._x(place), bottom, self._x(place), bottom + 5, 'class="axis"')
            yield text_element(self._x(place), bottom + 20, name, anchor="middle")
        yield text_element(self._x(len(self.places) / 2 - 0.5), bottom + 46, self.x_label, anchor="middle")
        middle = (TOP + bottom) / 2
        turned = f'transform="rotate(-90 20 {middle:.1f})" text-anchor="middle"'
        yield f'<text x="20" y="{middle:.1f}" {turned}>{escape(self.y_label)}</text>'

    def _all_series(self) -> Iterator[str]:
        for number, each in enumerate(self.series):
            places = [(self._x(place), point) for place, point in sorted(each.points.items())]
            path = " ".join(f"{x:.1f},{self._y(point.value):.1f}" for x, point in places)
            dashes = ' stroke-dasharray="6 4"' if each.dashed else ""
            yield f'<polyline points="{path}" fill="none" stroke="{each.colour}" stroke-width="1.5"{dashes}/>'
            for x, point in places:
                yield from self._point(x, point, each, 5 + 3 * number)

    def _point(self, x: float, point: Point, of: Series, half_width: float) -> Iterator[str]:
        """The whiskers of one place cover each other; their ends differ in width."""
        y = self._y(point.value)
        if point.high is not None:
            end = self._y(point.high)
            stroke = f'stroke="{of.colour}" stroke-width="2"'
            yield line_element(x, y, x, end, stroke)
            yield line_element(x - half_width, end, x + half_width, end, stroke)
        yield _mark(x, y, of)

    def _legend(self) -> Iterator[str]:
        x = WIDTH - RIGHT + 20
        for number, each in enumerate(self.series):
            y = TOP + 10 + number * _STEP
            dashes = ' stroke-dasharray="6 4"' if each.dashed else ""
            yield line_element(x, y, x + 30, y, f'stroke="{each.colour}" stroke-width="1.5"{dashes}')
            yield _mark(x + 15, y, each)
            yield text_element(x + 38, y + 4, each.name)


def document(title: str, width: int, height: int, style: str, body: Iterable[str]) -> str:
    """Return a picture of so many pixels on white, with its style sheet and the elements of `body`."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(title)}</title>\n'
        f'<style>{style}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _ends(point: Point) -> tuple[float, ...]:
    return (point.value,) if point.high is None else (point.value, point.high)


def _mark(x: float, y: float, of: Series) -> str:
    if of.dashed:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{of.colour}"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{of.colour}"/>'


def line_element(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def text_element(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'
