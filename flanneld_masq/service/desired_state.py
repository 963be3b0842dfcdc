"""Builds the desired state from settings, subnet files, net-conf.json and plugins; for daemon, commands and doctor."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from pathlib import Path

from flanneld_masq.errors import ConfigError, MasqError, PluginError
from flanneld_masq.inputs.leases import NO_RULES, Leases, News
from flanneld_masq.inputs.net_conf import flannel_uses_nftables
from flanneld_masq.model import SLOTS, Network, Settings
from flanneld_masq.plugin_loader import Plugins
from flanneld_masq.reconcile.values import DesiredState


class OnError(enum.Enum):
    """The treatment of a subnet file that cannot be used. A net-conf.json that cannot be used counts as missing."""

    KEEP = "keep"  # its last good lease stays, and the error is returned
    RAISE = "raise"


@dataclass(frozen=True, **SLOTS)
class Refreshed:
    """The result of a refresh. `changed` is True if the desired state is another one than after the refresh before.

    `because` is the reason if it is known: other networks of plugins, with everything else as it was. `net_conf` is a
    message about a net-conf.json that cannot be used; empty if it can, or is missing.
    """

    changed: bool
    news: tuple[News, ...] = ()
    net_conf: str = ""
    because: str = ""


def _because(before: DesiredState | None, now: DesiredState | None) -> str:
    if before is None or now is None or before.exceptions == now.exceptions:
        return ""
    return "networks of plugins changed" if before == replace(now, exceptions=before.exceptions) else ""


class DesiredStateBuilder:
    """Reads the inputs and keeps what they last said. A plugin that fails keeps its last networks in any case."""

    def __init__(self, settings: Settings, plugins: Plugins, on_error: OnError = OnError.KEEP) -> None:
        self.settings = settings
        self.leases = Leases(settings.subnet_files)
        self._plugins = plugins
        self._on_error = on_error
        self._networks: tuple[Network, ...] = ()
        self._plugin_files: tuple[str, ...] = ()
        self._plugin_failures: tuple[PluginError, ...] = ()
        self._last: DesiredState | None = None
        self._uses_nftables = False
        self._net_conf_trouble = ""

    @property
    def troubles(self) -> tuple[str, ...]:
        """The problems of the input files, and of plugins that give networks, now."""
        failures = map(str, self._plugin_failures)
        return (*self.leases.troubles, *filter(None, (self._net_conf_trouble, *failures)))

    def current(self) -> DesiredState | None:
        """Return what is to hold now; None until there is a lease."""
        leases = self.leases.good
        if not leases:
            return None
        return DesiredState(self.settings, leases, self._networks, self._uses_nftables, self.leases.complete)

    def required(self) -> DesiredState:
        """Return what is to hold now. Raises MasqError if there is no lease."""
        desired = self.current()
        if desired is None:
            raise MasqError(self._why_none())
        return desired

    def follow(self, settings: Settings) -> None:
        """Use these settings from now on. The leases of files that they do not name are dropped."""
        self.settings = settings
        self.leases.follow(settings.subnet_files)

    def watched_files(self) -> tuple[str, ...]:
        """Return the files whose changes matter: the subnet files, and those that plugins name. Patterns are among
        them."""
        self._plugin_files, _ = self._plugins.watched_files(self.settings)
        return (*self.settings.subnet_files, *self._plugin_files)

    def ask_plugins(self) -> tuple[PluginError, ...]:
        """Ask the plugins for their networks again, and for their files. Return the failures."""
        _, unwatched = self._plugins.watched_files(self.settings)
        self._networks, failures = self._plugins.non_masquerade_cidrs(self.settings)
        self._plugin_failures = (*unwatched, *failures)
        return self._plugin_failures

    def file_changed(self) -> tuple[PluginError, ...]:
        """Ask the plugins again, if any named a file: it may be the one that changed. Return the failures."""
        return self.ask_plugins() if self._plugin_files else ()

    def refresh(self) -> Refreshed:
        """Read net-conf.json and the subnet files again. Raises SubnetFileError for OnError.RAISE."""
        before, trouble = self._last, self._read_net_conf()
        news = self.read_leases()
        self._last = self.current()
        return Refreshed(self._last != before, news, trouble, _because(before, self._last))

    def read_leases(self) -> tuple[News, ...]:
        """Read the subnet files alone again. Raises SubnetFileError for OnError.RAISE."""
        news = self.leases.refresh()
        errors = [item.error for item in news if item.error is not None]
        if errors and self._on_error is OnError.RAISE:
            raise errors[0]
        return news

    def _why_none(self) -> str:
        """Return why there is no desired state: no subnet file yet, or none that can be used."""
        if any(trouble.endswith(NO_RULES) for trouble in self.leases.troubles):
            return "; ".join(self.leases.troubles)
        return (
            f"there is no subnet file yet ({', '.join(self.settings.subnet_files)}), so there is nothing to do; "
            f"flannel writes it when it starts, and --subnet-file names another"
        )

    def _read_net_conf(self) -> str:
        self._uses_nftables, self._net_conf_trouble = read_net_conf(self.settings)
        return self._net_conf_trouble


def read_net_conf(settings: Settings) -> tuple[bool, str]:
    """Return if flannel runs in its nftables mode, and a message if its net-conf.json cannot be used."""
    try:
        return flannel_uses_nftables(Path(settings.net_conf)), ""
    except ConfigError as error:
        return False, f"{error}; taken as if it were not there"
