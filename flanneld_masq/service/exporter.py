"""Hands the daemon's metrics to plugins that export them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flanneld_masq.controller.log_entry import LogEntry
from flanneld_masq.controller.status import State, Status
from flanneld_masq.hookspecs import Event, Metric
from flanneld_masq.model import Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.service import prometheus


class Exporter:
    """Keeps the status from which a thread of a plugin may compute metrics. `failures` are those of the plugins now."""

    def __init__(self, plugins: Plugins) -> None:
        self.failures: tuple[str, ...] = ()
        self._plugins = plugins
        self._status = Status(State.WAITING)  # replaced as a whole: another thread reads it

    def publish(self, status: Status) -> None:
        self._status = status

    def metrics(self) -> Sequence[Metric]:
        """Return the metrics of this moment. For any thread."""
        return prometheus.metrics(self._status)

    def follow(self, settings: Settings) -> tuple[LogEntry, ...]:
        """Let the plugins export as the settings say. Return what is to be logged: failures that are new."""
        before = self.failures
        self.failures = tuple(map(str, self._plugins.export(settings, self.metrics)))
        return tuple(_entry(failure) for failure in self.failures if failure not in before)

    def stop(self) -> tuple[LogEntry, ...]:
        return tuple(_entry(str(failure)) for failure in self._plugins.stop())


def _entry(failure: str) -> LogEntry:
    return LogEntry(Event("plugin-failed", failure), logging.ERROR)
