"""Draws the panels of the dashboard, one below the other in two columns, as Grafana would. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flanneld_masq.model import SLOTS

from ..bench.svg import document, line_element, text_element

WIDTH, HEIGHT, GAP = 460, 210, 20
LEFT, TOP, BOTTOM, LEGEND = 64, 34, 24, 15
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8856a7", "#555")
STATES = {"synced": "#009e73", "waiting": "#56b4e9", "degraded": "#d55e00", "contended": "#e69f00", "stopped": "#555"}
_STYLE = (
    "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:11px;fill:#222}"
    ".title{font-size:14px;font-weight:600}.note{fill:#555}.grid{stroke:#ddd}.axis{stroke:#555}"
)
_SCALES = {"percentunit": 100.0, "bytes": 1e-6}
_SIGNS = {"s": " s", "percentunit": " %", "bytes": " MB", "cps": " /s"}

Values = Sequence[tuple[float, float]]  # time in seconds since the beginning, value


@dataclass(frozen=True, **SLOTS)
class Plot:
    """A panel with its data: the values of each series by its name. `kind` and `unit` are Grafana's words."""

    title: str
    kind: str
    unit: str
    series: Mapping[str, Values]


def render(plots: Sequence[Plot], seconds: float, title: str, notes: Sequence[str] = ()) -> str:
    """Return the whole picture, with times from 0 to `seconds`."""
    head = 34 + 16 * len(notes)
    rows = math.ceil(len(plots) / 2)
    width, height = 2 * WIDTH + 3 * GAP, head + rows * (HEIGHT + GAP)
    body = [text_element(GAP, 24, title, "title")]
    body += [text_element(GAP, 42 + 16 * number, note, "note") for number, note in enumerate(notes)]
    for number, plot in enumerate(plots):
        x, y = GAP + number % 2 * (WIDTH + GAP), head + number // 2 * (HEIGHT + GAP)
        body.append(f'<g transform="translate({x} {y})">{"".join(_panel(plot, seconds))}</g>')
    return document(title, width, height, _STYLE, body)


def _panel(plot: Plot, seconds: float) -> Iterator[str]:
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>'
    yield text_element(8, 20, plot.title, "title")
    bottom = HEIGHT - BOTTOM - LEGEND * math.ceil(len(plot.series) / 2)
    for tick in range(0, int(seconds) + 1, 30):
        x = _x(tick, seconds)
        yield line_element(x, bottom, x, bottom + 4, 'class="axis"')
        yield text_element(x, bottom + 15, f"{tick} s", anchor="middle")
    yield line_element(LEFT, bottom, WIDTH - 10, bottom, 'class="axis"')
    if not plot.series:
        yield text_element(WIDTH / 2, HEIGHT / 2, "no data: nothing to report", "note", anchor="middle")
    elif plot.kind == "state-timeline":
        yield from _timeline(plot, seconds, bottom)
    else:
        yield from _curves(plot, seconds, bottom)


def _timeline(plot: Plot, seconds: float, bottom: float) -> Iterator[str]:
    for number, (name, values) in enumerate(plot.series.items()):
        colour = next((colour for state, colour in STATES.items() if state in name), COLOURS[0])
        for start, end in _spans(values):
            x, width = _x(start, seconds), _x(end, seconds) - _x(start, seconds)
            yield f'<rect x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{bottom - TOP:.1f}" fill="{colour}"/>'
        yield from _legend(number, name, colour, bottom)


def _spans(values: Values) -> Iterator[tuple[float, float]]:
    """Yield when a series was there: a second without a value ends a span."""
    start = last = None
    for time, _ in values:
        if start is None or last is None or time - last > 1.5:
            if start is not None and last is not None:
                yield start, last + 1
            start = time
        last = time
    if start is not None and last is not None:
        yield start, last + 1


def _curves(plot: Plot, seconds: float, bottom: float) -> Iterator[str]:
    scale = _SCALES.get(plot.unit, 1.0)
    top = _round_up(scale * max((value for values in plot.series.values() for _, value in values), default=1.0))
    for part in range(5):
        y = bottom - part / 4 * (bottom - TOP)
        yield line_element(LEFT, y, WIDTH - 10, y, 'class="grid"')
        yield text_element(LEFT - 6, y + 4, f"{top * part / 4:.4g}{_SIGNS.get(plot.unit, '')}", anchor="end")
    for number, (name, values) in enumerate(plot.series.items()):
        colour = COLOURS[number % len(COLOURS)]
        for run in _unbroken(values):
            path = " ".join(
                f"{_x(time, seconds):.1f},{bottom - value * scale / top * (bottom - TOP):.1f}" for time, value in run
            )
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        yield from _legend(number, name, colour, bottom)


def _unbroken(values: Values) -> Iterator[Values]:
    run: list[tuple[float, float]] = []
    for time, value in values:
        if run and time - run[-1][0] > 1.5:
            yield run
            run = []
        run.append((time, value))
    yield run


def _legend(number: int, name: str, colour: str, bottom: float) -> Iterator[str]:
    x, y = 10 + number % 2 * (WIDTH - 10) / 2, bottom + 28 + LEGEND * (number // 2)
    yield f'<rect x="{x:.1f}" y="{y - 8:.1f}" width="10" height="10" fill="{colour}"/>'
    yield text_element(x + 15, y + 1, name)


def _x(time: float, seconds: float) -> float:
    return LEFT + time / seconds * (WIDTH - 10 - LEFT)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in (1, 2, 4, 8, 10) if step * decade >= value * 0.999)
