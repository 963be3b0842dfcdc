"""Makes one HTML page of a node: its hooks with the programs that own rules there, and flows as lines through them.

Pure. The page needs no network, no script and no other file, and its policy forbids them. Each flow is a `details`
element: a click on its line opens the rules that decided. All text of other programs is escaped by `markup`.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from flanneld_masq.model import SLOTS, Family
from flanneld_masq.packet_path.evaluate import Fate, Node, Outcome, Result
from flanneld_masq.packet_path.flows import FlowResult, Judgement, Source
from flanneld_masq.packet_path.state import Step
from flanneld_masq.report.hooks import Board, Column, Station
from flanneld_masq.report.markup import Markup, joined, tag
from flanneld_masq.report.style import STYLE
from flanneld_masq.report.track import track
from flanneld_masq.report.wording import MAX_OUTCOMES, UNKNOWN_OWNER, is_rule, outcome_text, packet_text, result_text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Look(enum.Enum):
    """The style of a row: the class of its colour, and a sign for readers who cannot distinguish colours."""

    GOOD = ("good", "\u2713")
    WRONG = ("wrong", "\u2717")
    MAY = ("may", "?")
    INTENDED = ("may", "!")
    SKIPPED = ("skipped", "\u2013")


_LOOKS = {
    Judgement.AS_WANTED: Look.GOOD,
    Judgement.WRONG: Look.WRONG,
    Judgement.MAY: Look.MAY,
    Judgement.SKIPPED: Look.SKIPPED,
}
_FATES = {
    Fate.DELIVERED: (Look.GOOD, "delivered"),
    Fate.DROPPED: (Look.WRONG, "dropped"),
    Fate.MAY: (Look.MAY, "may be delivered"),
}
_INTENDED = "stopped, as a firewall may intend"
_LEGEND = (
    "Signs on a line: \u2715 dropped or rejected, \u21c4 translated, ? cannot be evaluated, so the packet may go on or "
    "not. Click a line for the rules that decided."
)


@dataclass(frozen=True, **SLOTS)
class Line:
    """A packet's row. `look` and `words` say the same. `why` says what is wrong, or why nothing was followed."""

    family: Family
    title: str
    look: Look
    words: str
    why: str = ""
    wanted: Source = Source.ANY
    result: Optional[Result] = None
    deciding: tuple[Step, ...] = ()


def of_flow(flow: FlowResult) -> Line:
    """Return the row of a flow, or of its answer."""
    title = f"{flow.flow.value}: the answer" if flow.answer else flow.flow.value
    steps = tuple(cause.step for cause in flow.causes) or (flow.result.deciders if flow.result else ())
    look, words = _LOOKS[flow.judgement], flow.judgement.value
    if look is Look.WRONG and not flow.flow.essential and flow.result and flow.result.fate is Fate.DROPPED:
        look, words = Look.INTENDED, _INTENDED
    return Line(flow.family, title, look, words, flow.why, flow.wanted, flow.result, steps)


def of_result(result: Result) -> Line:
    """Return the row of a packet of which nothing is wanted: its colour says only if it is delivered."""
    title = f"{result.packet.src} to {result.packet.dst}"
    look, words = _FATES[result.fate]
    return Line(result.packet.family, title, look, words, result.why_not, result=result, deciding=result.deciders)


def page(node: Node, lines: Sequence[Line], *, title: str, about: Iterable[str] = ()) -> str:
    """Return the page. `about` are the lines at its top: the node, the time, the versions."""
    families = [family for family in Family if any(line.family is family for line in lines)] or list(Family)
    body = (
        tag("h1", title),
        *(tag("p", line, class_="about") for line in about),
        tag("p", _LEGEND, class_="legend"),
        *(_section(node, family, [line for line in lines if line.family is family]) for family in families),
        *_notes(node),
    )
    head = (
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", STYLE),
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}\n"


def _badge(look: Look, text: str) -> Markup:
    name, sign = look.value
    return tag("b", f"{sign} {text}", " ", class_=f"badge {name}")


# ---- a family


def _section(node: Node, family: Family, lines: Sequence[Line]) -> Markup:
    board = Board(node, family)
    counts = Counter((line.look, line.words) for line in lines)
    badges = (_badge(look, f"{count} {words}") for (look, words), count in counts.items())
    rows = [_row(board, line, opened=line.look is Look.WRONG or len(lines) == 1) for line in lines]
    return tag(
        "section",
        tag("h2", f"{family} ", *badges),
        tag("div", _header(board), *rows, class_="board"),
        *(() if rows else (tag("p", "No flow is known: no subnet file names this family."),)),
    )


