"""What a plugin may implement. The built-in backends use these hooks and nothing else.

A plugin is a Python module, or an object, that an installed distribution names under the entry-point
group ``flanneld_masq``:

    [project.entry-points.flanneld_masq]
    my-backend = "my_backend.plugin"

and that implements any of the hooks below with ``flanneld_masq.hookspecs.hookimpl``. A hook that raises never
stops the daemon: the plugin is named in the log and in ``backends`` and ``status``, and is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, TypeVar, cast

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
    Network,
    Observation,
    Probe,
    Settings,
    Survey,
)
from flanneld_masq.process import ProcessRunner

ENTRY_POINT_GROUP = "flanneld_masq"

_Function = TypeVar("_Function", bound=Callable[..., Any])
hookspec = cast("Callable[[_Function], _Function]", pluggy.HookspecMarker(ENTRY_POINT_GROUP))
if TYPE_CHECKING:

    def hookimpl(function: _Function) -> _Function:
        """Marks a function as the implementation of the hook of that name."""
else:
    hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


@dataclass(frozen=True, **SLOTS)
class Host:
    """The machine as a backend may see it: a way to start programs, and the root directory of files."""

    run: ProcessRunner
    root: Path = Path("/")


class Backend(Protocol):
    """One kernel interface, for one family. Used by one thread at a time.

    Methods that touch the kernel raise `MasqError`; an answer that cannot be read is an error and
    never an empty observation.
    """

    name: BackendName
    family: Family

    def probe(self) -> Probe:
        """Whether it can be used here. Changes nothing. Called at start, at reload and after failures."""

    def wanted(self, desired: Desired) -> tuple[Item, ...]:
        """The items that an observation shall hold, in order, `raw` left empty where the kernel's form
        is not known beforehand. Pure."""

    def render(self, desired: Desired) -> str:
        """What `replace` would write into an empty kernel, in the tool's language. Pure."""

    def observe(self, groups: Collection[Group]) -> Observation:
        """All that is ours of these groups, and what stands in its place. Changes nothing."""

    def replace(self, desired: Desired, observed: Observation, changes: tuple[Change, ...]) -> int:
        """Make the kernel hold exactly `desired`, touching nothing foreign.

        `observed` was just read, of all groups in `desired` at least, and differs by `changes`.

        Each table changes in one transaction. Returns the number of transactions committed.
        """

    def drops_forwarding(self) -> str:
        """What in this interface drops forwarded packets, so that an accept must stand here to be of use; empty
        for nothing. Called in each pass while the backend of the forward group is `auto`: be quick, start no
        process. If it raises, what it said last holds; where it never said anything, no rule is removed for it."""

    def survey(self, leases: tuple[FamilyLease, ...]) -> Survey:
        """What flannel and the CNI bridge plugin keep here. Changes nothing. `leases` tell which of the rules
        without a comment old releases of flannel wrote; without any, such are not looked for. Called at each resync
        as well: where nothing has changed, start no process."""

    def remove(self, items: tuple[Item, ...]) -> None:
        """Remove these items of a survey, and nothing else."""

    def fingerprint(self, groups: Collection[Group]) -> Optional[bytes]:
        """Bytes that differ whenever what `observe` of these groups or `drops_forwarding` reads does, far cheaper
        than these. After each transaction by others the daemon glances, and looks only if it sees something
        else. Counters do not count. None for an interface without events."""

    def generation(self) -> Optional[int]:
        """The generation of nf_tables, which every transaction by anyone adds one to. Where it is given, the
        kernel's events tell when to look again. None for an interface that has neither."""

    def poll(self) -> Optional[bool]:
        """For an interface without events: whether anything may have moved since `observe` last began to read.

        Asked several times a second while no other method runs, so it must be cheap; it may miss some changes.
        None for an interface that has events."""


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
    """Something that happened. `kind` is one of the names in `journal.MESSAGE_IDS`. `diff` holds lines of what was
    found (-) and wanted (+); command line and unit of a culprit are empty where it was gone already."""

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


class HookSpecs:
    """The hooks. pluggy passes only those arguments that an implementation names."""

    @hookspec
    def flanneld_masq_backends(self) -> Sequence[BackendType]:
        """The backends that this plugin offers.

        Called once, when the plugins are loaded. A name that is taken already is an error of the
        plugin that comes second. If it raises, the plugin's backends are listed as failed.
        """

    @hookspec
    def flanneld_masq_non_masquerade_cidrs(self, settings: Settings) -> Sequence[Network]:
        """Destinations that pods reach with their own address, beside the configured ones.

        Called when the configuration is loaded or reloaded, and at each resync; the networks of all
        plugins are joined. If it raises, the last good answer of that plugin stays in force.
        """

    @hookspec
    def flanneld_masq_event(self, event: Event) -> None:
        """Something happened (rules applied, drift repaired, degraded, ...).

        Called after the fact, from the daemon's event loop: return at once. What it returns is not
        used. If it raises, the plugin is named in the log and the daemon goes on.
        """
