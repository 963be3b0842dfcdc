"""Finds the plugins, and stands between them and us: whoever raises is named, and stops nobody else."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar

import pluggy

from . import hookspecs
from .errors import MasqError, PluginError
from .hookspecs import ENTRY_POINT_GROUP, Backend, BackendType, Event, Host
from .model import BackendName, Change, Desired, Family, Group, Item, Network, Observation, Probe, Settings

Result = TypeVar("Result")


@dataclass
class Plugins:
    """The loaded plugins. `failures` holds what went wrong while loading, in the order it did."""

    manager: pluggy.PluginManager
    failures: list[PluginError] = field(default_factory=list)
    backends: dict[BackendName, BackendType] = field(default_factory=dict)
    owners: dict[BackendName, str] = field(default_factory=dict)
    _last_networks: dict[str, tuple[Network, ...]] = field(default_factory=dict)

    def create(self, family: Family, host: Host) -> dict[BackendName, Backend]:
        """Every backend for one family, in the order in which `auto` prefers them."""
        ordered = sorted(self.backends.values(), key=_preference)
        return {found.name: GuardedBackend(found, self.owners[found.name], family, host) for found in ordered}

    def non_masquerade_cidrs(self, settings: Settings) -> tuple[tuple[Network, ...], tuple[PluginError, ...]]:
        """What all plugins add, and who failed; of those that failed, their last good answer."""
        failures = []
        for name, answer in self._call("flanneld_masq_non_masquerade_cidrs", settings=settings):
            if isinstance(answer, PluginError):
                failures.append(answer)
            else:
                self._last_networks[name] = tuple(answer)
        networks = tuple(network for found in self._last_networks.values() for network in found)
        return networks, tuple(failures)

    def tell(self, event: Event) -> tuple[PluginError, ...]:
        """Tell all observers; who failed comes back."""
        answers = self._call("flanneld_masq_event", event=event)
        return tuple(answer for _, answer in answers if isinstance(answer, PluginError))

    def _call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Each implementation by itself, so that one that raises is known by name."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            name = str(implementation.plugin_name)
            try:
                answer = implementation.function(*(arguments[key] for key in implementation.argnames))
            except Exception as error:  # a plugin is foreign code: whatever it raises is its own failure
                answer = PluginError(name, hook, repr(error))
            yield name, answer


def load(extra: Mapping[str, object] | None = None) -> Plugins:
    """All plugins of all installed distributions, and `extra` ones by name, as a test may bring them."""
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs.HookSpecs)
    plugins = Plugins(manager)
    for name, entry_point in _entry_points().items():
        try:
            _register(plugins, name, entry_point.load())
        except Exception as error:  # importing a plugin runs foreign code
            plugins.failures.append(PluginError(name, "loading", repr(error)))
    for name, plugin in (extra or {}).items():
        _register(plugins, name, plugin)
    for name, answer in plugins._call("flanneld_masq_backends"):
        _add_backends(plugins, name, answer)
    return plugins


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """By name. The API to select a group differs between Python 3.9 and 3.10, this way works in both."""
    return {
        found.name: found
        for distribution in importlib.metadata.distributions()
        for found in distribution.entry_points
        if found.group == ENTRY_POINT_GROUP
    }


def _register(plugins: Plugins, name: str, plugin: object) -> None:
    try:
        plugins.manager.register(plugin, name)
        plugins.manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        if plugins.manager.has_plugin(name):
            plugins.manager.unregister(name=name)
        plugins.failures.append(PluginError(name, "registration", str(error)))


def _add_backends(plugins: Plugins, name: str, answer: Any) -> None:
    if isinstance(answer, PluginError):
        plugins.failures.append(answer)
        return
    for found in answer if isinstance(answer, Collection) else (answer,):
        if not isinstance(found, BackendType):
            reason = f"it returned {found!r}, which is no BackendType"
        elif found.name in plugins.backends:
            reason = f"a backend named {found.name} was already registered by plugin {plugins.owners[found.name]}"
        else:
            plugins.backends[found.name] = found
            plugins.owners[found.name] = name
            continue
        plugins.failures.append(PluginError(name, "flanneld_masq_backends", reason))


def _preference(found: BackendType) -> tuple[bool, int, str]:
    return (found.preference is None, found.preference or 0, found.name)


class GuardedBackend:
    """A backend whose unexpected exceptions are named as its plugin's. Made when it is first used."""

    def __init__(self, kind: BackendType, plugin: str, family: Family, host: Host) -> None:
        self.name = kind.name
        self.family = family
        self._kind = kind
        self._plugin = plugin
        self._host = host
        self._backend: Optional[Backend] = None

    def probe(self) -> Probe:
        """Unlike the others, never raises: a backend that cannot be asked is not usable."""
        try:
            return self._guard("probe", lambda backend: backend.probe())
        except MasqError as error:
            return Probe(False, str(error))

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        return self._guard("wanted", lambda backend: backend.wanted(desired))

    def render(self, desired: Desired) -> str:
        return self._guard("render", lambda backend: backend.render(desired))

    def observe(self, groups: Collection[Group]) -> Observation:
        return self._guard("observe", lambda backend: backend.observe(groups))

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        return self._guard("replace", lambda backend: backend.replace(desired, observed, changes))

    def drops_forwarding(self) -> str:
        return self._guard("drops_forwarding", lambda backend: backend.drops_forwarding())

    def generation(self) -> Optional[int]:
        return self._guard("generation", lambda backend: backend.generation())

    def poll(self) -> Optional[bool]:
        return self._guard("poll", lambda backend: backend.poll())

    def _guard(self, method: str, call: Callable[[Backend], Result]) -> Result:
        try:
            if self._backend is None:
                self._backend = self._kind.create(self.family, self._host)
            return call(self._backend)
        except MasqError:
            raise
        except Exception as error:  # a backend may be foreign code: whatever else it raises is its own failure
            raise PluginError(self._plugin, f"{self.name}.{method}", repr(error)) from error
