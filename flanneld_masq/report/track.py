"""Draws a packet's way through the hooks as a line of SVG, with a mark at each rule that did something. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flanneld_masq.packet_path.evaluate import Outcome, Result
from flanneld_masq.packet_path.rules import Hook
from flanneld_masq.packet_path.state import Effect, Step
from flanneld_masq.report.hooks import MARGIN, WIDTH, Board
from flanneld_masq.report.markup import Markup, tag
from flanneld_masq.report.wording import MAX_OUTCOMES, decider, result_text

HEIGHT = 46  # of the line of one outcome
_Y = 30  # of the line within it
_RIGHT = MARGIN + WIDTH * len(Hook)
_MAX_LABEL = 22  # characters
_SIGNS = {Effect.DROPPED: "\u2715", Effect.REJECTED: "\u2715", Effect.TRANSLATED: "\u21c4", Effect.MAY: "?"}


def track(board: Board, result: Result) -> Markup:
    """Return the lines of a packet, one for each end that it may have."""
    shown = result.outcomes[:MAX_OUTCOMES]
    lines = (_line(board, result, outcome, HEIGHT * index + _Y) for index, outcome in enumerate(shown))
    height, width = HEIGHT * len(shown), _RIGHT + MARGIN
    return tag(
        "svg",
        tag("title", result_text(board.node, result)),
        *lines,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
    )


def passed(result: Result, outcome: Outcome) -> tuple[Hook, ...]:
    """Return the hooks that the packet reaches, in order."""
    if not result.packet.iif:
        way: tuple[Hook, ...] = (Hook.OUTPUT, Hook.POSTROUTING)
    elif (outcome.delivered and not outcome.device) or _end(outcome) is Hook.INPUT:
        way = (Hook.PREROUTING, Hook.INPUT)
    else:
        way = (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING)
    last = _end(outcome)
    if last is Hook.INGRESS:
        return (last,)
    if last is Hook.EGRESS:
        return (*way, last)
    if outcome.delivered or last not in way:
        return way if outcome.delivered else way[:1]
    return way[: way.index(last) + 1]


def _end(outcome: Outcome) -> Hook | None:
    """Return the hook at which the packet is lost."""
    return outcome.steps[-1].hook if outcome.steps and not outcome.delivered else None


def _line(board: Board, result: Result, outcome: Outcome, y: float) -> Markup:
    way = passed(result, outcome)
    begin = MARGIN - 12 if result.packet.iif else board.column(way[0]).left
    stop = _stop(board, outcome, way)
    kind = "may" if result.why_not or len(result.outcomes) > 1 else "sure"
    marks = [_mark(board, step, y) for step in outcome.steps if step.effect in _SIGNS]
    quiet = [_dot(board, step, y) for step in outcome.steps if step.effect not in _SIGNS]
    return tag(
        "g",
        tag("text", result.packet.iif or "node", x=begin - 6, y=y + 4, class_="end", text_anchor="end"),
        *_segments(board, way, begin, stop, y),
        *(
            tag("circle", tag("title", _title(station.base.table, station.base.chain.name)), cx=station.x, cy=y, r=3)
            for hook in way
            for station in board.column(hook).stations
            if station.x <= stop
        ),
        *_arrow(outcome, stop, y),
        *quiet,
        *marks,
        class_=kind,
    )


def _stop(board: Board, outcome: Outcome, way: tuple[Hook, ...]) -> float:
    """Return where the line ends."""
    if not outcome.delivered and outcome.steps:
        return board.x_of(outcome.steps[-1])
    return board.column(way[-1]).left + WIDTH + (12 if outcome.device else -12)


def _segments(board: Board, way: tuple[Hook, ...], begin: float, stop: float, y: float) -> Iterator[Markup]:
    """Yield a thick line through each hook that the packet passes, and a thin one past those between."""
    yield tag("line", x1=begin, y1=y, x2=stop, y2=y, class_="past")
    for hook in way:
        left = board.column(hook).left
        first, last = (begin if hook is way[0] else left), min(left + WIDTH, stop)
        if last > first:
            yield tag("line", x1=first, y1=y, x2=stop if hook is way[-1] else last, y2=y, class_="way")


def _arrow(outcome: Outcome, x: float, y: float) -> Iterator[Markup]:
    if outcome.delivered:
        yield tag("path", d=f"M{x} {y - 6} l9 6 l-9 6 z", class_="head")
        yield tag("text", outcome.device or "node", x=x + 13, y=y + 4, class_="end")


def _mark(board: Board, step: Step, y: float) -> Markup:
    """Return the sign of a rule that decided, with its program above."""
    x = board.x_of(step)
    name = decider(board.node, step)
    label = name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}\u2026"
    content = (
        tag("title", f"{step.effect.value}: {step.place}"),
        tag("circle", cx=x, cy=y, r=9),
        tag("text", _SIGNS[step.effect], x=x, y=y + 4, text_anchor="middle", class_="sign"),
    )
    texts = () if step.effect is Effect.MAY else (tag("text", label, x=x, y=y - 14, text_anchor="middle"),)
    return tag("g", *content, *texts, class_=f"mark {step.effect.value}")


def _dot(board: Board, step: Step, y: float) -> Markup:
    """Return the sign of a rule that changed the packet or let it go on."""
    return tag("circle", tag("title", f"{step.effect.value}: {step.place}"), cx=board.x_of(step), cy=y, r=5)


def _title(table: str, chain: str) -> str:
    return f"{chain} in {table}"
