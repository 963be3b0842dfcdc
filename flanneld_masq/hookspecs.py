"""Specifies the hooks that a plugin may implement. The built-in backends use these hooks and nothing else.

A plugin is a Python module, or an object, that an installed distribution names under the entry-point
group ``flanneld_masq``:

    [project.entry-points.flanneld_masq]
    my-backend = "my_backend.plugin"

and that implements any of the hooks below with ``flanneld_masq.hookspecs.hookimpl``. A hook that raises never
stops the daemon: the log, ``backends`` and ``status`` name the plugin, and its answer is left out.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, TypeVar, cast, runtime_checkable

import pluggy

from flanneld_masq.model import (
    SLOTS,
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
    make_printable,
)
from flanneld_masq.printable import one_line, printable
from flanneld_masq.process import ProcessRunner

ENTRY_POINT_GROUP = "flanneld_masq"

_Function = TypeVar("_Function", bound=Callable[..., Any])
hookspec = cast("Callable[[_Function], _Function]", pluggy.HookspecMarker(ENTRY_POINT_GROUP))
if TYPE_CHECKING:

    def hookimpl(function: _Function) -> _Function:
        """Mark a function as the implementation of the hook of that name."""
else:
    hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


class SocketStore(Protocol):
    """Sockets that outlive this process, by name: systemd keeps them for the next start of the service."""

    def take(self, name: str) -> Optional[socket.socket]:
        """Return the socket that an earlier process stored, once; None for none."""

    def keep(self, name: str, descriptor: int) -> None:
        """Store the socket with this descriptor for the next process, in place of one of that name."""


@dataclass(frozen=True, **SLOTS)
class Host:
    """The machine, as a backend uses it: `run` starts programs, `root` is the root directory of all files.

    `daemon` is the pid of the daemon that keeps the rules, which may be this process; 0 if none runs. `sockets` outlive
    this process; None where nothing stores any. `daemon_elsewhere` is True if the daemon runs in another pid namespace,
    where it has a pid that is not known here; then `daemon` is 0.
    """

    run: ProcessRunner
    root: Path = Path("/")
    daemon: int = 0
    sockets: Optional[SocketStore] = None
    daemon_elsewhere: bool = False


class Backend(Protocol):
    """One kernel interface, for one family. One thread uses it at a time.

    Methods that access the kernel raise `MasqError`. An answer that cannot be read is an error, never an empty
    observation.
    """

    name: BackendName
    family: Family

    def probe(self) -> Probe:
        """Check if the backend can be used here. Changes nothing. Called at start, at reload and after failures."""

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        """Return the items that an observation must hold, in order. `raw` is empty if the kernel's form is not known
        beforehand. Pure."""

    def render(self, desired: Desired) -> str:
        """Return what `replace` would write into an empty kernel, in the tool's language. Pure."""

    def observe(self, groups: Collection[Group]) -> Observation:
        """Return all objects of flanneld-masq in these groups, and any other objects in their place. Changes
        nothing."""

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        """Make the kernel hold exactly `desired`, and change no foreign object.

        `observed` was read just before, for all groups in `desired` at least, and differs by `changes`. Each table
        changes in one transaction. Returns the number of transactions committed.
        """

    def drops_forwarding(self) -> str:
        """Say what in this interface drops all forwarded packets, so that only an accept in this interface helps.

        "" means nothing. Called in each pass while the backend of the forward group is `auto`: be quick, start no
        process. If it raises, its last answer stays in force; without one, no rule is removed because of it."""

    def kube_proxy_mark(self) -> Optional[MarkEvidence]:
        """Return the mark that kube-proxy's rules in this interface set on packets which kube-proxy masquerades itself.

        None if it has no such rules here. Called in each pass while the setting is `auto`: read a few rules by name,
        start no process. If it raises, its last answer stays in force. A backend may lack this method."""

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        """Return the objects of flannel and of the CNI bridge plugin. Changes nothing. `leases` tell which rules
        without a comment old releases of flannel wrote; without leases such rules are not searched for. Called at each
        resync too: while nothing changes, start no process."""

    def remove(self, items: tuple[Item, ...]) -> None:
        """Remove these items of a survey, and no others."""

    def fingerprint(self, groups: Collection[Group]) -> Optional[bytes]:
        """Return bytes that differ whenever the result of `observe` for these groups, of `drops_forwarding` or of
        `kube_proxy_mark` differs, and whenever an object of flanneld-masq in any other group appears.

        Counters must not change them. It must be far cheaper than these: the daemon calls it after each
        transaction of another program, and observes only if the bytes changed. None for an interface without
        events."""

    def generation(self) -> Optional[int]:
        """Return the generation of nf_tables, which every transaction of any program increases by one. The kernel's
        events then tell the daemon when to check again. None for an interface without a generation and events."""

    def poll(self) -> Optional[bool]:
        """Return True if anything may have changed since `observe` last began to read; for an interface without events.

        Called every few seconds, and whenever a program has released the lock of iptables-legacy, while no other
        method runs, so it must be cheap; it may miss some changes.
        None for an interface that has events, or in which there is nothing at all yet."""


