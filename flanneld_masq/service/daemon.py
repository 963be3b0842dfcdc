"""The daemon: it starts and stops the loops, and takes signals, reloads and D-Bus calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flanneld_masq import __version__, footprint
from flanneld_masq.controller.attribution import OwnPorts
from flanneld_masq.controller.family_loop import FamilyLoop
from flanneld_masq.controller.log_entry import LogEntry, notice
from flanneld_masq.controller.report import FamilyReport
from flanneld_masq.controller.schedule import RESYNC
from flanneld_masq.controller.status import Status
from flanneld_masq.errors import AlreadyRunning, ConfigError, MasqError, StateError
from flanneld_masq.hangup import HANGUP
from flanneld_masq.hookspecs import Event, Host
from flanneld_masq.inputs.file_watch import FileWatch
from flanneld_masq.model import Family, Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.reconcile.values import Repair
from flanneld_masq.reconcile.writer import OwnCommits
from flanneld_masq.ruleset.backend_choice import check_names
from flanneld_masq.service import journal
from flanneld_masq.service.bus_service import BusService
from flanneld_masq.service.desired_state import DesiredStateBuilder
from flanneld_masq.service.fd_store import FdStore
from flanneld_masq.service.input_log import input_entries, plugin_entries
from flanneld_masq.service.lock_feed import LockFeed
from flanneld_masq.service.ruleset_feed import RulesetFeed
from flanneld_masq.service.sd_notify import Notifier, Watchdog
from flanneld_masq.service.status import StatusPublisher
from flanneld_masq.state_directory import StateDirectory

OTHER_SECONDS = 30.0  # a service waits so long for another instance to exit, instead of being restarted over and over
SLIM_AFTER_SECONDS = 5.0  # everything is loaded by then
BUS_AFTER_SECONDS = 2.0  # the bus is joined by then, also if the first pass still hangs


class _Feeds(NamedTuple):
    """The kernel's reports about other programs."""

    ruleset: RulesetFeed
    lock: LockFeed


