"""Where the daemon's status and events go: journal, plugins, systemd, D-Bus, status.json and the metrics file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

from flanneld_masq import __version__
from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.status import State, Status
from flanneld_masq.controller.status import stopped as all_stopped
from flanneld_masq.hookspecs import Event
from flanneld_masq.model import Family
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.service import journal
from flanneld_masq.service.bus_service import BusService
from flanneld_masq.service.desired_state import DesiredStateBuilder
from flanneld_masq.service.exporter import Exporter
from flanneld_masq.service.sd_notify import Notifier
from flanneld_masq.service.state_times import StateTimes
from flanneld_masq.service.status_files import StatusFiles
from flanneld_masq.state_directory import StateDirectory

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
        self._times = StateTimes()
        self._loaded = datetime.now(timezone.utc)  # when the settings in force were read
        self._files = StatusFiles(directory)
        self._exporter = Exporter(plugins)
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
        leases = self._desired.leases.good
        named = [family for family in self._reports if any(lease.of(family) for lease in leases)]
        families = {family: report.status(named=family in named) for family, report in self._reports.items()}
        status = Status(
            _state(families[family].state for family in named),
            version=__version__,
            pid=os.getpid(),
            config=self.config,
            config_loaded=self._loaded,
            reload_refused=bool(self.refused),
            leases=leases,
            troubles=(
                *self._desired.troubles,
                *filter(None, (self.refused, *self._files.failures, *self._exporter.failures)),
            ),
            plugin_failures=tuple(map(str, self._plugins.failures)),
            families=families,
        )
        return self._times.dated(all_stopped(status) if stopped else status, datetime.now(timezone.utc))

    def publish(self, *, stopped: bool = False) -> None:
        """Give the status to systemd and D-Bus, and write it if anything in it is new."""
        settled = not self._desired.leases.good or all(report.settled for report in self._reports.values())
        if not stopped and (settled or any(report.stuck for report in self._reports.values())):
            self.emit(self._exporter.follow(self._desired.settings))
        status = self._write(stopped=stopped)
        self._exporter.publish(status)
        self._notifier.publish(status, settled=settled)
        self._bus.publish(status, settled=settled, enabled=self._desired.settings.dbus_enabled)

    def configuration_loaded(self) -> None:
        """Record that new settings are in force, and when they were read."""
        self.refused, self._loaded = "", datetime.now(timezone.utc)
        self._files.write_again()

    def close(self) -> None:
        """Leave the files as they are when the process ends, and end the export of metrics."""
        self.emit(self._exporter.stop())
        self._files.close()

    def _write(self, *, stopped: bool) -> Status:
        """Write the status if that is due; return it, with what could not be written among the troubles."""
        settings = self._desired.settings
        status = self.status(stopped=stopped)
        if not self._files.is_due(status, settings.reconcile.resync_seconds):
            return status
        self._files.write_metrics(status, settings.metrics_textfile)
        self._files.write_status(self.status(stopped=stopped))
        status = self.status(stopped=stopped)
        if self._files.is_due(status, settings.reconcile.resync_seconds):
            self._files.write_status(status)  # that the state directory can be written again, for example
        self._log_failures()
        return status

    def _log_failures(self) -> None:
        new, over = self._files.news()
        for failure in new:
            self.log(LogEntry(Event("unwritable", failure), logging.ERROR))
        if over:
            self.log(notice("state directory, status and metrics are written again"))


def _state(states: Iterable[State]) -> State:
    """Return the state of the daemon, from those of the families that a subnet file names.

    Nobody asked for another family, so that one cannot make the node unhealthy.
    """
    present = set(states)
    return next((state for state in _WORST_FIRST if state in present), State.WAITING)
