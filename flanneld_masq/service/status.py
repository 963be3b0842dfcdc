"""Where the daemon's status and events go: journal, plugins, systemd, D-Bus, status.json and the metrics file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from flanneld_masq import __version__
from flanneld_masq.controller.report import FamilyReport, LogEntry, notice
from flanneld_masq.controller.status import State, Status, to_json
from flanneld_masq.errors import MasqError
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import Family
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.service import journal, prometheus
from flanneld_masq.service.bus_service import BusService
from flanneld_masq.service.desired_state import DesiredStateBuilder
from flanneld_masq.service.sd_notify import Notifier
from flanneld_masq.state_directory import StateDirectory, replace_file

_WORST_FIRST = (State.DEGRADED, State.CONTENDED, State.WAITING, State.SYNCED)


class StatusPublisher:
    """Builds the daemon's status from the reports of the families, and publishes what is new in it."""

    def __init__(
        self,
        config: str,
        desired: DesiredStateBuilder,
        reports: Mapping[Family, FamilyReport],
        plugins: Plugins,
        notifier: Notifier,
        bus: BusService,
        directory: StateDirectory,
    ) -> None:
        self.config = config
        self.refused = ""  # why the last reload was refused
        self._desired = desired
        self._reports = reports
        self._plugins = plugins
        self._notifier = notifier
        self._bus = bus
        self._directory = directory
        self._written: Status | None = None
        self._unwritable = ""  # why status or metrics could not be written last
        self._logged_once: set[str] = set()

    def emit(self, entries: Iterable[LogEntry]) -> None:
        """Log each entry, and pass its event to the plugins and to D-Bus."""
        for entry in entries:
            self.log(entry)

    def log(self, entry: LogEntry) -> None:
        """Log one entry likewise."""
        if entry.once:
            if entry.event.message not in self._logged_once:
                self._logged_once.add(entry.event.message)
                journal.emit(entry.event, entry.level)
            return
        journal.emit(entry.event, entry.level)
        self._bus.tell(entry.event)
        for failure in self._plugins.tell(entry.event):
            self.log(LogEntry(Event("plugin-failed", str(failure)), logging.ERROR, once=True))

    def status(self, *, stopped: bool = False) -> Status:
        """Return the status of this moment."""
        return Status(
            State.STOPPED if stopped else self._state(),
            version=__version__,
            pid=os.getpid(),
            config=self.config,
            leases=self._desired.leases.good,
            troubles=(*self._desired.leases.troubles, *filter(None, (self.refused,))),
            plugin_failures=tuple(map(str, self._plugins.failures)),
            families={family: report.status() for family, report in self._reports.items()},
        )

    def publish(self, *, stopped: bool = False) -> None:
        """Give the status to systemd and D-Bus, and write it if anything in it is new."""
        status = self.status(stopped=stopped)
        settled = not status.leases or all(report.settled for report in self._reports.values())
        self._notifier.publish(status, settled=settled)
        self._bus.publish(status, settled=settled, enabled=self._desired.settings.dbus_enabled)
        if status != self._written:
            self._write(status)

    def write_again(self) -> None:
        """Have the next status written even if it is the same: the settings may want it in another place."""
        self._written = None

    def _write(self, status: Status) -> None:
        textfile = self._desired.settings.metrics_textfile
        try:
            self._directory.write_status(to_json(status))
            if textfile:
                replace_file(Path(textfile), prometheus.exposition(status))
        except MasqError as error:
            self._on_write(str(error))
        else:
            self._written = status
            self._on_write("")

    def _on_write(self, failure: str) -> None:
        if failure and failure != self._unwritable:
            self.log(LogEntry(Event("unwritable", failure), logging.ERROR))
        elif self._unwritable and not failure:
            self.log(notice("status and metrics are written again"))
        self._unwritable = failure

    def _state(self) -> State:
        if not self._desired.leases.good:
            return State.WAITING
        states = {report.state for report in self._reports.values()}
        return next(state for state in _WORST_FIRST if state in states)
