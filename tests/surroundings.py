"""The inputs and outputs of a FamilyLoop, as a test gives and takes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.hookspecs import Event
from flanneld_masq.kernel.ruleset_events import Transaction
from flanneld_masq.model import Family, Settings
from flanneld_masq.reconcile.values import DesiredState


@dataclass
class Surroundings:
    """Desired states, feed and publisher at once. `said` has each kind of event with the state published by then."""

    report: FamilyReport
    desired: DesiredState | None
    settings: Settings = field(default_factory=Settings)
    events: list[tuple[Event, int]] = field(default_factory=list)
    published: str = ""
    said: list[tuple[str, str]] = field(default_factory=list)
    queued: tuple[tuple[Transaction, ...], bool] = ((), False)
    heard: int | None = None

    def __post_init__(self) -> None:
        self.settings = self.desired.settings if self.desired is not None else self.settings

    def current(self) -> DesiredState | None:
        return self.desired

    def drain(self) -> None: ...

    def queue(self, *transactions: Transaction, lost: bool = False) -> None:
        self.queued = ((*self.queued[0], *transactions), lost or self.queued[1])
        self.heard = transactions[-1].generation if transactions else self.heard

    def take(self, family: Family) -> tuple[tuple[Transaction, ...], bool]:
        queued, self.queued = self.queued, ((), False)
        return queued

    def publish(self) -> None:
        self.published = self.report.shown_state.value

    def emit(self, entries: Iterable[LogEntry]) -> None:
        for entry in entries:
            self.events.append((entry.event, entry.level))
            self.said.append((entry.event.kind, self.published))

    def kinds(self) -> list[str]:
        return [event.kind for event, _ in self.events]

    def last(self, kind: str) -> Event:
        return next(event for event, _ in reversed(self.events) if event.kind == kind)
