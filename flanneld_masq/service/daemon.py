"""The daemon: its inputs (configuration, subnet files, signals), its loops, and what it says of itself."""

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
from typing import TYPE_CHECKING, Any

from flanneld_masq import __version__, footprint
from flanneld_masq.controller.family_loop import RESYNC, FamilyLoop
from flanneld_masq.errors import AlreadyRunning, ConfigError, MasqError, StateError
from flanneld_masq.hookspecs import Event, Host
from flanneld_masq.inputs import net_conf
from flanneld_masq.inputs.file_watch import FileWatch
from flanneld_masq.inputs.leases import Change, Leases, News, as_data
from flanneld_masq.kernel.ruleset_events import RulesetEvents
from flanneld_masq.model import Family, Network, Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.reconcile.values import DesiredState, Repair
from flanneld_masq.reconcile.writer import OwnCommits
from flanneld_masq.ruleset import backend_choice
from flanneld_masq.service import journal, prometheus
from flanneld_masq.service.sd_notify import Notifier, Watchdog
from flanneld_masq.state_directory import StateDirectory, replace_file

if TYPE_CHECKING:
    from flanneld_masq.dbus.publisher import BusPublisher

EVENT_PAUSE_SECONDS = 0.02
OTHER_SECONDS = 30.0  # that a service waits for another instance to end, instead of being started again and again
SLIM_AFTER_SECONDS = 5.0  # all that is loaded is loaded by then
BUS_AFTER_SECONDS = 2.0  # by then the bus is joined, also if the first pass still hangs


