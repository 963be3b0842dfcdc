"""The daemon's status: frozen values, and their JSON form in status.json, over D-Bus and in `status --json`."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Optional, TypeVar

from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.inputs.json_values import MAX_NUMBER
from flanneld_masq.inputs.leases import NO_RULES, as_data
from flanneld_masq.model import (
    SLOTS,
    BackendName,
    Change,
    ChangeKind,
    Family,
    FamilyLease,
    Group,
    ItemKind,
    Lease,
    Protection,
    Traffic,
    family_of,
)
from flanneld_masq.ruleset.backend_choice import Choice

_Value = TypeVar("_Value")


class State(str, enum.Enum):
    """The state of the daemon or of one family. The value is what users see."""

    SYNCED = "synced"
    WAITING = "waiting"
    DEGRADED = "degraded"
    CONTENDED = "contended"
    STOPPED = "stopped"
    UNKNOWN = "unknown"  # a command cannot find out whether the daemon runs

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, **SLOTS)
class GroupStatus:
    """The backend of one group. `rules` counts the kernel's rules for it; None where only a command looked. `also` are
    further backends that carry the same rules; only the forward group ever has any."""

    backend: BackendName
    why: str
    rules: Optional[int] = None
    also: tuple[GroupStatus, ...] = ()

    @classmethod
    def of(cls, choices: tuple[Choice, ...], rules: int | None = None) -> GroupStatus:
        first, *others = (cls(choice.backend, choice.why, rules) for choice in choices)
        return dataclasses.replace(first, also=tuple(others))

    @property
    def carriers(self) -> tuple[GroupStatus, ...]:
        """All backends of the group."""
        return (self, *self.also)


@dataclass(frozen=True, **SLOTS)
class MarkStatus:
    """The mark of packets that are left to kube-proxy, as VALUE/MASK, empty for none; and where it comes from."""

    mark: str
    why: str


@dataclass(frozen=True, **SLOTS)
class LastWrite:
    """A write for a family. `time` is ISO 8601 in UTC with milliseconds; `drift` is True if another program had
    changed rules that were right before, and `culprits` are the programs that may have done it."""

    time: str
    backend: BackendName
    reason: str
    drift: bool
    duration_us: int
    changes: tuple[Change, ...] = ()
    culprits: tuple[Culprit, ...] = ()


@dataclass(frozen=True, **SLOTS)
class FlannelStatus:
    """The effects of flannel's rules beside the daemon's, one sentence each; the reason why the daemon stopped removing
    them (empty if it removes them, or is not configured to); and the backends that hold such rules."""

    effects: tuple[str, ...] = ()
    takeover_stopped: str = ""
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, **SLOTS)
class RepairCount:
    """The number of repairs in one backend that one program made necessary. `cause` is the worst damage of each, and
    `author` the name of the program; "unknown" if none is known, "others" for programs beyond the first 20."""

    backend: BackendName
    cause: ChangeKind
    author: str
    count: int


@dataclass(frozen=True, **SLOTS)
class Totals:
    """The counts of a daemon for one family since its start.

    `gap_us` is the time from the first notice of each change by another program to the end of the pass that repaired
    it, in microseconds.
    """

    repairs: tuple[RepairCount, ...] = ()
    contentions: int = 0
    gap_us: int = 0


@dataclass(frozen=True, **SLOTS)
class FamilyStatus:
    """The status of one family.

    `repairs` counts repairs of drift since the daemon's start; None where no daemon reported any. `healed_flows` counts
    the connections deleted meanwhile because they had the wrong source address; None likewise. `last_repair` is the
    last repair, `last_write` the last write for any other reason. `verified` is the time of the last pass that
    succeeded; a status that differs in nothing else is not new. `cni_masquerade` are the places where the CNI bridge
    plugin masquerades. `kube_proxy_mark` is None without masquerade rules. `protection` is that of the daemon's own
    nft tables, None if it has none. `kernel` is what a command found in the kernel; empty in the status of a running
    daemon. `traffic` is what the masquerade rules of each backend that counts had counted at the last resync; a status
    that differs in nothing else is not new.

    It is one class because it is one object of the JSON.
    """

    state: State
    last_error: str = ""
    groups: Mapping[Group, GroupStatus] = field(default_factory=dict)
    repairs: Optional[int] = 0
    last_repair: Optional[LastWrite] = None
    last_write: Optional[LastWrite] = None
    verified: Optional[datetime] = field(default=None, compare=False)
    healed_flows: Optional[int] = 0
    cni_masquerade: tuple[str, ...] = ()
    flannel: FlannelStatus = FlannelStatus()
    kube_proxy_mark: Optional[MarkStatus] = None
    kernel: str = ""
    protection: Optional[Protection] = None
    totals: Totals = Totals()
    traffic: Mapping[BackendName, Traffic] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, **SLOTS)
class Since:
    """Times when the state of the daemon and of each family began, as far as they are known."""

    daemon: Optional[datetime] = None
    families: Mapping[Family, datetime] = field(default_factory=dict)


@dataclass(frozen=True, **SLOTS)
class Status:
    """The status of the daemon. `pid` is None where no daemon runs, or none that is known; `config` is the absolute
    path of its configuration file. `since` is when its states began. `config_loaded` is the time when the settings in
    force were read, and `reload_refused` is True if the file was invalid at a reload since then."""

    state: State
    version: str = ""
    pid: Optional[int] = None
    config: str = ""
    since: Since = Since()
    config_loaded: Optional[datetime] = None
    reload_refused: bool = False
    leases: tuple[Lease, ...] = ()
    troubles: tuple[str, ...] = ()
    plugin_failures: tuple[str, ...] = ()
    families: Mapping[Family, FamilyStatus] = field(default_factory=dict)

    def names(self, family: Family) -> bool:
        """Return True if a subnet file names the family."""
        return any(lease.of(family) for lease in self.leases)

    @property
    def waits(self) -> bool:
        """True if the daemon waits for a first subnet file, and no file is there that cannot be used."""
        unusable = any(trouble.endswith(NO_RULES) for trouble in self.troubles)
        return self.state is State.WAITING and not self.leases and not unusable

    @property
    def errors(self) -> tuple[str, ...]:
        """The last error of each family that has one, then the troubles of the input files."""
        families = (f"{name}: {family.last_error}" for name, family in self.families.items() if family.last_error)
        return (*families, *self.troubles)


def stopped(status: Status) -> Status:
    """Return the status with everything marked as stopped."""
    families = {name: dataclasses.replace(family, state=State.STOPPED) for name, family in status.families.items()}
    return dataclasses.replace(status, state=State.STOPPED, since=Since(), families=families)


def to_json(status: Status) -> dict[str, Any]:
    """Return the status as plain values for `json.dumps`. Optional values that are not known are left out."""
    return {
        "version": status.version,
        "pid": status.pid,
        "config": status.config,
        "config_loaded": _time_to_json(status.config_loaded),
        "reload_refused": status.reload_refused,
        "state": status.state.value,
        **_without_none({"since": _time_to_json(status.since.daemon)}),
        "leases": [as_data(lease) for lease in status.leases],
        "troubles": list(status.troubles),
        "plugin_failures": list(status.plugin_failures),
        "families": {
            name.value: {
                "in_subnet_file": status.names(name),
                **_without_none({"since": _time_to_json(status.since.families.get(name))}),
                **_family_to_json(family),
            }
            for name, family in status.families.items()
        },
    }


def from_json(content: object) -> Status:
    """Read what `to_json` returned. Raises ValueError for anything else, whatever JSON it is."""
    reader = _Reader(content)
    return Status(
        State(reader.text("state")),
        version=reader.text("version", ""),
        pid=reader.optional("pid", int),
        config=reader.text("config", ""),
        since=_since(reader),
        config_loaded=_time(reader.optional("config_loaded", str)),
        reload_refused=reader.optional("reload_refused", bool) or False,
        leases=tuple(map(_lease, reader.list("leases"))),
        troubles=reader.texts("troubles"),
        plugin_failures=reader.texts("plugin_failures"),
        families={Family(name): _family(one) for name, one in reader.mapping("families").items()},
    )


def _family_to_json(family: FamilyStatus) -> dict[str, Any]:
    mark = family.kube_proxy_mark
    optional = {
        "repairs": family.repairs,
        "healed_flows": family.healed_flows,
        "flannel": list(family.flannel.effects) or None,
        "takeover_stopped": family.flannel.takeover_stopped or None,
        "kube_proxy_mark": None if mark is None else dataclasses.asdict(mark),
        "kernel": family.kernel or None,
        "protection": None if family.protection is None else family.protection.value,
        "traffic": {name: dataclasses.asdict(one) for name, one in family.traffic.items()} or None,
        "totals": None if family.totals == Totals() else _totals_to_json(family.totals),
    }
    return {
        "state": family.state.value,
        "last_error": family.last_error,
        "groups": {group.value: group_json(one) for group, one in family.groups.items()},
        "last_repair": _write_to_json(family.last_repair),
        "last_write": _write_to_json(family.last_write),
        "verified": _time_to_json(family.verified),
        "flannel_rules": list(family.flannel.backends),
        "cni_masquerade": list(family.cni_masquerade),
        **_without_none(optional),
    }


def _totals_to_json(totals: Totals) -> dict[str, Any]:
    counts = [{**dataclasses.asdict(count), "cause": count.cause.value} for count in totals.repairs]
    return {"repairs": counts, "contentions": totals.contentions, "gap_us": totals.gap_us}


def group_json(group: GroupStatus) -> dict[str, Any]:
    also = [group_json(other) for other in group.also]
    return _without_none({"backend": group.backend, "why": group.why, "rules": group.rules, "also": also or None})


def _write_to_json(write: LastWrite | None) -> dict[str, Any] | None:
    """Leave the command lines out: every local user may read the status, and an argument may be a secret."""
    if write is None:
        return None
    content = dataclasses.asdict(write)
    for culprit in content["culprits"]:
        del culprit["command"]
    return {**content, "changes": [_without_none(change) for change in content["changes"]]}


def _time_to_json(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


class _Reader:
    """Reads the members of a JSON object by their types. Raises ValueError, which names types alone: the `repr` of a
    deeply nested value raises RecursionError."""

    def __init__(self, content: object) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} instead of an object")  # noqa: TRY004  one error for any wrong JSON
        self._content: dict[str, Any] = content

    def get(self, key: str, kind: type[_Value]) -> _Value:
        value = self._content.get(key)
        if type(value) is not kind:  # a bool is an int, but not here
            raise ValueError(f"{key} is {type(value).__name__}, not {kind.__name__}")
        if isinstance(value, int) and abs(value) >= MAX_NUMBER:
            raise ValueError(f"{key} is too large")
        return value

    def optional(self, key: str, kind: type[_Value]) -> _Value | None:
        return None if self._content.get(key) is None else self.get(key, kind)

    def text(self, key: str, default: str | None = None) -> str:
        return self.get(key, str) if default is None or key in self._content else default

    def list(self, key: str) -> list[Any]:
        return self.get(key, list) if key in self._content else []

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.list(key)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{key} is not a list of texts")
        return tuple(values)

    def mapping(self, key: str) -> dict[str, Any]:
        return self.get(key, dict) if key in self._content else {}

    def read(self, key: str, reader: Callable[[object], _Value]) -> tuple[_Value, ...]:
        return tuple(map(reader, self.list(key)))


def _since(reader: _Reader) -> Since:
    times = ((name, _time(_Reader(one).optional("since", str))) for name, one in reader.mapping("families").items())
    families = {Family(name): time for name, time in times if time is not None}
    return Since(_time(reader.optional("since", str)), families)


def _lease(content: object) -> Lease:
    reader = _Reader(content)
    families = {family: _family_lease(family, reader.mapping(family.value)) for family in Family}
    return Lease(
        reader.text("path"),
        ipv4=families[Family.IPV4],
        ipv6=families[Family.IPV6],
        mtu=reader.optional("mtu", int),
        ipmasq=reader.optional("ipmasq", bool),
    )


def _family_lease(family: Family, content: dict[str, Any]) -> FamilyLease | None:
    """Read one family of a lease. JSON has no gateway; the address of the subnet stands for it."""
    if not content:
        return None
    reader = _Reader(content)
    subnet, *networks = (ip_network(text) for text in (reader.text("subnet"), *reader.texts("networks")))
    if any(family_of(network) is not family for network in (subnet, *networks)):
        raise ValueError(f"{family} has a network of the other family")
    return FamilyLease(tuple(networks), subnet, subnet.network_address)


def _family(content: object) -> FamilyStatus:
    reader = _Reader(content)
    mark, protection = reader.optional("kube_proxy_mark", dict), reader.optional("protection", str)
    return FamilyStatus(
        State(reader.text("state")),
        last_error=reader.text("last_error", ""),
        groups={Group(name): _group(one) for name, one in reader.mapping("groups").items()},
        repairs=reader.optional("repairs", int),
        last_repair=_last_write(reader.optional("last_repair", dict)),
        last_write=_last_write(reader.optional("last_write", dict)),
        verified=_time(reader.optional("verified", str)),
        healed_flows=reader.optional("healed_flows", int),
        cni_masquerade=reader.texts("cni_masquerade"),
        flannel=FlannelStatus(
            reader.texts("flannel"), reader.text("takeover_stopped", ""), reader.texts("flannel_rules")
        ),
        kube_proxy_mark=None if mark is None else _mark(mark),
        kernel=reader.text("kernel", ""),
        protection=None if protection is None else Protection(protection),
        totals=_totals(reader.mapping("totals")),
        traffic={BackendName(name): _traffic(one) for name, one in reader.mapping("traffic").items()},
    )


def _totals(content: dict[str, Any]) -> Totals:
    if not content:
        return Totals()
    reader = _Reader(content)
    return Totals(reader.read("repairs", _repair_count), reader.get("contentions", int), reader.get("gap_us", int))


def _repair_count(content: object) -> RepairCount:
    reader = _Reader(content)
    return RepairCount(
        BackendName(reader.text("backend")),
        ChangeKind(reader.text("cause")),
        reader.text("author"),
        reader.get("count", int),
    )


def _traffic(content: object) -> Traffic:
    reader = _Reader(content)
    return Traffic(reader.get("packets", int), reader.get("bytes", int))


def _group(content: object) -> GroupStatus:
    reader = _Reader(content)
    return GroupStatus(
        BackendName(reader.text("backend")),
        reader.text("why"),
        reader.optional("rules", int),
        reader.read("also", _group),
    )


def _mark(content: object) -> MarkStatus:
    reader = _Reader(content)
    return MarkStatus(reader.text("mark"), reader.text("why"))


def _last_write(content: object) -> LastWrite | None:
    if content is None:
        return None
    reader = _Reader(content)
    return LastWrite(
        time=reader.text("time"),
        backend=BackendName(reader.text("backend")),
        reason=reader.text("reason"),
        drift=reader.get("drift", bool),
        duration_us=reader.get("duration_us", int),
        changes=reader.read("changes", _change),
        culprits=reader.read("culprits", _culprit),
    )


def _change(content: object) -> Change:
    reader = _Reader(content)
    place, wanted, found = (reader.text(key) for key in ("place", "wanted", "found"))
    item = reader.optional("item", str)
    return Change(ChangeKind(reader.text("kind")), place, wanted, found, None if item is None else ItemKind(item))


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    if time.utcoffset() is None:
        raise ValueError("a time without its offset from UTC")
    return time


def _culprit(content: object) -> Culprit:
    reader = _Reader(content)
    return Culprit(reader.text("name"), reader.get("pid", int), unit=reader.text("unit", ""))