class Daemon:
    """Owns the loops and their inputs and outputs. `load` reads the settings from the file `config`."""

    def __init__(
        self, load: Callable[[], Settings], plugins: Plugins, root: Path = Path("/"), *, config: str = ""
    ) -> None:
        HANGUP.forget()
        settings = load()
        check_names(settings, plugins.backends, plugins.failures)
        self._load = load
        self._plugins = plugins
        self._runners = {family: ProcessRunner() for family in Family}
        self._notifier = Notifier()
        self._directory = StateDirectory(Path(settings.state_directory))
        self._desired = DesiredStateBuilder(settings, plugins)
        self._bus = BusService(self, lambda entry: self._publisher.log(entry))
        self._watch: FileWatch | None = None
        self._resync: asyncio.TimerHandle | None = None
        reports = {family: FamilyReport(family) for family in Family}
        self._publisher = StatusPublisher(
            os.path.realpath(config), self._desired, reports, plugins, self._notifier, self._bus, self._directory
        )
        commits = OwnCommits()
        feed = RulesetFeed(self._on_ruleset_events, self._publisher.log)
        sockets = FdStore(self._notifier)
        hosts = (Host(self._runners[family], root, os.getpid(), sockets) for family in reports)
        self._loops = tuple(self._family_loop(*each, commits, feed) for each in zip(reports.values(), hosts))
        self._feeds = _Feeds(feed, LockFeed(self._loops, self._publisher.log, root))

    @property
    def settings(self) -> Settings:
        return self._desired.settings

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT. Raises AlreadyRunning, StateError, ConfigError."""
        with contextlib.ExitStack() as held:
            self._hold_directory(held)
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            HANGUP.pass_on(lambda: _call_in(loop, self._on_hangup))
            for family_loop in self._loops:
                held.callback(family_loop.close)  # after the last log entry, for a pass may still go on
            for number in (signal.SIGTERM, signal.SIGINT):
                held.callback(loop.remove_signal_handler, number)  # a second signal does not wait for that pass
            self._publisher.log(LogEntry(Event("started", f"flanneld-masq {__version__} started, pid {os.getpid()}")))
            for failure in self._plugins.failures:
                self._publisher.log(LogEntry(Event("plugin-failed", str(failure)), logging.ERROR))
            self._watch = FileWatch(lambda: _call_in(loop, self._on_file_event), self._on_unwatched)
            self._watch.start(self._desired.watched_files())
            self._feeds.lock.start()
            held.callback(self._feeds.lock.stop)
            self._feeds.ruleset.start()
            self._publisher.emit(plugin_entries(self._desired.ask_plugins()))
            self._refresh("start")
            tasks = [asyncio.create_task(family_loop.run()) for family_loop in self._loops]
            self._resync_later()
            watchdog = Watchdog(self._notifier, self._hung, self._on_hung)
            watchdog.start()
            join = loop.call_later(BUS_AFTER_SECONDS, self._join_bus)
            slim = loop.call_later(SLIM_AFTER_SECONDS, footprint.forget_the_start)
            try:
                await _until(stop, tasks)
            finally:
                join.cancel()
                slim.cancel()
                watchdog.stop()
                await self._wind_down(tasks)

    def status(self) -> Status:
        return self._publisher.status()

    def reload(self) -> None:
        """Read the configuration again; a bad one changes nothing. Raises ConfigError."""
        self._notifier.reloading()
        try:
            settings = self._load()
            check_names(settings, self._plugins.backends, self._plugins.failures)
        except ConfigError as error:
            self._publisher.refused = f"{error}; the running settings stay"
            self._publisher.log(LogEntry(Event("reload-refused", self._publisher.refused), logging.ERROR))
            self._publisher.publish()
            raise
        if settings.state_directory != self.settings.state_directory:
            message = f"state_directory stays {self.settings.state_directory} until a restart"
            self._publisher.log(notice(message, logging.WARNING))
            settings = dataclasses.replace(settings, state_directory=self.settings.state_directory)
        self._publisher.configuration_loaded()
        journal.set_level(settings.log_level)
        self._desired.follow(settings)
        if self._watch is not None:
            self._watch.follow(self._desired.watched_files())
        self._publisher.emit(plugin_entries(self._desired.ask_plugins()))
        self._publisher.log(LogEntry(Event("reloaded", "configuration reloaded")))
        if settings.dbus_enabled:
            self._join_bus()
        else:
            self._bus.leave()
        self._resync_later()
        for family_loop in self._loops:
            family_loop.mark("reload", reprobe=True)
        self._refresh("reload")

    async def reconcile(self) -> tuple[Repair, ...]:
        """Run a pass over all families now; return what was repaired.

        Raises MasqError if one of them fails, or if there is no lease: then it says why.
        """
        if self._desired.leases.troubles:
            self._desired.required()
        asked = [family_loop.look("Reconcile called") for family_loop in self._loops]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        errors = {str(answer): answer for answer in answers if isinstance(answer, BaseException)}
        if len(errors) > 1:
            raise MasqError("; ".join(errors))
        for error in errors.values():
            raise error
        return tuple(repair for future in asked for repair in future.result().repairs)

    def on_external_hint(self, reason: str) -> None:
        """Run a pass soon: another program may have changed the ruleset."""
        for family_loop in self._loops:
            family_loop.mark(reason, urgent=False)

    def _hold_directory(self, held: contextlib.ExitStack) -> None:
        """Hold the instance lock. A directory that other users can write makes the configuration invalid."""
        try:
            held.enter_context(self._directory.instance())
        except StateError as error:
            raise ConfigError(self._publisher.config, "state_directory", str(error)) from error
        except AlreadyRunning as error:
            if not self._notifier.listened_to:
                raise
            self._notifier.starting(f"waiting for the other instance to exit: {error}")
            held.enter_context(self._directory.instance(OTHER_SECONDS))

    def _family_loop(self, report: FamilyReport, host: Host, commits: OwnCommits, feed: RulesetFeed) -> FamilyLoop:
        family, runner = report.family, self._runners[report.family]
        backends = self._plugins.create(family, host)
        reconciler = Reconciler(
            family, backends, self._directory, missing=lambda: missing_family(host.root, family), commits=commits
        )
        return FamilyLoop(
            report,
            reconciler,
            self._desired,
            feed,
            self._publisher,
            running=lambda: runner.running,
            ports=OwnPorts(self._runners.values()),
        )

    def _refresh(self, reason: str) -> None:
        """Read the input files; mark the families if the desired state is another one now."""
        refreshed = self._desired.refresh()
        self._publisher.emit(input_entries(refreshed, self._desired.leases.good))
        if refreshed.changed:
            for family_loop in self._loops:
                family_loop.mark(refreshed.because or reason)
        self._publisher.publish()

    def _resync_later(self) -> None:
        """Read all inputs at each resync, for an event of a file may be lost, and plugins have none."""
        if self._resync is not None:
            self._resync.cancel()
        seconds = self.settings.reconcile.resync_seconds
        self._resync = asyncio.get_running_loop().call_later(seconds, self._resync_inputs)

    def _resync_inputs(self) -> None:
        self._resync_later()
        self._take_directory()
        self._feeds.lock.refresh()
        self._publisher.emit(plugin_entries(self._desired.ask_plugins()))
        self._watch_again()
        self._refresh(RESYNC)

    def _take_directory(self) -> None:
        """Try again to take an instance lock that could not be opened before."""
        try:
            self._directory.take_instance()
        except (AlreadyRunning, StateError) as error:
            self._publisher.log(notice(str(error), logging.WARNING, once=True))

    def _on_ruleset_events(self) -> None:
        for family_loop in self._loops:
            family_loop.receive()

    def _on_file_event(self) -> None:
        self._watch_again(prune=False)
        self._publisher.emit(plugin_entries(self._desired.file_changed()))
        self._refresh("subnet file changed")

    def _watch_again(self, *, prune: bool = True) -> None:
        """Watch the directories that are there now."""
        if self._watch is not None:
            self._watch.refresh(prune=prune)

    def _on_unwatched(self, message: str) -> None:
        self._publisher.log(notice(message, logging.WARNING))

    def _on_hangup(self) -> None:
        HANGUP.forget()
        with contextlib.suppress(ConfigError):  # it was logged
            self.reload()

    def _join_bus(self) -> None:
        self._bus.join(enabled=self.settings.dbus_enabled)

    def _hung(self) -> str:
        """Return the families whose loop hangs; empty if there is none."""
        return ", ".join(str(each.family) for each in self._loops if each.hangs(self._runners[each.family].moved))

    def _on_hung(self, families: str, seconds: float) -> None:
        message = f"{families}: a pass hangs; if that lasts, systemd's watchdog kills the daemon in {seconds:.0f} s"
        self._publisher.log(LogEntry(Event("hanging", message), logging.ERROR))

    async def _wind_down(self, tasks: list[asyncio.Task[None]]) -> None:
        started = time.monotonic()
        HANGUP.ignore()
        self._notifier.stopping()
        self._feeds.ruleset.stop()
        for task in tasks:
            task.cancel()
        for runner in self._runners.values():
            runner.stop()
        self._directory.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.settings.stop_remove_rules:
            await self._remove_rules()
        else:
            await asyncio.gather(*(family_loop.release() for family_loop in self._loops))
        if self._watch is not None:
            self._watch.stop()
        if self._resync is not None:
            self._resync.cancel()
        self._publisher.publish(stopped=True)
        self._publisher.close()
        self._bus.leave()
        await self._bus.left()
        kept = "rules removed" if self.settings.stop_remove_rules else "rules stay in place"
        message = f"stopped in {(time.monotonic() - started) * 1000:.0f} ms; {kept}"
        self._publisher.log(LogEntry(Event("stopped", message)))

    async def _remove_rules(self) -> None:
        for runner in self._runners.values():
            runner.resume()
        self._directory.resume()
        await asyncio.gather(*(family_loop.remove() for family_loop in self._loops))


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for the signal. A task that ends by itself has a bug; its exception ends the daemon."""
    stopped = asyncio.create_task(stop.wait())
    waiting: set[asyncio.Task[Any]] = {stopped, *tasks}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in tasks:
        if task.done():
            task.result()


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Let the event loop make a call that another thread asks for. After the loop has ended, drop the call."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
