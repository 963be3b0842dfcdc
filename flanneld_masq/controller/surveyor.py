"""Surveys the rules of flannel and of the CNI plugin for one family, and removes flannel's if the settings say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from flanneld_masq.controller.report import LogEntry, SurveyReport
from flanneld_masq.controller.step_watch import StepWatch
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
            f"flannel's rules came back after each of {self.removals} removals, so a flanneld still writes them; they "
            f"are not removed any more: start flanneld with {flags}, then reload flanneld-masq"
        )


class _Found(NamedTuple):
    removed: Removed
    surveys: Surveys
    effects: Effects


class Surveyor:
    """Surveys one family after a pass. The worker's thread reads the kernel."""

    def __init__(self, report: SurveyReport, reconciler: Reconciler, worker: StepWatch) -> None:
        self._report = report
        self._reconciler = reconciler
        self._worker = worker
        self._takeover = Takeover()

    async def survey(self, desired: DesiredState, *, changed: bool, reloaded: bool) -> tuple[LogEntry, ...]:
        """Look for rules of flannel and of the CNI plugin. Our rules are in place by now, so flannel's may go.

        `changed` is True if the desired state is new. A removal that failed is not tried again before that. Return
        what is to be logged.
        """
        if reloaded:
            self._takeover = Takeover()
        wanted = desired.settings.takeover_remove_flannel_rules
        take_over = wanted and self._takeover.goes_on and (changed or not self._report.failure)
        try:
            found = await self._worker.call(lambda: self._read(desired, take_over))
        except MasqError as error:
            return tuple(self._report.failed(error))
        self._takeover.removals += 1 if found.removed else 0
        surveys = {backend.name: survey for backend, survey in found.surveys}
        self._takeover.found(item for survey in surveys.values() for item in survey.flannel)
        stopped = self._takeover.stopped if wanted else ""
        return tuple(self._report.surveyed(found.removed, surveys, found.effects, stopped))

    def _read(self, desired: DesiredState, take_over: bool) -> _Found:
        """In the worker's thread."""
        backends = self._reconciler.selector.usable()
        removed = remove_flannel_rules(backends, desired.leases) if take_over else ()
        surveys = survey_backends(backends, desired.leases)
        return _Found(removed, surveys, flannel_effects(surveys, desired))
