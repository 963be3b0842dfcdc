"""Loads the plugins and calls them: an error names its plugin, and stops no other one."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Callable, Optional, TypeVar

import pluggy

from flanneld_masq import hookspecs
from flanneld_masq.errors import MasqError, PluginError
from flanneld_masq.hookspecs import ENTRY_POINT_GROUP, Backend, BackendType, Event, Host, Meter, Metric, Protector
from flanneld_masq.model import (
    AUTO,
    BackendName,
    Change,
    Desired,
    Family,
    FamilyLease,
    Group,
    Item,
    MarkEvidence,
    Network,
    Observation,
    Probe,
    Settings,
    Survey,
    Traffic,
)

Result = TypeVar("Result")

_NAME = re.compile("[a-z][a-z0-9-]*")
_NONE = type(None)
_ANSWERS: Mapping[str, tuple[type, ...]] = {
    "probe": (Probe,),
    "wanted": (tuple,),
    "render": (str,),
    "observe": (Observation,),
    "replace": (int,),
    "drops_forwarding": (str,),
    "kube_proxy_mark": (MarkEvidence, _NONE),
    "survey": (Survey,),
    "remove": (_NONE,),
    "fingerprint": (bytes, _NONE),
    "generation": (int, _NONE),
    "poll": (bool, _NONE),
    "hold": (int,),
    "release": (_NONE,),
    "traffic": (Traffic, _NONE),
}


@dataclass
class Plugins:
    """The loaded plugins. `failures` holds the errors of loading, in their order; `owners` the plugin of a backend."""

    manager: pluggy.PluginManager
    failures: list[PluginError] = field(default_factory=list)
    backends: dict[BackendName, BackendType] = field(default_factory=dict)
    owners: dict[BackendName, str] = field(default_factory=dict)
    _last_networks: dict[str, tuple[Network, ...]] = field(default_factory=dict)

    def create(self, family: Family, host: Host) -> dict[BackendName, Backend]:
        """Return every backend for one family, in the order in which `auto` prefers them."""
        ordered = sorted(self.backends.values(), key=_preference)
        return {kind.name: GuardedBackend(kind, self.owners[kind.name], family, host) for kind in ordered}

    def non_masquerade_cidrs(self, settings: Settings) -> tuple[tuple[Network, ...], tuple[PluginError, ...]]:
        """Return the networks of all plugins, and the errors; a plugin that failed adds its last good answer."""
        failures = []
        for name, answer in self._call("flanneld_masq_non_masquerade_cidrs", settings=settings):
            if isinstance(answer, PluginError):
                failures.append(answer)
            elif not _is_networks(answer):
                reason = f"it returned {answer!r}, which is not a sequence of networks"
                failures.append(PluginError(name, "flanneld_masq_non_masquerade_cidrs", reason))
            else:
                self._last_networks[name] = tuple(answer)
        networks = tuple(network for answer in self._last_networks.values() for network in answer)
        return networks, tuple(failures)

    def watched_files(self, settings: Settings) -> tuple[tuple[str, ...], tuple[PluginError, ...]]:
        """Return the files, and patterns of files, that all plugins want to be watched, and the errors."""
        files: list[str] = []
        failures = []
        for name, answer in self._call("flanneld_masq_watched_files", settings=settings):
            if isinstance(answer, PluginError):
                failures.append(answer)
            elif not _is_paths(answer):
                reason = f"it returned {answer!r}, which is not a sequence of absolute paths"
                failures.append(PluginError(name, "flanneld_masq_watched_files", reason))
            else:
                files += answer
        return tuple(dict.fromkeys(files)), tuple(failures)

    def tell(self, event: Event) -> tuple[PluginError, ...]:
        """Pass an event to all observers; return the errors of those that failed."""
        answers = self._call("flanneld_masq_event", event=event)
        return tuple(answer for _, answer in answers if isinstance(answer, PluginError))

    def export(self, settings: Settings, metrics: Callable[[], Sequence[Metric]]) -> tuple[PluginError, ...]:
        """Let the plugins export metrics; return the errors."""
        answers = self._call("flanneld_masq_export", settings=settings, metrics=metrics)
        return tuple(answer for _, answer in answers if isinstance(answer, PluginError))

    def stop(self) -> tuple[PluginError, ...]:
        """Tell the plugins that the daemon ends; return the errors."""
        return tuple(answer for _, answer in self._call("flanneld_masq_stop") if isinstance(answer, PluginError))

    def _call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call each implementation by itself, so that the name of one that raises is known."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            name = str(implementation.plugin_name)
            try:
                answer = implementation.function(*(arguments[key] for key in implementation.argnames))
            except MasqError as error:
                answer = PluginError(name, hook, str(error))
            except Exception as error:  # a plugin is foreign code: whatever it raises is its own failure
                answer = PluginError(name, hook, repr(error))
            yield name, answer


def load(extra: Mapping[str, object] | None = None) -> Plugins:
    """Load the plugins of all installed distributions, and `extra` ones by name, for tests."""
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs.HookSpecs)
    plugins = Plugins(manager)
    for entry_point in _entry_points():
        try:
            _register(plugins, entry_point.name, entry_point.load())
        except (Exception, SystemExit) as error:  # importing a plugin runs foreign code
            plugins.failures.append(PluginError(entry_point.name, "loading", repr(error)))
    for name, plugin in (extra or {}).items():
        _register(plugins, name, plugin)
    for name, answer in plugins._call("flanneld_masq_backends"):
        _add_backends(plugins, name, answer)
    return plugins


def _entry_points() -> Iterator[importlib.metadata.EntryPoint]:
    """Yield the entry points of the project's group. A distribution may be on sys.path twice; only the first, which is
    imported, counts."""
    offers = [(one, entries) for one in importlib.metadata.distributions() if (entries := _offered_by(one))]
    seen: set[str] = set()
    for distribution, entries in offers:
        # A name is read only to be compared, because that imports a parser of mail.
        name = distribution.metadata["Name"] if len(offers) > 1 else ""
        if name not in seen:
            seen.add(name)
            yield from entries


def _offered_by(distribution: importlib.metadata.Distribution) -> list[importlib.metadata.EntryPoint]:
    """Return the entry points of the project's group. Most distributions have none, so the text is searched first.

    The API to select a group differs between Python 3.9 and 3.10; this way works in both.
    """
    if ENTRY_POINT_GROUP not in (distribution.read_text("entry_points.txt") or ""):
        return []
    return [entry for entry in distribution.entry_points if entry.group == ENTRY_POINT_GROUP]


def _register(plugins: Plugins, name: str, plugin: object) -> None:
    if plugins.manager.has_plugin(name):
        plugins.failures.append(PluginError(name, "registration", "another plugin has the same name"))
        return
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
    for kind in answer if isinstance(answer, Collection) else (answer,):
        if reason := _objection(plugins, kind):
            plugins.failures.append(PluginError(name, "flanneld_masq_backends", reason))
        else:
            plugins.backends[kind.name] = kind
            plugins.owners[kind.name] = name


def _objection(plugins: Plugins, kind: object) -> str:
    """Return the reason why a plugin's backend is refused; empty if it is accepted."""
    if not isinstance(kind, BackendType):
        return f"it returned {kind!r}, which is not a BackendType"
    if not _NAME.fullmatch(str(kind.name)) or kind.name == AUTO:
        return f"no configuration can name a backend {kind.name!r}; a name is a to z, 0 to 9 and -, a letter first"
    if kind.name in plugins.backends:
        return f"a backend named {kind.name} was already registered by plugin {plugins.owners[kind.name]}"
    return ""


