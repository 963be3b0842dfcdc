"""The JSON form of a status: it can be read again, and any other JSON is refused with ValueError."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from ipaddress import ip_network
from typing import Any, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_masq.controller.attribution import Culprit
from flanneld_masq.controller.status import (
    FamilyStatus,
    FlannelStatus,
    GroupStatus,
    LastWrite,
    MarkStatus,
    RepairCount,
    Since,
    State,
    Status,
    Totals,
    from_json,
    stopped,
    to_json,
)
from flanneld_masq.model import (
    BackendName,
    Change,
    ChangeKind,
    Family,
    FamilyLease,
    Group,
    ItemKind,
    Lease,
    Network,
    Protection,
    Traffic,
)
from flanneld_masq.printable import printable

_Value = TypeVar("_Value")
Path = tuple[Union[str, int], ...]

TEXT = st.text(max_size=8)
NUMBER = st.integers(0, 1 << 40)
BACKEND = TEXT.map(BackendName)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
KEYS = ("state", "leases", "families", "groups", "last_repair", "changes", "culprits", "ipv4", "subnet", "masquerade")
JSON = st.recursive(
    SCALAR | st.sampled_from(["synced", "10.244.1.0/24", "fd00::/64", "missing"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=4),
    max_leaves=12,
)


def tuples(values: st.SearchStrategy[_Value]) -> st.SearchStrategy[tuple[_Value, ...]]:
    return st.lists(values, max_size=3).map(tuple)


def networks(family: Family) -> st.SearchStrategy[Network]:
    addresses = st.ip_addresses(v=4) if family is Family.IPV4 else st.ip_addresses(v=6)
    prefixes = st.integers(0, family.data.width)
    return st.builds(lambda address, prefix: ip_network(f"{address}/{prefix}", strict=False), addresses, prefixes)


def leases(family: Family) -> st.SearchStrategy[FamilyLease]:
    """The gateway is no part of a status."""

    def lease(others: tuple[Network, ...], subnet: Network) -> FamilyLease:
        return FamilyLease(others, subnet, subnet.network_address)

    return st.builds(lease, tuples(networks(family)), networks(family))


LEASES = st.builds(
    Lease,
    TEXT.map(printable),
    st.none() | leases(Family.IPV4),
    st.none() | leases(Family.IPV6),
    mtu=st.none() | NUMBER,
    ipmasq=st.none() | st.booleans(),
)
TIMES = st.datetimes(timezones=st.just(timezone.utc)).map(lambda time: time.replace(microsecond=7000))
REPAIRS = st.builds(
    LastWrite,
    time=TEXT,
    backend=BACKEND,
    reason=TEXT,
    drift=st.booleans(),
    duration_us=NUMBER,
    changes=tuples(
        st.builds(Change, st.sampled_from(ChangeKind), TEXT, TEXT, TEXT, st.none() | st.sampled_from(ItemKind))
    ),
    culprits=tuples(st.builds(Culprit, TEXT, NUMBER, unit=TEXT)),
)
CARRIERS = st.builds(GroupStatus, BACKEND, TEXT, st.none() | NUMBER)
GROUPS = st.builds(GroupStatus, BACKEND, TEXT, st.none() | NUMBER, tuples(CARRIERS))
FAMILIES = st.builds(
    FamilyStatus,
    st.sampled_from(State),
    last_error=TEXT,
    groups=st.dictionaries(st.sampled_from(Group), GROUPS),
    repairs=st.none() | NUMBER,
    last_repair=st.none() | REPAIRS,
    last_write=st.none() | REPAIRS,
    verified=st.none() | TIMES,
    healed_flows=st.none() | NUMBER,
    cni_masquerade=tuples(TEXT),
    flannel=st.builds(FlannelStatus, tuples(TEXT), TEXT, tuples(TEXT)),
    kube_proxy_mark=st.none() | st.builds(MarkStatus, TEXT, TEXT),
    kernel=TEXT,
    protection=st.none() | st.sampled_from(Protection),
    totals=st.builds(
        Totals, tuples(st.builds(RepairCount, BACKEND, st.sampled_from(ChangeKind), TEXT, NUMBER)), NUMBER, NUMBER
    ),
    traffic=st.dictionaries(BACKEND, st.builds(Traffic, NUMBER, NUMBER), max_size=2),
)
STATUSES = st.builds(
    Status,
    st.sampled_from(State),
    version=TEXT,
    pid=st.none() | NUMBER,
    config=TEXT,
    since=st.builds(Since, st.none() | TIMES),
    config_loaded=st.none() | TIMES,
    reload_refused=st.booleans(),
    leases=tuples(LEASES),
    troubles=tuples(TEXT),
    plugin_failures=tuples(TEXT),
    families=st.dictionaries(st.sampled_from(Family), FAMILIES),
)
DOCUMENT: Mapping[str, Any] = {
    "version": "1.2.3",
    "pid": 7,
    "config": "/etc/flanneld-masq/config.toml",
    "config_loaded": "2026-07-08T09:10:11.012+00:00",
    "reload_refused": True,
    "state": "degraded",
    "since": "2026-07-08T09:10:11.012+00:00",
    "leases": [
        {
            "path": "/run/flannel/subnet.env",
            "mtu": 1450,
            "ipmasq": True,
            "ipv4": {"networks": ["10.244.0.0/16"], "subnet": "10.244.1.0/24"},
            "ipv6": {"networks": ["fd00::/56"], "subnet": "fd00::/64"},
        }
    ],
    "troubles": ["/x is gone"],
    "plugin_failures": ["plugin x failed"],
    "families": {
        "ipv4": {
            "in_subnet_file": True,
            "since": "2026-07-08T09:10:11.012+00:00",
            "state": "contended",
            "last_error": "nft said no",
            "groups": {"masquerade": {"backend": "nft", "why": "it is usable", "rules": 5}},
            "last_repair": {
                "time": "2026-07-08T09:10:11.012+00:00",
                "backend": "nft",
                "reason": "ruleset changed",
                "drift": True,
                "duration_us": 1234,
                "changes": [{"kind": "missing", "place": "ip nat", "wanted": "a jump", "found": "", "item": "jump"}],
                "culprits": [{"name": "nft", "pid": 8, "unit": "x.service"}],
            },
            "last_write": None,
            "verified": "2026-07-08T09:10:11.012+00:00",
            "flannel_rules": ["nft"],
            "cni_masquerade": ["chain CNI-x"],
            "flannel": ["nft: flannel's rules agree"],
            "takeover_stopped": "it came back",
            "kube_proxy_mark": {"mark": "0x1/0x1", "why": "a chain"},
            "repairs": 3,
            "healed_flows": 2,
            "kernel": "holds what is wanted",
            "protection": "owner and persist",
            "traffic": {"iptables-nft": {"packets": 7, "bytes": 420}},
            "totals": {
                "repairs": [{"backend": "nft", "cause": "missing", "author": "nft", "count": 3}],
                "contentions": 1,
                "gap_us": 5678,
            },
        }
    },
}


def as_read(status: Status) -> Any:
    """Return the JSON of a status as a program reads it from a file or from D-Bus."""
    return json.loads(json.dumps(to_json(status)))


def paths(content: object, path: Path = ()) -> Iterator[Path]:
    """Yield the path of each value in a JSON document, the document's own first."""
    yield path
    members = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in members:
        yield from paths(value, (*path, key))


