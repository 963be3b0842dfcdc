"""The start of every command: settings, plugins, state directory, and a reconciler for each family."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flanneld_masq import plugin_loader
from flanneld_masq.cli.running import directory_of
from flanneld_masq.cli.settings import load_settings
from flanneld_masq.errors import ConfigError, MasqError
from flanneld_masq.hookspecs import Host
from flanneld_masq.inputs import config, config_files
from flanneld_masq.model import SLOTS, Family, Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.process import ProcessRunner
from flanneld_masq.reconcile.reconciler import Reconciler
from flanneld_masq.reconcile.selection import missing_family
from flanneld_masq.reconcile.values import DesiredState
from flanneld_masq.ruleset.backend_choice import check_names
from flanneld_masq.service.desired_state import DesiredStateBuilder, OnError
from flanneld_masq.state_directory import StateDirectory

if TYPE_CHECKING:
    from flanneld_masq.service.service_user import Unreadable

_Result = TypeVar("_Result")


@dataclass(frozen=True, **SLOTS)
class Session:
    """The start of a command. `config` is the path of the configuration file; `wrong` is what is wrong with the file,
    and then the settings are defaults."""

    settings: Settings
    plugins: Plugins
    directory: StateDirectory
    root: Path = Path("/")
    wrong: ConfigError | None = None
    config: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace) -> Session:
        """Raises ConfigError for an invalid configuration."""
        settings = load_settings(options)
        plugins = plugin_loader.load()
        check_names(settings, plugins.backends, plugins.failures)
        directory = _directory(settings.state_directory, options)
        return cls(settings, plugins, directory, config=options.config)

    @classmethod
    def despite(cls, options: argparse.Namespace) -> Session:
        """Return a session, with default settings if the file is wrong: the daemon may run with its previous ones."""
        try:
            return cls.of(options)
        except ConfigError as error:
            if options.backend or options.subnet_file:
                raise
            directory = _directory(config.state_directory(Path(options.config)), options)
            return cls(Settings(), plugin_loader.load(), directory, wrong=error, config=options.config)

    def unreadable(self) -> tuple[Unreadable, ...]:
        """Return the input files that the user of the service may not read, as far as root can find out."""
        from flanneld_masq.service.service_user import unreadable  # most commands ask for none

        named = (*self.settings.subnet_files, *self.settings.masquerade.ip_masq_agent_files)
        return tuple(unreadable((self.config, *_drop_ins(self.config), *named), ProcessRunner()))

    def builder(self, on_error: OnError) -> DesiredStateBuilder:
        return DesiredStateBuilder(self.settings, self.plugins, on_error)

    def desired_state(self) -> DesiredState:
        """Return what the inputs ask for now. Raise MasqError if there is no lease or a subnet file is refused.

        Print failures of plugins and a net-conf.json that cannot be used.
        """
        builder = self.builder(OnError.RAISE)
        for failure in (*self.plugins.failures, *builder.ask_plugins()):
            warn(str(failure))
        warn(builder.refresh().net_conf)
        return builder.required()

    def host(self) -> Host:
        """Return this machine, with the daemon that runs on it."""
        holder = self.directory.holder()
        return Host(ProcessRunner(), self.root, holder.pid, daemon_elsewhere=holder.elsewhere)

    def reconcilers(self) -> Iterator[Reconciler]:
        """Yield a reconciler for each family, in the order of `Family`."""
        host = self.host()
        for family in Family:
            yield self._reconciler(family, host)

    def each(self, call: Callable[[Reconciler], _Result]) -> tuple[list[_Result], list[MasqError]]:
        """Call for each family. An error of one family does not stop the other."""
        results: list[_Result] = []
        errors: list[MasqError] = []
        for reconciler in self.reconcilers():
            try:
                results.append(call(reconciler))
            except MasqError as error:
                errors.append(error)
        warn(self.directory.trouble)
        return results, errors

    def _reconciler(self, family: Family, host: Host) -> Reconciler:
        missing = missing_family(self.root, family)
        backends = self.plugins.create(family, host)
        return Reconciler(family, backends, self.directory, missing=lambda: missing)


def _directory(configured: str, options: argparse.Namespace) -> StateDirectory:
    return directory_of(StateDirectory(Path(configured)), os.path.realpath(options.config))


def _drop_ins(path: str) -> Iterator[str]:
    """Yield the directory of the drop-ins, and the files in it as far as they can be listed."""
    yield str(Path(path).with_name(config_files.DIRECTORY))
    with contextlib.suppress(ConfigError):
        yield from map(str, config_files.drop_ins(Path(path)))


def warn(message: str) -> None:
    """Print a message that does not stop the command; nothing for an empty one."""
    if message:
        print(f"flanneld-masq: {message}", file=sys.stderr)