def _is_networks(answer: object) -> bool:
    networks = isinstance(answer, Collection) and all(isinstance(one, (IPv4Network, IPv6Network)) for one in answer)
    return networks and not isinstance(answer, (IPv4Network, IPv6Network))


def _is_paths(answer: object) -> bool:
    paths = isinstance(answer, Collection) and all(isinstance(one, str) and one.startswith("/") for one in answer)
    return paths and not isinstance(answer, str)


def _preference(kind: BackendType) -> tuple[bool, int, str]:
    return (kind.preference is None, kind.preference or 0, kind.name)


def _no_mark() -> None:
    return None


class GuardedBackend:
    """Wraps a backend, made at its first use; turns unexpected exceptions into errors that name the plugin."""

    def __init__(self, kind: BackendType, plugin: str, family: Family, host: Host) -> None:
        self.name = kind.name
        self.family = family
        self._kind = kind
        self._plugin = plugin
        self._host = host
        self._backend: Optional[Backend] = None

    def probe(self) -> Probe:
        """Probe the backend. Unlike the other methods never raises: a backend that fails is not usable."""
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

    def kube_proxy_mark(self) -> Optional[MarkEvidence]:
        """Return None for a backend that was written before this method was part of the protocol."""
        return self._guard("kube_proxy_mark", lambda backend: getattr(backend, "kube_proxy_mark", _no_mark)())

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        return self._guard("survey", lambda backend: backend.survey(leases))

    def remove(self, items: tuple[Item, ...]) -> None:
        return self._guard("remove", lambda backend: backend.remove(items))

    def fingerprint(self, groups: Collection[Group]) -> Optional[bytes]:
        return self._guard("fingerprint", lambda backend: backend.fingerprint(groups))

    def generation(self) -> Optional[int]:
        return self._guard("generation", lambda backend: backend.generation())

    def poll(self) -> Optional[bool]:
        return self._guard("poll", lambda backend: backend.poll())

    def hold(self, desired: Desired) -> int:
        return self._guard("hold", lambda backend: backend.hold(desired) if isinstance(backend, Protector) else 0)

    def release(self) -> None:
        """Release a backend that was used."""
        if self._backend is not None:
            self._guard("release", lambda backend: backend.release() if isinstance(backend, Protector) else None)

    def traffic(self, tags: Collection[str]) -> Optional[Traffic]:
        """Return None for a backend whose rules count nothing."""
        return self._guard("traffic", lambda backend: backend.traffic(tags) if isinstance(backend, Meter) else None)

    def _guard(self, method: str, call: Callable[[Backend], Result]) -> Result:
        try:
            if self._backend is None:
                self._backend = self._kind.create(self.family, self._host)
            answer = call(self._backend)
        except MasqError:
            raise
        except Exception as error:  # a backend may be foreign code: whatever else it raises is its own failure
            raise PluginError(self._plugin, f"{self.name}.{method}", repr(error)) from error
        if not isinstance(answer, _ANSWERS.get(method, object)):
            raise PluginError(self._plugin, f"{self.name}.{method}", f"it returned {answer!r}")
        return answer