def parent(content: Any, path: Path) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def without(content: Any, path: Path) -> Any:
    changed = copy.deepcopy(content)
    del parent(changed, path)[path[-1]]
    return changed


def replaced(content: Any, path: Path, value: object) -> Any:
    changed = copy.deepcopy(content)
    parent(changed, path)[path[-1]] = value
    return changed


def read_or_refuse(content: object) -> None:
    """Fail if reading raises anything but ValueError, or returns what cannot be written and read again."""
    with contextlib.suppress(ValueError):
        status = from_json(content)
        assert from_json(as_read(status)) == status


@given(STATUSES)
def test_what_was_written_can_be_read(status: Status) -> None:
    again = from_json(as_read(status))
    assert again == status
    for name, family in status.families.items():  # times of verification are not compared
        assert again.families[name].verified == family.verified
        for write in ("last_repair", "last_write"):
            before, after = getattr(family, write), getattr(again.families[name], write)
            assert before is None or [one.item for one in before.changes] == [one.item for one in after.changes]


def test_a_new_verification_alone_is_no_new_status() -> None:
    at = datetime(2026, 7, 8, tzinfo=timezone.utc)
    before, after = (FamilyStatus(State.SYNCED, verified=time) for time in (None, at))
    assert Status(State.SYNCED, families={Family.IPV4: before}) == Status(State.SYNCED, families={Family.IPV4: after})