def _header(board: Board) -> Markup:
    label = tag("div", "Hooks in the order of a packet, with each chain in the kernel's order:", class_="label")
    return tag("div", label, tag("div", *map(_column, board.columns), class_="hooks"), class_="row head")


def _column(column: Column) -> Markup:
    more = (tag("li", f"and {column.more} more"),) if column.more else ()
    content = tag("ol", *map(_station, column.stations), *more)
    none = tag("p", "no chain", class_="none")
    return tag("div", tag("h3", column.hook.value), content if column.stations else none)


def _station(station: Station) -> Markup:
    base = station.base
    owners = [tag("i", owner or UNKNOWN_OWNER, class_=None if owner else "unknown") for owner in station.owners]
    rules = f"{len(base.chain)} rule{'s' * (len(base.chain) != 1)}, policy {base.policy.value}"
    where = f"{base.table} {base.chain.name}"
    nothing = not len(base.chain) and station.owners == ("",)
    return tag(
        "li",
        tag("b", where),
        tag("small", f"priority {station.priority}{', nat' if base.nat else ''}; {rules}"),
        *(() if nothing else owners),
    )


# ---- a row


def _row(board: Board, line: Line, *, opened: bool) -> Markup:
    result = line.result
    words = result_text(board.node, result) if result is not None else line.why
    label = tag("div", tag("strong", line.title), _badge(line.look, line.words), tag("small", words), class_="label")
    drawn = track(board, result) if result is not None else tag("span", "not followed", class_="none")
    summary = tag("summary", label, tag("div", drawn, class_="track"), class_=f"row {line.look.value[0]}")
    return tag("details", summary, _details(board.node, line), open=opened)


def _details(node: Node, line: Line) -> Markup:
    if line.result is None:
        return tag("div", tag("p", line.why or "no packet was followed"), class_="more")
    return tag(
        "div",
        tag("p", packet_text(line.result.packet)),
        *(() if line.wanted is Source.ANY else (tag("p", f"The source that must arrive: {line.wanted.value}."),)),
        *((tag("p", tag("b", "Why: "), line.why),) if line.why else ()),
        *_outcomes(node, line.result, line.deciding),
        class_="more",
    )


def _outcomes(node: Node, result: Result, deciding: Sequence[Step]) -> Iterator[Markup]:
    for outcome in result.outcomes[:MAX_OUTCOMES]:
        yield tag("p", "End: ", tag("b", outcome_text(node, result.packet, outcome)))
        yield _steps(node, outcome, deciding)
    if len(result.outcomes) > MAX_OUTCOMES:
        yield tag("p", f"There are {len(result.outcomes) - MAX_OUTCOMES} more ends.")


def _steps(node: Node, outcome: Outcome, deciding: Sequence[Step]) -> Markup:
    if not outcome.steps:
        return tag("p", "No rule stopped, changed or translated it.", class_="none")
    return tag("ol", *(_step(node, step, decided=step in deciding) for step in outcome.steps), class_="steps")


def _step(node: Node, step: Step, *, decided: bool) -> Markup:
    place = step.place
    if not is_rule(place):
        return tag("li", f"{step.effect.value} by {place.table}: ", tag("code", place.text), class_="decided")
    number = f"rule {place.number} of " if place.number else ""
    handle = f", handle {place.handle}" if place.handle else ""
    jumps = (tag("small", "reached by ", " \u2192 ".join(map(str, step.jumps))),) if step.jumps else ()
    return tag(
        "li",
        f"{step.hook.value}: {step.effect.value}{f' ({step.detail})' if step.detail else ''} by ",
        f"{number}{place.chain} in {place.table}{handle} ",
        tag("i", node.owner(step) or UNKNOWN_OWNER),
        tag("b", " \u2190 decides") if decided else "",
        tag("code", place.text),
        *((tag("small", "comment: ", place.comment),) if place.comment else ()),
        *jumps,
        class_="decided" if decided else None,
    )


def _notes(node: Node) -> Iterator[Markup]:
    """Yield what the page cannot show."""
    beside = (f"Not evaluated, although it has chains at hooks: {name}." for name in node.ruleset.beside)
    unread = (f"Could not be read: {line}" for line in node.snapshot.unread)
    notes = [tag("li", note) for note in (*beside, *unread)]
    if notes:
        yield tag("h2", "Not shown")
        yield joined((tag("ul", *notes),))