@runtime_checkable
class Protector(Protocol):
    """A backend may have these methods beside those of `Backend`, if its tables can be protected."""

    def hold(self, desired: Desired) -> int:
        """Keep other programs from changing what the last observation found to be as desired, as far as the desired
        protection asks for that. Called after an observation without a difference. Returns the number of transactions
        committed."""

    def release(self) -> None:
        """Let the rules stay in force when this process ends. Called at a clean stop."""


@runtime_checkable
class Meter(Protocol):
    """A backend may have this method beside those of `Backend`, if the kernel counts the packets of its rules."""

    def traffic(self, tags: Collection[str]) -> Traffic:
        """Return the sum of what the daemon's rules with these tags have counted. Called at a resync, if metrics are
        exported: start no process."""


@dataclass(frozen=True, **SLOTS)
class BackendType:
    """A backend as a plugin offers it. `create` is called once per family and starts nothing.

    `preference` orders the candidates of `auto`: lower goes first, None after all numbers.
    """

    name: BackendName
    summary: str
    create: Callable[[Family, Host], Backend]
    preference: Optional[int] = None


@dataclass(frozen=True, **SLOTS)
class Event:
    """An event of the daemon. `kind` is one of the names in `service.journal.MESSAGE_IDS`. `diff` holds lines of what
    was found (-) and wanted (+). Command line and unit of a culprit are empty if its process had ended already, and
    its pid is 0 as well if the daemon runs in a pid namespace. The command line may hold a secret: keep it from other
    users. All texts are printable, all but `diff` on one line."""

    kind: str
    message: str
    family: str = ""
    group: str = ""
    backend: str = ""
    reason: str = ""
    duration_us: int = 0
    culprit: str = ""
    culprit_pid: int = 0
    culprit_command: str = ""
    culprit_unit: str = ""
    diff: str = ""

    def __post_init__(self) -> None:
        names = ("family", "group", "backend", "reason", "culprit", "culprit_command", "culprit_unit")
        make_printable(self, *names)
        object.__setattr__(self, "message", one_line(self.message))
        object.__setattr__(self, "diff", "\n".join(map(printable, self.diff.split("\n"))))


class MetricKind(str, enum.Enum):
    """The type of a metric, as Prometheus names it. A counter only grows, until the daemon starts again."""

    GAUGE = "gauge"
    COUNTER = "counter"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, **SLOTS)
class Sample:
    """A value, and the names and values of its labels."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, **SLOTS)
class Metric:
    """A metric of the daemon. All samples have the same label names. The name of a counter ends in _total."""

    name: str
    kind: MetricKind
    help: str
    samples: tuple[Sample, ...] = ()


class HookSpecs:
    """The hooks. pluggy passes only those arguments that an implementation names."""

    @hookspec
    def flanneld_masq_backends(self) -> Sequence[BackendType]:
        """The backends that this plugin offers.

        Called once, when the plugins are loaded. If two plugins offer the same name, the second one fails. If the
        hook raises, the plugin's backends are listed as failed.
        """

    @hookspec
    def flanneld_masq_non_masquerade_cidrs(self, settings: Settings) -> Sequence[Network]:
        """Destinations that pods reach with their own address, in addition to the configured ones.

        Called when the configuration is loaded or reloaded, at each resync, and when a file of
        `flanneld_masq_watched_files` may have changed; the networks of all plugins are joined. If the hook raises, the
        last good answer of that plugin stays in force.
        """

    @hookspec
    def flanneld_masq_watched_files(self, settings: Settings) -> Sequence[str]:
        """Files from which this plugin answers `flanneld_masq_non_masquerade_cidrs`: absolute paths, which need not
        exist, and patterns.

        Called when the configuration is loaded or reloaded. When one of these files may have changed, all plugins are
        asked for their networks again. If the hook raises, none of the plugin's files is watched.
        """

    @hookspec
    def flanneld_masq_event(self, event: Event) -> None:
        """Observe an event (rules applied, drift repaired, degraded, ...).

        Called after the event, in the daemon's event loop: return at once. The result is not used. If the hook raises,
        the log names the plugin and the daemon goes on.
        """

    @hookspec
    def flanneld_masq_export(self, settings: Settings, metrics: Callable[[], Sequence[Metric]]) -> None:
        """Export the daemon's metrics, if the settings ask this plugin to; if they no longer do, end that.

        Called in the daemon's event loop whenever it publishes its status: return at once. The first call comes when
        the first pass is over, so that no rule waits for it. `metrics` returns the metrics of that moment; any thread
        may call it. The result is not used. If the hook raises, the status has the error until it succeeds.
        """

    @hookspec
    def flanneld_masq_stop(self) -> None:
        """The daemon ends: release what `flanneld_masq_export` holds. The result is not used."""
