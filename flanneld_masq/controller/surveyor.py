"""Surveys the rules of flannel and of the CNI plugin for one family, and removes flannel's if the settings say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.report import SurveyReport
from flanneld_masq.errors import MasqError
from flanneld_masq.model import Item, ItemKind
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.survey import flannel_effects, remove_flannel_rules, survey_backends
from flanneld_masq.reconcile.values import DesiredState, Effects, Removed, Surveys
from flanneld_masq.ruleset.flannel_rules import FLAGS

MAX_REMOVALS = 3


@dataclass
class Takeover:
    """Counts the removals of flannel's rules since the last reload. After MAX_REMOVALS that a flanneld has undone no
    more follow."""

    removals: int = 0
    stopped: str = ""  # why no more follow

    @property
    def goes_on(self) -> bool:
        return self.removals < MAX_REMOVALS

    def found(self, items: Iterable[Item]) -> None:
        """Note flannel's objects that a survey has found."""
        tables = {"" if item.kind is ItemKind.TABLE else item.place.split()[0] for item in items}
        if self.goes_on or self.stopped or not tables:
            return
        flags = " and ".join(flag for table, flag in FLAGS.items() if table in tables or "" in tables)
        self.stopped = (
            f"flannel's rules came back after each of {self.removals} removals: flanneld still writes them, so the "
            f"daemon stops removing them; start flanneld with {flags}, then reload flanneld-masq"
        )


class Found(NamedTuple):
    """The result of one survey. `failure` says what could not be done and why; the rest is empty then."""

    removed: Removed = ()
    surveys: Surveys = ()
    effects: Effects = MappingProxyType({})
    failure: str = ""


class Surveyor:
    """Surveys one family after a pass: `read` in the worker's thread, `take` in that of the event loop."""

    def __init__(self, report: SurveyReport, reconciler: Reconciler) -> None:
        self._report = report
        self._reconciler = reconciler
        self._takeover = Takeover()

    def reloaded(self) -> None:
        """Begin to count removals again."""
        self._takeover = Takeover()

    def read(self, desired: DesiredState, *, changed: bool) -> Found:
        """Look for rules of flannel and of the CNI plugin. The daemon's rules are in place by now, so flannel's may go.

        `changed` is True if the desired state is new. A removal that failed is not tried again before that.
        """
        wanted = desired.settings.takeover_remove_flannel_rules
        take_over = wanted and self._takeover.goes_on and (changed or not self._report.failure)
        backends = self._reconciler.selector.usable()
        try:
            removed = remove_flannel_rules(backends, desired.leases) if take_over else ()
        except MasqError as error:
            return Found(failure=f"cannot remove flannel's rules: {error}")
        try:
            surveys = survey_backends(backends, desired.leases)
        except MasqError as error:
            return Found(failure=f"cannot list foreign rules: {error}")
        return Found(removed, surveys, flannel_effects(surveys, desired))

    def take(self, desired: DesiredState, found: Found) -> tuple[LogEntry, ...]:
        """Take a survey into the status; return what is to be logged."""
        if found.failure:
            return tuple(self._report.failed(found.failure))
        self._takeover.removals += 1 if found.removed else 0
        surveys = {backend.name: survey for backend, survey in found.surveys}
        self._takeover.found(item for survey in surveys.values() for item in survey.flannel)
        stopped = self._takeover.stopped if desired.settings.takeover_remove_flannel_rules else ""
        return tuple(self._report.surveyed(found.removed, surveys, found.effects, stopped))