class Daemon:
    """Owns the settings, the leases and the loops. `load` reads the configuration anew, which is that of the file
    `config`."""

    def __init__(
        self, load: Callable[[], Settings], plugins: Plugins, root: Path = Path("/"), *, config: str = ""
    ) -> None:
        self.settings = load()
        backend_choice.check_names(self.settings, plugins.backends, plugins.failures)
        self._load = load
        self._config = os.path.realpath(config)
        self._plugins = plugins
        self._root = root
        self._runners = {family: ProcessRunner() for family in Family}
        self._notifier = Notifier()
        self._store = StateDirectory(Path(self.settings.state_directory))
        self._leases = Leases(self.settings.subnet_files)
        self._refused = ""  # what was wrong at the last reload
        self._published: dict[str, Any] = {}
        self._unwritable = ""  # why status or metrics could not be written last
        self._said: set[str] = set()
        self._loops: tuple[FamilyLoop, ...] = ()
        self._commits = OwnCommits()
        self._events: RulesetEvents | None = None
        self._publisher: BusPublisher | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._bus_tried = False
        self._exceptions = self._plugin_networks()
        self._flannel_uses_nftables = False

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises AlreadyRunning, StateError, ConfigError."""
        with contextlib.ExitStack() as held:
            self._hold_directory(held)
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            loop.add_signal_handler(signal.SIGHUP, self._hangup)
            self._loops = tuple(self._family_loop(family) for family in Family)
            for found in self._loops:
                held.callback(found.close)  # after the last word, for a pass may still go on
            for number in (signal.SIGTERM, signal.SIGINT):
                held.callback(loop.remove_signal_handler, number)  # who asks once more does not wait for it
            self.event(Event("started", f"flanneld-masq {__version__} started, pid {os.getpid()}"))
            for failure in self._plugins.failures:
                self.event(Event("plugin-failed", str(failure)), logging.ERROR)
            self._watch = FileWatch(lambda: _call_in(loop, self._file_event), self._unwatched)
            self._watch.start(self.settings.subnet_files)
            self._listen()
            self.refresh("start")
            self.publish()
            tasks = [asyncio.create_task(found.run()) for found in self._loops]
            watchdog = Watchdog(self._notifier, self._hung, self._tell_hung)
            watchdog.start()
            join = loop.call_later(BUS_AFTER_SECONDS, self._join_bus)
            slim = loop.call_later(SLIM_AFTER_SECONDS, footprint.forget_the_start)
            try:
                await self._until(stop, tasks)
            finally:
                join.cancel()
                slim.cancel()
                watchdog.stop()
                await self._wind_down(tasks)

    def _hold_directory(self, held: contextlib.ExitStack) -> None:
        """As the one daemon. Where that is not allowed, trying again is of no use, as with any wrong configuration."""
        try:
            held.enter_context(self._store.instance())
        except StateError as error:
            if error.lasting:
                raise ConfigError(self._config, "state_directory", str(error)) from error
            raise
        except AlreadyRunning as error:
            if not self._notifier.listened_to:
                raise
            self._notifier.starting(f"waiting for its end: {error}")
            held.enter_context(self._store.instance(OTHER_SECONDS))

    def desired_state(self) -> DesiredState | None:
        """What is to hold now; None until there is a lease."""
        if not self._leases.good:
            return None
        return DesiredState(self.settings, self._leases.good, self._exceptions, self._flannel_uses_nftables)

    def resync(self, family: Family) -> None:
        """The timer of one family: it looks anyway, the others only if the input changed."""
        for found in self._loops:
            if found.family is family:
                found.mark(RESYNC)
        self._exceptions = self._plugin_networks()
        self._watch.refresh()
        self.refresh(RESYNC)

    def reload(self) -> None:
        """Read the configuration anew; a bad one changes nothing, and raises ConfigError."""
        self._notifier.reloading()
        try:
            settings = self._load()
            backend_choice.check_names(settings, self._plugins.backends, self._plugins.failures)
        except ConfigError as error:
            self._refused = f"{error}; the running settings stay"
            self.event(Event("reload-refused", self._refused), logging.ERROR)
            self.publish()
            raise
        if settings.state_directory != self.settings.state_directory:
            message = f"state_directory stays {self.settings.state_directory} until a restart"
            self.event(Event("notice", message), logging.WARNING)
            settings = dataclasses.replace(settings, state_directory=self.settings.state_directory)
        self.settings, self._refused = settings, ""
        self._published = {}  # whose status is the same may be wanted elsewhere now
        journal.set_level(settings.log_level)
        self._exceptions = self._plugin_networks()
        self._leases.follow(settings.subnet_files)
        self._watch.follow(settings.subnet_files)
        self.event(Event("reloaded", "configuration read anew"))
        if settings.dbus_enabled:
            self._join_bus()
        else:
            self._leave_bus()
        for found in self._loops:
            found.mark("reload", reprobe=True)
        self.refresh("reload")

    async def reconcile(self) -> tuple[Repair, ...]:
        """Look at all families now; what was repaired. Raises MasqError if one of them fails."""
        asked = [found.look("Reconcile called") for found in self._loops]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        errors = {str(found): found for found in answers if isinstance(found, BaseException)}
        if len(errors) > 1:
            raise MasqError("; ".join(errors))
        for error in errors.values():
            raise error
        return tuple(repair for found in asked for repair in found.result().repairs)

    def heard(self, reason: str) -> None:
        """Somebody says that the ruleset may have changed."""
        for found in self._loops:
            found.mark(reason, urgent=False)

    def refresh(self, reason: str) -> None:
        """Read the input files; mark the families if they say something new."""
        before = self.desired_state()
        self._flannel_uses_nftables = self._read_net_conf()
        for news in self._leases.refresh():
            self._tell(news)
        if self.desired_state() != before:
            for found in self._loops:
                found.mark(reason)
        self.publish()

    def event(self, event: Event, level: int = logging.INFO) -> None:
        journal.emit(event, level)
        if self._publisher is not None:
            self._publisher.tell(event)
        for failure in self._plugins.tell(event):
            self._say_once(Event("plugin-failed", str(failure)), logging.ERROR)

    def publish(self, *, stopped: bool = False) -> None:
        """Write status.json, if there is anything new in it, and tell systemd."""
        status = self.status() if not stopped else {**self.status(), "state": "stopped"}
        settled = not self._leases.good or all(found.settled for found in self._loops)
        self._notifier.publish(status, settled=settled)
        if self._publisher is not None:
            self._publisher.publish(status)
        elif settled and not self._bus_tried:
            self._bus_tried = True
            asyncio.get_running_loop().call_soon(self._join_bus)
        if status == self._published:
            return
        try:
            self._store.write_status(status)
            if self.settings.metrics_textfile:
                replace_file(Path(self.settings.metrics_textfile), prometheus.exposition(status))
        except MasqError as error:
            self._tell_writing(str(error))
        else:
            self._published = status
            self._tell_writing("")

    def _tell_writing(self, failure: str) -> None:
        if failure and failure != self._unwritable:
            self.event(Event("unwritable", failure), logging.ERROR)
        elif self._unwritable and not failure:
            self.event(Event("notice", "status and metrics are written again"))
        self._unwritable = failure

    def status(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "config": self._config,
            "state": self._state(),
            "leases": [as_data(lease) for lease in self._leases.good],
            "troubles": [*self._leases.troubles, *filter(None, (self._refused,))],
            "plugin_failures": [str(failure) for failure in self._plugins.failures],
            "families": {str(found.family): found.status() for found in self._loops},
        }

    def _state(self) -> str:
        states = {found.state for found in self._loops}
        if not self._leases.good:
            return "waiting"
        return next(state for state in ("degraded", "contended", "waiting", "synced") if state in states)

    def _family_loop(self, family: Family) -> FamilyLoop:
        backends = self._plugins.create(family, Host(self._runners[family], self._root))
        reconciler = Reconciler(
            family,
            backends,
            self._store,
            missing=lambda: missing_family(self._root, family),
            commits=self._commits,
        )
        return FamilyLoop(family, reconciler, self)

    def _listen(self) -> None:
        """Hear of each transaction on the ruleset. Without that, the resync alone finds what others change."""
        try:
            events = RulesetEvents()
        except MasqError as error:
            self.event(Event("notice", f"{error}; drift is found at the resync only"), logging.WARNING)
            return
        self._events = events
        self._hear()

    def _hear(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events.fileno(), self._ruleset_event)

    def _deafen(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

    def hear(self) -> None:
        """Tell the loops of what was committed until now."""
        transactions, lost = self._events.read() if self._events is not None else ((), False)
        for found in self._loops if transactions or lost else ():
            found.ruleset_changed(transactions, lost)

    def _ruleset_event(self) -> None:
        assert self._events is not None
        try:
            self.hear()
        except MasqError as error:
            self._say_once(Event("notice", f"{error}; the resync finds what was missed"), logging.WARNING)
        # the next ones within a moment are heard together: on a busy host that bounds what hearing costs
        asyncio.get_running_loop().call_soon(self._pause_hearing)  # behind the repair, which is on its way by then

    def _pause_hearing(self) -> None:
        if self._events is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._events.fileno())
            loop.call_later(EVENT_PAUSE_SECONDS, self._hear)

    def _hangup(self) -> None:
        with contextlib.suppress(ConfigError):  # which was told
            self.reload()

    def _join_bus(self) -> None:
        """After the first pass, for no rule shall wait for the bus or for what speaks to it."""
        if self._publisher is not None or not self.settings.dbus_enabled:
            return
        try:
            from flanneld_masq.dbus.publisher import BusPublisher
        except ImportError as error:
            message = f"{error}: no D-Bus service until python3-dbus-next is installed; all else works the same"
            self._say_once(Event("notice", message), logging.INFO)
        else:
            self._publisher = BusPublisher(self, lambda message: self.event(Event("notice", message)))

    def _leave_bus(self) -> None:
        if self._publisher is not None:
            self._leaving = asyncio.ensure_future(self._publisher.close())
            self._publisher = None

    def _file_event(self) -> None:
        self._watch.refresh()
        self.refresh("subnet file changed")

    def _unwatched(self, message: str) -> None:
        self.event(Event("notice", message), logging.WARNING)

    def _tell(self, news: News) -> None:
        if news.change is Change.REFUSED:
            self.event(Event("lease-refused", news.message), logging.ERROR)
        elif news.change is Change.VANISHED:
            known = any(lease.path == news.path for lease in self._leases.good)
            self.event(Event("waiting", news.message), logging.WARNING if known else logging.INFO)
        else:
            self.event(Event("lease-changed", news.message))
            self._tell_ipmasq(news.path)

    def _tell_ipmasq(self, path: str) -> None:
        if any(lease.path == path and lease.ipmasq for lease in self._leases.good):
            message = f"{path} says FLANNEL_IPMASQ=true: flanneld masquerades too; its rules agree with ours"
            self._say_once(Event("notice", message), logging.INFO)

    def _plugin_networks(self) -> tuple[Network, ...]:
        networks, failures = self._plugins.non_masquerade_cidrs(self.settings)
        for failure in failures:
            self._say_once(Event("plugin-failed", str(failure)), logging.ERROR)
        return networks

    def _read_net_conf(self) -> bool:
        try:
            return net_conf.flannel_uses_nftables(Path(self.settings.net_conf))
        except ConfigError as error:
            self._say_once(Event("notice", f"{error}; taken as if it were not there"), logging.WARNING)
            return self._flannel_uses_nftables

    def _say_once(self, event: Event, level: int) -> None:
        if event.message not in self._said:
            self._said.add(event.message)
            journal.emit(event, level)

    def _hung(self) -> str:
        """The families whose loop hangs; empty if there is none."""
        return ", ".join(str(found.family) for found in self._loops if found.hangs(self._runners[found.family].moved))

    def _tell_hung(self, families: str) -> None:
        seconds = self._notifier.watchdog_seconds or 0
        message = f"{families}: a pass hangs; unless it goes on, systemd's watchdog ends the daemon in {seconds:.0f} s"
        self.event(Event("hanging", message), logging.ERROR)

    async def _until(self, stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
        """A loop that ends by itself has a bug; its exception ends the daemon."""
        stopped = asyncio.create_task(stop.wait())
        waiting: set[asyncio.Task[Any]] = {stopped, *tasks}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in tasks:
            if task.done():
                task.result()

    async def _wind_down(self, tasks: list[asyncio.Task[None]]) -> None:
        started = time.monotonic()
        self._notifier.stopping()
        self._deafen()
        for task in tasks:
            task.cancel()
        for runner in self._runners.values():
            runner.stop()
        self._store.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.settings.stop_remove_rules:
            await self._remove_rules()
        self._watch.stop()
        self.publish(stopped=True)
        self._leave_bus()
        if self._leaving is not None:
            await self._leaving
        kept = "rules removed" if self.settings.stop_remove_rules else "rules stay in place"
        self.event(Event("stopped", f"stopped in {(time.monotonic() - started) * 1000:.0f} ms; {kept}"))

    async def _remove_rules(self) -> None:
        for runner in self._runners.values():
            runner.resume()
        self._store.resume()
        await asyncio.gather(*(found.remove() for found in self._loops))


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """From another thread; an event that comes after the loop ended is of no interest."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