@pytest.mark.parametrize("time", ["", "yesterday", "2026-07-08T09:10:11"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_json({"state": "synced", "families": {"ipv4": {"state": "synced", "verified": time}}})


def test_a_stopped_status_says_so_of_each_family() -> None:
    families = {Family.IPV4: FamilyStatus(State.SYNCED, repairs=3), Family.IPV6: FamilyStatus(State.DEGRADED)}
    status = stopped(Status(State.DEGRADED, families=families))
    assert [status.state, *(family.state for family in status.families.values())] == [State.STOPPED] * 3
    assert status.families[Family.IPV4].repairs == 3


def test_the_document_says_the_same_again() -> None:
    assert as_read(from_json(DOCUMENT)) == DOCUMENT


@given(JSON)
def test_any_json_is_read_or_refused(content: object) -> None:
    read_or_refuse(content)
    read_or_refuse({"state": "synced", "leases": content})
    read_or_refuse({"state": "synced", "families": {"ipv4": content}})
    read_or_refuse({"state": "synced", "families": {"ipv4": {"state": "synced", "last_repair": content}}})


@given(STATUSES, st.data())
def test_a_document_that_lacks_a_value_is_read_or_refused(status: Status, data: st.DataObject) -> None:
    content = as_read(status)
    read_or_refuse(without(content, data.draw(st.sampled_from(list(paths(content))[1:]))))


@given(STATUSES, st.data(), JSON)
def test_a_document_with_another_value_is_read_or_refused(status: Status, data: st.DataObject, value: object) -> None:
    content = as_read(status)
    read_or_refuse(replaced(content, data.draw(st.sampled_from(list(paths(content))[1:])), value))


READ = [path for path in paths(DOCUMENT) if path and path[-1] != "in_subnet_file"]  # it follows from the leases


@pytest.mark.parametrize("path", READ, ids=lambda path: ".".join(map(str, path)))
def test_each_value_is_checked_by_its_type(path: Path) -> None:
    """Absent and null values, and those of each other type, are read only where the format allows that."""
    value = DOCUMENT
    for key in path:
        value = value[key]  # type: ignore[index]
    read_or_refuse(without(DOCUMENT, path))
    read_or_refuse(replaced(DOCUMENT, path, None))
    others: tuple[object, ...] = (True, 7, 1.5, "x", ["x"], [7], {"x": 7}, {"x": {}})
    for other in others:
        if type(other) is not type(value):
            with pytest.raises(ValueError, match=r"\w"):
                from_json(replaced(DOCUMENT, path, other))


@pytest.mark.parametrize("content", [None, True, 7, 1.5, "synced", [], {}, {"state": None}, {"state": "dancing"}])
def test_a_document_needs_a_state(content: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        from_json(content)


@pytest.mark.parametrize("key", ["state", "pid", "leases", "troubles", "families", "unknown"])
def test_a_value_of_any_depth_is_read_or_refused(key: str) -> None:
    nested: object = []
    for _ in range(sys.getrecursionlimit()):
        nested = [nested]
    with contextlib.suppress(ValueError):
        from_json({"state": "synced", key: nested})


def test_a_network_of_the_other_family_is_refused() -> None:
    lease = {"path": "/x", "mtu": None, "ipmasq": None, "ipv4": {"networks": [], "subnet": "fd00::/64"}}
    with pytest.raises(ValueError, match="other family"):
        from_json({"state": "synced", "leases": [lease]})


def test_unknown_values_are_ignored() -> None:
    """A command may be older than the daemon."""
    assert from_json({**DOCUMENT, "colour": "red"}) == from_json(DOCUMENT)


class TestErrors:
    def test_of_each_family_that_has_one_and_of_the_files(self) -> None:
        families = {Family.IPV4: FamilyStatus(State.SYNCED), Family.IPV6: FamilyStatus(State.DEGRADED, "no nft")}
        status = Status(State.DEGRADED, troubles=("/x is gone",), families=families)
        assert status.errors == ("ipv6: no nft", "/x is gone")

    def test_none(self) -> None:
        assert Status(State.SYNCED).errors == ()


@pytest.mark.parametrize("number", [1 << 63, 10**400, -(10**400)])
def test_a_number_that_cannot_be_shown_is_refused(number: int) -> None:
    document = copy.deepcopy(dict(DOCUMENT))
    document["pid"] = number
    with pytest.raises(ValueError, match="pid is too large"):
        from_json(document)
